"""A small but hostile job: everything that could make a resume inexact is in it.

Shuffled data over several passes, dropout, accumulation, a schedule, and randomness of python, numpy and torch in
`transform`. A step takes about a millisecond.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trn.records import new_job_id

TRAINER = """
import random
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from trn import Step, TorchTrainer


@dataclass(frozen=True)
class Params:
    width: int = 16
    dropout: float = 0.2


class Noisy(TorchTrainer):
    Params = Params
    columns = ("x", "y")

    def build(self, ctx):
        p = ctx.params
        return nn.Sequential(nn.Linear(8, p.width), nn.BatchNorm1d(p.width), nn.ReLU(), nn.Dropout(p.dropout),
                             nn.Linear(p.width, 1))

    def transform(self, raw_batch, ctx):
        batch = ctx.tensors(raw_batch)
        x = batch["x"].clone()
        x += 0.01 * random.gauss(0.0, 1.0)
        x += torch.from_numpy(np.random.normal(0.0, 0.01, x.shape).astype(np.float32))
        if len(ctx.row_ids):
            x[0] += float(ctx.rng(int(ctx.row_ids[0])).normal()) * 0.01
        self.rows = float(zlib.crc32(ctx.row_ids.tobytes()))
        return {"x": x, "y": batch["y"]}

    def loss(self, model, batch):
        error = model(batch["x"]).squeeze(1) - batch["y"]
        return Step(error.square().mean(), {"rows": self.rows, "mae": error.abs().mean()}, count=len(error))

    def sample(self, state, ctx):
        return {"draw.txt": f"{torch.rand(3).tolist()} {random.random()} {np.random.rand()}"}
"""

SPEC = """
config_version: 1
trainer: noisy:Noisy
hyperparams: {{width: 16}}
dataset:
  parquet_paths: [train-0.parquet, train-1.parquet]
  batch_size: 8
  shuffle: true
  window: 2
  remainder: carry
  end: cycle
validation: {{parquet_paths: [validation.parquet], every_steps: 25}}
seed: 42
device: cpu
precision: none
ddp: false
max_steps: {max_steps}
steps_per_epoch: 40
checkpoint_every: {checkpoint_every}
sample_every: 50
threads: 1
optimizer: {{name: adamw, lr: 0.01, accumulate: 2}}
schedule: {{kind: warmup_cosine, warmup_steps: {warmup_steps}, lr_max: 0.01, lr_min: 0.0001}}
clip_grad_norm: 1.0
checkpoint: {{keep: 2}}
"""


QUIET = "heartbeat: {interval_seconds: 0}\nlog: {enabled: false}\n"
"""More of the spec: without the records that no run depends on, and whose failures have tests of their own."""


def write_table(path: Path, rows: int, seed: int, row_group_rows: int = 37) -> None:
    """`x`: float32 [8], `y`: a noisy nonlinear function of it."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 8)).astype(np.float32)
    y = (np.sin(x[:, 0]) + x[:, 1] * x[:, 2] + 0.1 * generator.normal(size=rows)).astype(np.float32)
    columns = {
        "x": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 8),
        "y": pa.array(y),
    }
    pq.write_table(pa.table(columns), path, row_group_size=row_group_rows)


def write_job(folder: Path, *, max_steps: int = 200, checkpoint_every: int = 20) -> Path:
    """The data, the trainer and the spec in `folder`; returns the spec's path. A pass has 323 rows: 40.4 steps."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "train-0.parquet", 200, seed=1)
    write_table(folder / "train-1.parquet", 123, seed=2, row_group_rows=50)
    write_table(folder / "validation.parquet", 61, seed=3)
    (folder / "noisy.py").write_text(TRAINER)
    spec = folder / "spec.yaml"
    warmup_steps = min(10, max_steps // 2)
    spec.write_text(SPEC.format(max_steps=max_steps, checkpoint_every=checkpoint_every, warmup_steps=warmup_steps))
    return spec


def command(spec: Path, runs_dir: Path, run_id: str, *more: str) -> list[str]:
    """Continue the run, or start it; a new job each time."""
    return [
        *("--job-id", new_job_id(), "--config", str(spec), "--runs-dir", str(runs_dir), "--run-id", run_id),
        *(more or ("--auto-resume",)),
    ]


def stride_of(do: str, *, of_kills: int = 1, of_faults: int = 3) -> int:
    """Which of the durable operations are failed by `do`: each by a kill, each third by a torn write or an error.

    With TRN_EVERY_OPERATION=all each by all of them, also where usually only each `of_kills`th is killed, or each
    `of_faults`th fails.
    """
    if os.environ.get("TRN_EVERY_OPERATION") == "all":
        return 1
    return of_kills if do == "kill" else of_faults
