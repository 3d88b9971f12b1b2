"""A real training, killed and resumed, its curves sent all the while: in the end they are what its files say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from support.job import write_job
from support.sending import lines_of

pytestmark = pytest.mark.slow

_STEPS, _KILLED_AT = 400, 170


def test_curves_of_a_run_that_was_killed_and_resumed_are_those_of_its_files(tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=_STEPS, checkpoint_every=100)
    runs_dir, store = tmp_path / "runs", f"sqlite:///{tmp_path / 'mlflow.db'}"
    trn = [sys.executable, "-m", "trn"]
    places = ["--runs-dir", str(runs_dir)]
    targets = ["--events", "tensorboard:", "--events", f"mlflow:{store}"]
    first = [*trn, "run", "--config", str(spec), "--run-id", "exp01", *places, *targets]
    reports = runs_dir / "exp01" / "reports"
    with subprocess.Popen(first, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        kill_at(reports.parent, _KILLED_AT)
        assert running.wait(120) == 71
    cut = len(lines_of(reports / "train_metrics.jsonl"))
    assert _KILLED_AT <= cut < _STEPS
    ended = subprocess.run([*trn, "resume", "exp01", *places], capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    train, val = (lines_of(reports / f"{kind}_metrics.jsonl") for kind in ("train", "val"))
    assert [line["step"] for line in train] == list(range(1, _STEPS + 1))

    board = EventAccumulator(str(reports.parent / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    # wall_ms is another each time that a step is made
    shown = [(point.step, point.value) for point in board.Scalars("train/wall_ms")]
    assert shown == [(line["step"], float(np.float32(line["wall_ms"]))) for line in train]
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("trn")
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    for curve, lines, key in (("train/wall_ms", train, "wall_ms"), ("val/loss", val, "val_loss")):
        history = client.get_metric_history(found.info.run_id, curve)
        assert sorted((point.step, point.value) for point in history) == [(line["step"], line[key]) for line in lines]


def kill_at(run_dir: Path, step: int) -> None:
    """Kill the runner, whose pid is in the lock's note, once it has made the step."""
    metrics, deadline = run_dir / "reports" / "train_metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < step:
        assert time.monotonic() < deadline, "the run did not come so far"
        time.sleep(0.002)
    found = re.search(r"\bpid=(\d+)", (run_dir / ".lock").read_text())
    assert found
    os.kill(int(found[1]), signal.SIGKILL)
