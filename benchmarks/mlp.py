"""The smallest training that is one: a classifier of 10,384 parameters on rows made from a formula.

    make(folder)          train.parquet and spec.yaml, for `trn run --config folder/spec.yaml` and for make_plan
    mlp:Classifier        its trainer, as a user would write it
    make_model()          the same model, for loops that are no trainer's

So small that a step is little but what surrounds its arithmetic: what a loop costs shows here or nowhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from trn import Step, TorchTrainer

__all__ = ["BATCH", "CLASSES", "FEATURES", "Classifier", "make", "make_model"]

FEATURES, HIDDEN, CLASSES, BATCH = 64, 128, 16, 32

_SPEC = """\
config_version: 1
trainer: mlp:Classifier
dataset:
  parquet_paths: [train.parquet]
  batch_size: 32
  end: cycle
seed: 1
device: cpu
precision: none
ddp: false
threads: 1
max_steps: 1000000
checkpoint_every: 0
checkpoint: {every_epochs: 0}
optimizer: {name: adamw, lr: 1.0e-3, weight_decay: 0.01}
schedule: {kind: warmup_cosine, warmup_steps: 100}
clip_grad_norm: 1.0
"""


class Classifier(TorchTrainer):
    """Two layers and cross entropy."""

    columns = ("x", "y")

    def build(self, ctx: Any) -> nn.Module:
        return make_model()

    def loss(self, model: nn.Module, batch: Any) -> Step:
        return Step(nn.functional.cross_entropy(model(batch["x"]), batch["y"]), count=len(batch["y"]))


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def make(folder: Path, rows: int = 1 << 16) -> Path:
    """Data and spec in `folder`; returns the spec's path. The class of a row is a linear function's largest value."""
    import pyarrow as pa  # only here: whoever imports the model for a hand-written loop does not pay for it
    import pyarrow.parquet as pq

    draw = torch.Generator().manual_seed(1)
    x_BF = torch.randn(rows, FEATURES, generator=draw)
    y_B = (x_BF @ torch.randn(FEATURES, CLASSES, generator=draw)).argmax(1)
    x = pa.FixedSizeListArray.from_arrays(pa.array(x_BF.flatten().numpy()), FEATURES)
    pq.write_table(pa.table({"x": x, "y": pa.array(y_B.numpy())}), folder / "train.parquet", row_group_size=8192)
    spec = folder / "spec.yaml"
    spec.write_text(_SPEC)
    return spec
