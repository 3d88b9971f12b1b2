"""check_trainer passes a trainer that keeps every promise, and names the one that another breaks."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import trn
from trn.testing import BrokenPromise, check_trainer, write_rows

from . import trainers as them
from .trainers import PROMISES, table

BROKEN = [
    (them.LacksAHook, "hooks", "it lacks the hooks prepare_batch, train_step, state_dict, load_state_dict."),
    (
        them.TakesTooMuch,
        "hooks",
        "expected train_step(batch, state, ctx), found train_step(batch, state, ctx, scaler).",
    ),
    (them.BuildsOtherwise, "build", "at state_dict after configure, model.0.bias[0]: expected 0.0, found 1.0"),
    (them.LooksAtTheClock, "batches", "prepared twice"),
    (them.CountsBatches, "batches", "the same rows, with the same random streams, prepared twice"),
    (them.ReportsNaN, "steps", "at step 3: speed is nan, expected a finite number"),
    pytest.param(them.SavesAndCounts, "state", "asked twice in a row", marks=pytest.mark.slow),
    (them.StoresALambda, "state", "at state['schedule'][0]: a function; a checkpoint holds tensors"),
    pytest.param(
        them.EvaluatesInTraining,
        "evaluate",
        "at the modules' training mode, model: expected True, found False",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        them.EvaluatesWithTheBatchNormOn, "evaluate", "model.1.running_mean[0]: expected", marks=pytest.mark.slow
    ),
    pytest.param(them.LearnsNothing, "learns", "expected a loss of at most 0.5 x", marks=pytest.mark.slow),
    pytest.param(
        them.LeavesOutTheOptimizer,
        "resume",
        "at state_dict after load_state_dict, optimizer.state.0: expected",
        marks=pytest.mark.slow,
    ),
    pytest.param(them.RemembersInItself, "resume", "at step 4, train_loss: expected", marks=pytest.mark.slow),
    pytest.param(them.TrainsLessWhenItEvaluated, "watching", "at step 2, train_loss: expected", marks=pytest.mark.slow),
    pytest.param(
        them.UpdatesBeforeItLooks, "refuses", "without the second batch, and with a NaN in it", marks=pytest.mark.slow
    ),
]


@pytest.mark.slow
def test_a_trainer_that_keeps_every_promise_passes() -> None:
    report = check_trainer(them.Good, rows=table(), steps=6, learn_steps=40, spec={"optimizer": {"lr": 0.05}})
    assert report.proven == PROMISES
    assert dict(report.skipped) == {"export": "not asked for"}
    assert report.losses is not None
    assert report.losses[1] < 0.5 * report.losses[0]
    assert str(report) == f"Good, 6 steps: {', '.join(PROMISES)}; not export: not asked for"


def test_six_hooks_without_evaluation_pass_and_what_was_not_looked_at_is_said() -> None:
    columns = {"x": pa.list_(pa.float32(), 4), "y": pa.float32()}
    report = check_trainer(them.ByHand, columns=columns, learns=0.9)
    assert report.proven == tuple(name for name in PROMISES if name not in ("evaluate", "refuses"))
    assert dict(report.skipped) == {
        "evaluate": "it has no such hook",
        "refuses": "it does not list 'guard' in `honours`",
        "export": "not asked for",
    }


@pytest.mark.parametrize(("kind", "promise", "says"), BROKEN, ids=lambda one: getattr(one, "__name__", None))
def test_a_broken_promise_is_named_in_one_line(kind: type, promise: str, says: str) -> None:
    learns: Any = kind is them.LearnsNothing
    with pytest.raises(BrokenPromise) as caught:
        check_trainer(kind, rows=table(), steps=4, learns=learns, learn_steps=10)
    said = str(caught.value)
    assert caught.value.promise == promise, said
    assert says in said
    assert said.startswith(f"check_trainer [{promise}]")
    assert "\n" not in said


@pytest.mark.slow
def test_an_export_that_was_asked_for_needs_its_hook() -> None:
    with pytest.raises(BrokenPromise, match=r"\[export\]: expected a hook export\(batch, state, ctx\), found none"):
        check_trainer(them.ByHand, rows=table(), steps=4, learns=False, export=True)


def test_settings_and_random_streams_of_the_test_are_as_before() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads())
    check_trainer(them.ByHand, rows=table(), learns=False, steps=4)
    assert (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()) == before
    found = random.random(), float(np.random.rand()), float(torch.rand(()))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert found == (random.random(), float(np.random.rand()), float(torch.rand(())))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "expected rows"),
        ({"rows": 3}, "expected a pyarrow.Table or columns by name, found int"),
        ({"rows": table(), "steps": 1}, "expected at least 4, found 1"),
        ({"rows": table(), "learns": 2.0}, "between 0 and 1"),
    ],
)
def test_what_is_no_mistake_of_the_trainer_is_a_type_error(given: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        check_trainer(them.ByHand, **given)


def test_an_object_is_refused_since_a_resume_needs_a_new_one() -> None:
    with pytest.raises(TypeError, match="found an object of ByHand"):
        check_trainer(them.ByHand(), rows=table())  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"schedule": {"kind": "ReduceLROnPlateau", "arguments": {"patience": 0}}},
        {"precision": "fp16", "loss_scale": {"initial": 2**24, "growth_interval": 2}, "ema": {"enabled": True}},
    ],
)
def test_what_a_spec_may_ask_of_a_trainer_is_held_against_the_promises_too(keys: dict[str, Any]) -> None:
    report = check_trainer(them.Good, rows=table(), steps=6, spec={"optimizer": {"lr": 0.02}, **keys}, learns=0.95)
    assert report.proven == PROMISES


@pytest.mark.slow
def test_gates_of_a_spec_end_no_check_and_a_folder_can_be_used_again(tmp_path: Path) -> None:
    write_rows(table(), tmp_path / "rows.parquet")
    (tmp_path / "one.py").write_text("from testing.trainers import Good as One\n")
    part = "{parquet_paths: [rows.parquet], batch_size: 8}"
    (tmp_path / "spec.yaml").write_text(
        f"{{config_version: 1, trainer: 'one:One', dataset: {part}, validation: {{parquet_paths: [rows.parquet]}},"
        " seed: 1, device: cpu, precision: none, ddp: false, epochs: 50, steps_per_epoch: 1,"
        " schedule: {kind: linear, warmup_steps: 20, lr_max: 0.01},"
        " gates: {target_val_loss: 1000.0, patience: 0, min_epochs: 1}, checkpoint: {save_delay_steps: 40}}"
    )
    for _ in range(2):
        report = check_trainer(None, spec=tmp_path / "spec.yaml", steps=4, learns=0.99, folder=tmp_path / "here")
        assert report.proven == PROMISES


def test_the_kit_is_public() -> None:
    assert trn.testing.check_trainer is check_trainer
