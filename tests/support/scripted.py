"""A job whose gates can be made to act: its validation losses are a script, and chosen rows of its data are NaN.

Epochs have 5 steps of 4 rows, validated at the end of each; a pass has 25 steps, in file order. The model has a batch
norm and dropout, so that a refused step that left a trace would change what follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

STEPS_PER_EPOCH = 5
ROWS = 100

TRAINER = """
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from trn import Step, TorchTrainer


@dataclass(frozen=True)
class Params:
    losses: tuple[str, ...]
    vocab: int | None = None


class Scripted(TorchTrainer):
    Params = Params
    columns = ("x", "y")
    cross_entropy = True

    def vocab_size(self, params):
        return params.vocab

    def build(self, ctx):
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))

    def loss(self, model, batch):
        error = model(batch["x"]).squeeze(1) - batch["y"]
        return Step(error.square().mean(), count=len(error))

    def evaluate(self, batches, state, ctx):
        marker = Path(__file__).with_name("terminate")
        if marker.exists() and marker.read_text() == str(ctx.step):
            marker.unlink()
            os.kill(os.getpid(), signal.SIGTERM)
        assert sum(1 for _ in batches) == 1
        return {"val_loss": float(ctx.params.losses[(ctx.step - 1) // 5])}
"""

SPEC = """
config_version: 1
trainer: by_script:Scripted
hyperparams:
  losses: [{losses}]
  vocab: {vocab}
dataset: {{parquet_paths: [train.parquet], batch_size: 4, shuffle: false, end: {end}}}
validation: {{parquet_paths: [validation.parquet]}}
seed: 3
device: cpu
precision: none
ddp: false
{budget}
steps_per_epoch: 5
checkpoint_every: 4
threads: 1
optimizer: {{lr: 0.01}}
checkpoint: {{keep_epochs: 2}}
{more}
"""


def write_scripted(
    folder: Path,
    losses: Sequence[object],
    *,
    bad_steps: Iterable[int] = (),
    vocab: int | None = None,
    budget: str | None = None,
    end: str = "cycle",
    more: str = "",
) -> Path:
    """The data, the trainer and the spec in `folder`; returns the spec's path.

    A file `terminate` in the folder makes the evaluation after the step in it receive a SIGTERM before its first batch.

    `losses` are those of the validations after each epoch, "nan" and "inf" too; `bad_steps` are the batches, from 1 in
    the first pass, with a NaN in them. The budget is one epoch for each loss unless another is given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)
    x = generator.normal(size=(ROWS, 3)).astype(np.float32)
    y = x.sum(axis=1).astype(np.float32)
    for step in bad_steps:
        x[(step - 1) * 4] = np.nan
    for name, rows in (("train", slice(None)), ("validation", slice(0, 4))):
        values = pa.FixedSizeListArray.from_arrays(pa.array(x[rows].reshape(-1)), 3)
        pq.write_table(pa.table({"x": values, "y": pa.array(y[rows])}), folder / f"{name}.parquet", row_group_size=20)
    (folder / "by_script.py").write_text(TRAINER)
    spec = folder / "spec.yaml"
    spec.write_text(
        SPEC.format(
            losses=", ".join(f'"{loss}"' for loss in losses),
            vocab="null" if vocab is None else vocab,
            budget=budget or f"max_steps: {len(losses) * STEPS_PER_EPOCH}",
            end=end,
            more=more,
        )
    )
    return spec
