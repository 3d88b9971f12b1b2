"""Fifty healthy runs of different shapes, every gate armed: none of them fires."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.compare import events, outcome
from support.forkserver import ForkServer
from support.job import command
from trn.records import canonical_json

pytestmark = pytest.mark.slow

RUNS = 50
CLASSES = 6
TRAINER = f"""
from dataclasses import dataclass

from torch import nn

from trn import Step, TorchTrainer


@dataclass(frozen=True)
class Params:
    width: int
    dropout: float


class Classifier(TorchTrainer):
    Params = Params
    columns = ("x", "label")
    cross_entropy = True

    def vocab_size(self, params):
        return {CLASSES}

    def build(self, ctx):
        p = ctx.params
        return nn.Sequential(nn.Linear(8, p.width), nn.ReLU(), nn.Dropout(p.dropout), nn.Linear(p.width, {CLASSES}))

    def loss(self, model, batch):
        logits = model(batch["x"])
        return Step(nn.functional.cross_entropy(logits, batch["label"]), count=len(logits))
"""


def write_data(path: Path, rows: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 8)).astype(np.float32)
    label = (x @ np.random.default_rng(0).normal(size=(8, CLASSES))).argmax(axis=1)
    values = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 8)
    pq.write_table(pa.table({"x": values, "label": pa.array(label)}), path, row_group_size=100)


def spec_of(draw: random.Random) -> dict[str, object]:
    """A spec that trains well: whatever it draws, its loss falls."""
    return {
        "config_version": 1,
        "trainer": "classifier:Classifier",
        "hyperparams": {"width": draw.choice([8, 16, 64]), "dropout": draw.choice([0.0, 0.1, 0.3])},
        "dataset": {"parquet_paths": ["train.parquet"], "batch_size": draw.choice([8, 16, 32]), "end": "cycle"},
        "validation": {"parquet_paths": ["validation.parquet"], "every_steps": draw.choice([0, 7])},
        "seed": draw.randrange(2**32),
        "device": "cpu",
        "precision": "none",
        "ddp": False,
        "max_steps": 60,
        "steps_per_epoch": 10,
        "checkpoint_every": 0,
        "threads": 1,
        "optimizer": {
            "name": draw.choice(["adamw", "adam", "sgd"]),
            "lr": 10 ** draw.uniform(-4, -2),
            "accumulate": draw.choice([1, 2]),
        },
        "clip_grad_norm": draw.choice([0.0, 1.0]),
        "gates": {
            "regime": draw.choice(["finetune", "from_scratch"]),
            "patience": 4,
            "target_val_loss": 0.001,
            "divergence_factor": 3.0,
            "telemetry": "stop",
        },
        "guard": {"policy": draw.choice(["stop", "skip"])},
    }


def test_no_gate_fires_in_fifty_healthy_runs(server: ForkServer, tmp_path: Path) -> None:
    job = tmp_path / "job"
    job.mkdir()
    write_data(job / "train.parquet", 400, seed=1)
    write_data(job / "validation.parquet", 64, seed=2)
    (job / "classifier.py").write_text(TRAINER)
    draw = random.Random(7)
    losses = []
    for number in range(RUNS):
        spec = job / f"spec-{number}.json"
        spec.write_bytes(canonical_json(spec_of(draw)))
        assert server.run(command(spec, tmp_path, f"run-{number}"), tmp_path / "log") == 0, spec.read_text()
        run_dir = tmp_path / f"run-{number}"
        ended = outcome(run_dir)
        assert (ended["status"], ended["step"]) == ("completed", 60), ended["reason"]
        assert events(run_dir, "gate") == events(run_dir, "step_skipped") == []
        losses.append(ended["final"]["val_loss"])
    assert len(set(losses)) == RUNS, "they were not fifty different runs"
