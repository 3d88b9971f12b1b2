"""The exactness table: whatever a step is made of, a run that was killed and resumed is the one that was not.

    accumulation 1, 3  x  average  x  fp32, bf16, fp16 with a scale  x  every schedule  x  skips  x  early stop pending

672 rows. 42 of them, in which every two values of two columns meet, are run by default; TRN_EXACTNESS=all runs the
whole table. Each row is a run, and another that is killed at an operation drawn by lot and then resumed.
"""

from __future__ import annotations

import itertools
import os
import random
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.compare import assert_identical, differences, events, final_payload, lines, outcome
from support.forkserver import OPERATIONS, ForkServer
from support.job import command
from trn.records import Json, canonical_json
from trn.trainer.torch_schedules import SCHEDULERS

pytestmark = pytest.mark.slow

TRAINER = """
from dataclasses import dataclass

from torch import nn

from trn import Step, TorchTrainer


@dataclass(frozen=True)
class Params:
    losses: tuple[float, ...]


class Exact(TorchTrainer):
    Params = Params
    columns = ("x", "y")

    def build(self, ctx):
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))

    def loss(self, model, batch):
        error = model(batch["x"]).squeeze(1) - batch["y"]
        return Step(error.square().mean(), {"mae": error.abs().mean()}, count=len(error))

    def evaluate(self, batches, state, ctx):
        found = super().evaluate(batches, state, ctx)
        # the scripted loss makes the early stop, the true one shows that the same weights were evaluated
        return {**found, "true_val_loss": found["val_loss"], "val_loss": ctx.params.losses[(ctx.step - 1) // 4]}
"""

SCHEDULES: dict[str, Json] = {
    "constant": {"warmup_steps": 2},
    "linear": {"warmup_steps": 2},
    "warmup_cosine": {"warmup_steps": 2},
    "step": {"arguments": {"step_size": 3}},
    "multi_step": {"arguments": {"milestones": [3, 7]}, "warmup_steps": 2},
    "constant_lr": {"arguments": {"factor": 0.5, "total_iters": 7}},
    "linear_lr": {"arguments": {"start_factor": 0.1}},
    "exponential": {"arguments": {"gamma": 0.9}},
    "polynomial": {"arguments": {"power": 2.0}},
    "cosine_annealing": {"lr_min": 0.0001, "warmup_steps": 2},
    "reduce_on_plateau": {"arguments": {"patience": 0}},
    "cyclic": {"lr_min": 0.0001, "arguments": {"step_size_up": 3}},
    "cosine_annealing_warm_restarts": {"arguments": {"T_0": 5}},
    "one_cycle": {},
}
PRECISIONS = ("none", "bf16", "fp16")
FIRST_SCALE = 2.0**20


@dataclass(frozen=True)
class Row:
    schedule: str
    precision: str
    accumulate: int
    ema: bool
    skips: bool
    stops_early: bool


ALL = [
    Row(*one) for one in itertools.product(SCHEDULES, PRECISIONS, (1, 3), (False, True), (False, True), (False, True))
]


def pairwise() -> list[Row]:
    """42 rows: every schedule with every precision, and the bits of its number, turned over, for the rest."""
    rows = []
    for number, name in enumerate(SCHEDULES):
        for which, precision in enumerate(PRECISIONS):
            bits = [bool(number >> place & 1) != (which > 0) for place in range(4)]
            rows.append(Row(name, precision, 3 if bits[0] else 1, *bits[1:]))
    return rows


ROWS = ALL if os.environ.get("TRN_EXACTNESS") == "all" else pairwise()


def pairs(rows: list[Row]) -> set[Any]:
    return {pair for row in rows for pair in itertools.combinations(enumerate(astuple(row)), 2)}


def test_every_two_values_meet_in_the_rows_that_are_always_run() -> None:
    assert pairs(pairwise()) == pairs(ALL)
    assert len(SCHEDULES) == len(SCHEDULERS) + 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trainer and its data: good.parquet, and bad.parquet, in which two batches of 6 rows have a NaN."""
    folder = tmp_path_factory.mktemp("exact")
    (folder / "exact.py").write_text(TRAINER)
    generator = np.random.default_rng(1)
    x = generator.normal(size=(150, 3)).astype(np.float32)
    y = x.sum(axis=1).astype(np.float32)
    write(folder / "good.parquet", x, y)
    write(folder / "validation.parquet", x[:12], y[:12])
    x[[26, 64]] = np.nan
    write(folder / "bad.parquet", x, y)
    keep = [index for index in range(150) if index // 6 not in (26 // 6, 64 // 6)]
    write(folder / "kept.parquet", x[keep], y[keep])
    return folder


def write(path: Path, x: Any, y: Any) -> None:
    values = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 3)
    pq.write_table(pa.table({"x": values, "y": pa.array(y)}), path, row_group_size=30)


def spec_of(row: Row, data: str | None = None) -> Json:
    return {
        "config_version": 1,
        "trainer": "exact:Exact",
        "hyperparams": {"losses": [3.0, 2.9, 3.0, 3.0, 1.0]},
        "dataset": {
            "parquet_paths": [data or ("bad.parquet" if row.skips else "good.parquet")],
            "batch_size": 6,
            "shuffle": False,
            "end": "cycle",
        },
        "validation": {"parquet_paths": ["validation.parquet"]},
        "seed": 11,
        "device": "cpu",
        "ddp": False,
        "threads": 1,
        "max_steps": 20,
        "steps_per_epoch": 4,
        "checkpoint_every": 3,
        "optimizer": {"name": "adamw", "lr": 0.01, "accumulate": row.accumulate},
        "clip_grad_norm": 1.0,
        "precision": row.precision,
        "schedule": {"kind": row.schedule, "lr_max": 0.01, **SCHEDULES[row.schedule]},
        **({"ema": {"enabled": True, "decay": 0.9, "evaluate": True}} if row.ema else {}),
        **({"guard": {"policy": "skip", "max_skips": 2, "lr_decay": 1.0}} if row.skips else {}),
        **({"gates": {"patience": 1, "min_epochs": 1}} if row.stops_early else {}),
        **({"loss_scale": {"initial": FIRST_SCALE, "growth_interval": 3}} if row.precision == "fp16" else {}),
    }


def bring_to_end(server: ForkServer, spec: Path, runs_dir: Path, run_id: str) -> int:
    """Run it, or go on with it; how many operations it took."""
    log = runs_dir / f"{run_id}.log"
    assert server.run(command(spec, runs_dir, run_id), log, fault="op=any,n=1000000,do=kill") == 0, log.read_text()
    return int(log.read_text().rpartition(OPERATIONS)[2])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, astuple(row))))
def test_a_killed_and_resumed_run_is_bit_identical(server: ForkServer, folder: Path, tmp_path: Path, row: Row) -> None:
    spec = folder / f"{'-'.join(map(str, astuple(row)))}.json"
    spec.write_bytes(canonical_json(spec_of(row)))
    operations = bring_to_end(server, spec, tmp_path, "oracle")
    oracle, run_dir = tmp_path / "oracle", tmp_path / "run"
    assert_is_what_it_says(row, oracle)
    fault = f"op=any,n={random.Random(repr(row)).randrange(20, operations - 10)},do=kill"
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log", fault=fault) == -9, fault
    bring_to_end(server, spec, tmp_path, "run")
    assert_identical(run_dir, oracle)


def assert_is_what_it_says(row: Row, run_dir: Path) -> None:
    """The run did what its row is for: it skipped, it overflowed, it kept an average, it stopped."""
    made, payload = lines(run_dir, "train_metrics.jsonl"), final_payload(run_dir)["trainer"]
    assert outcome(run_dir)["status"] == ("early_stopped" if row.stops_early else "completed")
    assert len(made) == (16 if row.stops_early else 20)
    assert [one["field"] for one in events(run_dir, "step_skipped")] == (["train_loss"] * 2 if row.skips else [])
    assert ("ema" in payload) == row.ema
    scales = [line.get("loss_scale") for line in made]
    if row.precision == "fp16":
        assert 1.0 < scales[0] < FIRST_SCALE, "the first step overflowed, and was made again"
        assert any(after > before for before, after in itertools.pairwise(scales))
        assert payload["loss_scale"]["scale"] > 1.0
    else:
        assert set(scales) == {None}
    assert row.schedule == "constant" or len({line["lr"] for line in made}) > 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_batch_that_is_left_out_leaves_no_trace_in_weights_average_scale_or_random_numbers(
    server: ForkServer, folder: Path, tmp_path: Path, precision: str
) -> None:
    """The same as a run over data without its rows."""
    row = Row("linear", precision, 3, ema=True, skips=True, stops_early=False)
    for name in ("bad", "kept"):
        spec = folder / f"{name}-{precision}.json"
        spec.write_bytes(canonical_json(spec_of(row, f"{name}.parquet")))
        bring_to_end(server, spec, tmp_path, name)
    assert len(events(tmp_path / "bad", "step_skipped")) == 2
    ours, theirs = final_payload(tmp_path / "bad"), final_payload(tmp_path / "kept")
    assert differences("", ours["trainer"], theirs["trainer"]) == []
    assert differences("", ours["rng"], theirs["rng"]) == []
    assert lines(tmp_path / "bad", "train_metrics.jsonl") == lines(tmp_path / "kept", "train_metrics.jsonl")
