"""A small job whose `transform` may run anywhere: it draws from every stream, and has rows of every awkward kind.

Shuffled data of several passes, 85 rows each: with batches of 8 a pass is 10 steps and a remainder of 5 rows. A line of
the journal says which rows it was made of. Files beside the trainer make it act:

    slow                              the transform takes so many seconds
    fail_at, die_at, hang_at          the transform raises, kills its worker, never ends; at the batch with this row
    kill_at, stop_at                  the runner kills itself, or asks itself to stop, in this step; the file is removed
    pids/                             each process of a transform leaves its id here
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 85

TRAINER = """
import os
import random
import signal
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import get_worker_info

from trn import Step, TorchTrainer

HERE = Path(__file__).parent


def told(name):
    path = HERE / name
    return path.read_text() if path.exists() else None


def disturb(ctx):
    rows = [str(row) for row in ctx.row_ids.tolist()]
    if (HERE / "pids").is_dir():
        (HERE / "pids" / str(os.getpid())).touch()
    if told("slow"):
        time.sleep(float(told("slow")))
    if told("fail_at") in rows:
        raise ValueError(f"row {told('fail_at')} is no good")
    if told("die_at") in rows and get_worker_info() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    if told("hang_at") in rows:
        (HERE / "hanging").touch()
        while True:
            time.sleep(1)


class Heavy(TorchTrainer):
    columns = ("x", "y", "word")

    def setup(self, ctx):
        self.offset = 0.5

    def build(self, ctx):
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))

    def transform(self, raw_batch, ctx):
        if len(ctx.row_ids):  # none of the training's rows, in an evaluation
            disturb(ctx)
        batch = ctx.tensors(raw_batch.select(["x", "y"]))
        x = batch["x"] + self.offset + 0.01 * random.gauss(0.0, 1.0)
        x += torch.from_numpy(np.random.normal(0.0, 0.01, x.shape).astype(np.float32))
        x += 0.01 * torch.randn(x.shape)
        for place, row in enumerate(ctx.row_ids.tolist()):
            x[place] += float(ctx.rng(row).normal()) * 0.01
        words = [len(word) for word in raw_batch.column("word").to_pylist()]
        rows = zlib.crc32(ctx.row_ids.tobytes()) % 65536
        return {"x": x, "y": batch["y"], "words": torch.tensor(words), "rows": torch.full((len(words),), float(rows))}

    def prepare_batch(self, batch, state, ctx):
        for name, number in (("kill_at", signal.SIGKILL), ("stop_at", signal.SIGTERM)):
            if len(ctx.row_ids) and told(name) == str(ctx.step):
                (HERE / name).unlink()
                os.kill(os.getpid(), number)
        return super().prepare_batch(batch, state, ctx)

    def loss(self, model, batch):
        error = model(batch["x"]).squeeze(1) - batch["y"]
        facts = {"rows": batch["rows"].mean(), "words": batch["words"].float().mean(), "draw": float(torch.rand(()))}
        return Step(error.square().mean(), facts, count=len(error))
"""

SPEC = """
config_version: 1
trainer: laden:Heavy
dataset:
  parquet_paths: [train.parquet]
  batch_size: 8
  window: 2
  remainder: {remainder}
  end: cycle
  workers: {workers}
validation: {{parquet_paths: [validation.parquet], every_steps: 15}}
seed: 7
device: cpu
precision: none
ddp: false
max_steps: {max_steps}
steps_per_epoch: 10
checkpoint_every: {checkpoint_every}
threads: 1
optimizer: {{lr: 0.01, accumulate: 2}}
checkpoint: {{keep: 3}}
{more}
"""


def write_heavy(
    folder: Path,
    *,
    workers: int = 0,
    remainder: str = "carry",
    max_steps: int = 40,
    checkpoint_every: int = 3,
    bad_rows: tuple[int, ...] = (),
    more: str = "",
) -> Path:
    """The data, the trainer and the spec in `folder`; returns the spec's path. `bad_rows` have an x that is NaN."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(5)
    x = generator.normal(size=(ROWS, 4)).astype(np.float32)
    y = x.sum(axis=1).astype(np.float32)
    for row in bad_rows:
        x[row] = np.nan
    words = pa.array(["ab" * (row % 5) for row in range(ROWS)])
    for name, rows in (("train", ROWS), ("validation", 16)):
        clean = x[:rows] if name == "train" else np.nan_to_num(x[:rows])
        values = pa.FixedSizeListArray.from_arrays(pa.array(clean.reshape(-1)), 4)
        table = pa.table({"x": values, "y": pa.array(y[:rows]), "word": words[:rows]})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=9)
    (folder / "laden.py").write_text(TRAINER)
    spec = folder / "spec.yaml"
    spec.write_text(
        SPEC.format(
            workers=workers, remainder=remainder, max_steps=max_steps, checkpoint_every=checkpoint_every, more=more
        )
    )
    return spec
