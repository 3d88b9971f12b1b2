"""A job file with its own batches, from `trn run` to the outcome, with a trainer of six hooks; killed, it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.compare import assert_identical, lines, outcome
from support.forkserver import ForkServer
from support.job import command
from trn.plan.__main__ import main as look_at_data
from trn.records import read_json
from trn.testing import check_trainer

STEPS = 14
BATCHES = [{"x": [[n + 0.25, 1], [0.5, n]], "y": [n, 0.5], "word": ["a", "b"]} for n in range(5)]

TRAINER = """
import os
import signal
from pathlib import Path

import torch

from trn import StepResult

HERE = Path(__file__).parent


class Smoke:
    def setup(self, ctx):
        pass

    def configure(self, ctx):
        model = torch.nn.Linear(2, 1)
        return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.05)}

    def prepare_batch(self, raw_batch, state, ctx):
        batch = ctx.tensors(raw_batch, ["x", "y"])
        return batch["x"] + 0.01 * torch.randn(2, 2), batch["y"], float(batch["x"][0, 0])

    def train_step(self, batch, state, ctx):
        x, y, first = batch
        marker = HERE / "die"
        if marker.exists() and marker.read_text() == str(ctx.step):
            marker.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        loss = (state["model"](x).squeeze(1) - y).square().mean()
        state["optimizer"].zero_grad()
        loss.backward()
        state["optimizer"].step()
        return StepResult({"loss": loss, "lr": 0.05, "first": first})

    def state_dict(self, state):
        return {name: state[name].state_dict() for name in state}

    def load_state_dict(self, state, payload, ctx):
        for name in state:
            state[name].load_state_dict(payload[name])
"""


def write_smoke(folder: Path, **more: Any) -> Path:
    """The trainer and the job in `folder`; returns the job's path. The batches are gone through almost three times."""
    (folder / "smoke.py").write_text(TRAINER)
    job: dict[str, Any] = {
        "trainer_api_version": "v1",
        "run_id": "smoke",
        "trainer": "smoke:Smoke",
        "max_steps": STEPS,
        "checkpoint_every": 3,
        "mock_batches": BATCHES,
        "dataset": {"end": "cycle"},
        "max_runtime_seconds": 600,
        "threads": 1,
    }
    path = folder / "job.json"
    path.write_text(json.dumps({**job, **more}))
    return path


def trn(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "trn", *arguments]
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_a_job_runs_through_the_command_line_and_killed_it_goes_on_to_the_same_end(
    server: ForkServer, tmp_path: Path
) -> None:
    job, log = write_smoke(tmp_path), tmp_path / "log"
    done = trn("run", "--config", "job.json", "--runs-dir", "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    oracle, run_dir = tmp_path / "runs/smoke", tmp_path / "runs/killed"
    assert 'was filled in: seed: 0, device: "auto", precision: "none", ddp: false, dataset.batch_size: 2' in done.stderr
    assert outcome(oracle)["status"] == "completed"
    assert [line["first"] for line in lines(oracle, "train_metrics.jsonl")] == [n % 5 + 0.25 for n in range(STEPS)]
    plan = read_json(oracle / "reports/resolved_config.json")
    assert plan["defaulted"]["seed"] == 0
    assert plan["max_runtime_s"] == 600

    for step in (2, 8, 13):
        (tmp_path / "die").write_text(str(step))
        assert server.run(command(job, tmp_path / "runs", "killed"), log) == -signal.SIGKILL, log.read_text()
    for file in (tmp_path / "runs/.trn/mock").iterdir():
        file.unlink()  # what follows from the job is made again
    assert server.run(command(job, tmp_path / "runs", "killed"), log) == 0, log.read_text()
    assert_identical(run_dir, oracle)


@pytest.mark.slow
def test_a_dry_run_of_a_job_tells_its_plan_and_writes_nothing(server: ForkServer, tmp_path: Path) -> None:
    job, log = write_smoke(tmp_path), tmp_path / "log"
    before = set(tmp_path.iterdir()) | {log, tmp_path / "__pycache__"}
    assert server.run(command(job, tmp_path / "runs", "smoke", "--dry-run"), log, cwd=tmp_path) == 0, log.read_text()
    assert set(tmp_path.iterdir()) <= before
    said = log.read_text()
    assert f"{tmp_path}/runs/.trn/mock/" in said
    assert '"device": "auto"' in said
    assert "trn-mock-" not in said


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        ({"dataset": {}}, 78, "the budget is 14 steps, the data give 5 (10 rows, 1 passes, batches of 2)"),
        ({"orchestrated": True}, 2, "orchestrated: only a worker obeys it; start the job with `trn worker`"),
        ({"dataset": {"columns": ["x", "z"]}}, 65, 'there is no column "z"; the file has "x", "y", "word"'),
    ],
)
def test_a_job_that_is_refused_leaves_nothing(
    server: ForkServer, tmp_path: Path, more: dict[str, Any], code: int, message: str
) -> None:
    job, log = write_smoke(tmp_path, **more), tmp_path / "log"
    assert server.run(command(job, tmp_path / "runs", "smoke"), log) == code, log.read_text()
    assert message in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not (tmp_path / "runs").exists()


def test_the_data_verbs_look_at_the_batches_of_a_job(tmp_path: Path) -> None:
    job = write_smoke(tmp_path, dataset={"columns": ["x", "y", "word"]})
    assert look_at_data(["validate", str(job)]) == 0
    assert look_at_data(["cache", str(job), "--out", str(tmp_path / "cache")]) == 0
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_job_is_all_that_the_kit_for_trainers_needs(tmp_path: Path) -> None:
    report = check_trainer(None, spec=write_smoke(tmp_path), folder=tmp_path / "checked", learns=False)
    assert "resume" in str(report)
    assert not (tmp_path / "runs").exists()
