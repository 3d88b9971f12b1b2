"""What curve sinks make of lines, plans and endings; and what is said where their library is not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from support.sending import RelayThread, ToyRun
from support.stand_in import outcome_of_job
from trn.files import Lock, write_atomic
from trn.records import pretty_json
from trn.sinks.curves import flat_params, lines_up_to, points, run_state


def test_a_curve_is_named_by_its_file_and_its_key() -> None:
    line = {"step": 3, "epoch": 0, "train_loss": 0.5, "lr": 1e-3, "tokens_seen": None, "mae": 2}
    assert points("train", line) == {"train/loss": 0.5, "train/lr": 1e-3, "train/mae": 2}
    assert points("val", {"step": 3, "val_loss": 1.5, "val_mae": 2.0}) == {"val/loss": 1.5, "val/mae": 2.0}


def test_two_keys_never_share_a_curve() -> None:
    assert points("val", {"step": 3, "val_mae": 1.0, "mae": 2.0}) == {"val/val_mae": 1.0, "val/mae": 2.0}


def test_what_is_no_number_is_no_point() -> None:
    assert points("train", {"step": 3, "is_good": True, "name": "x", "list": [1.0], "train_loss": None}) == {}


def test_a_plan_becomes_settings_by_dotted_name_without_its_places_and_files() -> None:
    plan = {
        "run_id": "exp01",
        "run_dir": "/somewhere",
        "seed": 42,
        "ema": None,
        "optimizer": {"name": "adamw", "arguments": {"lr": 0.01, "betas": [0.9, 0.999]}},
        "dataset": {"batch_size": 8, "data": {"fingerprint": "f", "files": [{"path": "a.parquet"}]}},
    }
    assert flat_params(plan) == {
        "dataset.batch_size": 8,
        "dataset.data.fingerprint": "f",
        "optimizer.arguments.betas": "[0.9,0.999]",
        "optimizer.arguments.lr": 0.01,
        "optimizer.name": "adamw",
        "seed": 42,
    }


def test_lines_are_read_up_to_a_step_and_not_beyond_damage(tmp_path: Path) -> None:
    run = ToyRun(tmp_path)
    assert list(lines_up_to(run.reports, "train", 9)) == []
    run.metrics(1, 6)
    assert [line["step"] for line in lines_up_to(run.reports, "train", 4)] == [1, 2, 3, 4]
    with open(run.reports / "train_metrics.jsonl", "ab") as stream:
        stream.write(b"{broken\n")
    run.metrics(7, 8)
    assert [line["step"] for line in lines_up_to(run.reports, "train", 9)] == [1, 2, 3, 4, 5, 6]


def test_a_run_is_running_while_its_lock_is_held_then_what_its_outcome_says(tmp_path: Path) -> None:
    run = ToyRun(tmp_path)
    assert run_state(run.dir) == ("lost", None)
    lock = Lock(run.dir / ".lock")
    assert lock.acquire(note="pid=1 job=job-1")
    assert run_state(run.dir) == ("running", None)
    lock.release()
    outcome = outcome_of_job(run.dir, "job-1", "divergence", 7)
    write_atomic(run.reports / "outcome.json", pretty_json(outcome.to_json()))
    assert run_state(run.dir) == ("divergence", 81)


@pytest.mark.parametrize(
    ("target", "library"),
    [("tensorboard:", "tensorboardX"), ("mlflow:sqlite:///x.db", "mlflow"), ("wandb:", "wandb")],
)
def test_a_library_that_is_not_installed_is_told_in_one_line_and_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, library: str
) -> None:
    for name in ("WANDB_MODE", "WANDB_ERROR_REPORTING", "DO_NOT_TRACK"):
        monkeypatch.setenv(name, "")  # put back afterwards
    monkeypatch.setitem(sys.modules, library, None)
    run = ToyRun(tmp_path)
    run.metrics(1, 3)
    thread = RelayThread(target, run.facts)
    relay = thread.finish()
    assert len(thread.said) == 1
    assert f"pip install 'trn-runtime[{target.partition(':')[0]}]'" in thread.said[0]
    assert not relay.is_delivered
    assert not (run.dir / "tensorboard").exists()
