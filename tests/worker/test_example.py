"""examples/worker, as its README has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from support.compare import outcome
from trn.spec.job_form import read_job_file
from trn.testing import check_trainer
from trn.trainer import load_trainer

EXAMPLE = Path(__file__).parents[2] / "examples/worker"


def test_its_package_names_its_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    package = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    name = package["project"]["entry-points"]["trn.trainers"]["squares"]
    assert type(load_trainer(name)).__name__ == "Squares"
    for job in ("smoke.json", "job.json"):
        assert read_job_file(EXAMPLE / job).document["trainer"] == name


@pytest.mark.slow
def test_its_trainer_keeps_the_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    x = np.random.default_rng(0).random((64, 6), np.float32)
    rows = {"x": x, "y": (x * x).sum(1)}
    check_trainer("squares.trainer:Squares", params={"width": 16, "learning_rate": 0.01}, rows=rows)


@pytest.mark.slow
def test_the_smoke_job_runs_and_its_prompts_become_samples(tmp_path: Path) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(EXAMPLE),
        "WORKER_MODE": "trainer",
        "TRAINER_JOB_SPEC_PATH": str(EXAMPLE / "smoke.json"),
        "TRAINER_ARTIFACTS_DIR": str(tmp_path / "out"),
    }
    argv = [sys.executable, "-m", "trn.worker"]
    done = subprocess.run(argv, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = outcome(tmp_path / "out/runs/smoke")
    assert (told["status"], told["step"]) == ("completed", 6)
    samples = sorted((tmp_path / "out/samples").iterdir())
    assert [path.name for path in samples] == ["step-00000003-00.json", "step-00000006-00.json"]
    assert json.loads(samples[0].read_text())["x"] == [0.5] * 6
