"""A real Slurm, two machines in one: `srun trn run` needs nothing but srun."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support.door import until
from support.job import write_job
from support.processes import marked
from support.slurm import is_here, slurm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not is_here(), reason="needs root, slurm-wlm and munge")]

TRN = [sys.executable, "-u", "-P", "-m", "trn"]
WORLD = "import os; from trn.ranks import *; print(*vars(read_world(os.environ)).values(), *meeting_place(os.environ))"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    with slurm(tmp_path_factory.mktemp("slurm")) as environ:
        yield {**environ, "TRN_TEST_MARK": f"slurm-{os.getpid()}"}


@pytest.fixture
def environ(cluster: Mapping[str, str], tmp_path: Path) -> dict[str, str]:
    return {**cluster, "TRN_RUNS_DIR": str(tmp_path / "runs")}


def run(environ: Mapping[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=dict(environ), capture_output=True, text=True, timeout=120, check=False)


def test_each_task_of_a_step_knows_its_place(environ: dict[str, str]) -> None:
    done = run({**environ, "MASTER_ADDR": "127.0.0.1"}, "srun", "-N2", "-n3", sys.executable, "-c", WORLD)
    assert done.returncode == 0, done.stderr
    rows = sorted(line.split() for line in done.stdout.splitlines())
    assert [row[:4] for row in rows] == [["0", "0", "3", "2"], ["1", "1", "3", "2"], ["2", "0", "3", "1"]]
    assert len({tuple(row[4:]) for row in rows}) == 1
    alone = run(environ, "srun", "-N2", "-n2", sys.executable, "-c", WORLD)
    assert "MASTER_ADDR is not set" in alone.stderr


def test_a_batch_script_is_one_process(environ: dict[str, str], tmp_path: Path) -> None:
    script, out = tmp_path / "job.sh", tmp_path / "out"
    world = "import os; from trn.ranks import read_world; print(read_world(os.environ).world_size)"
    script.write_text(f"#!/bin/sh\n{shlex.join([sys.executable, '-c', world])} > {out}\n")
    done = run(environ, "sbatch", "-n2", "-o", str(tmp_path / "log"), str(script))
    assert done.returncode == 0, done.stderr
    until(lambda: out.exists() and out.read_text(), timeout_s=60)
    assert out.read_text() == "1\n"


def test_srun_trains_with_two_ranks_as_one_job_which_ends_with_a_checkpoint(
    environ: dict[str, str], tmp_path: Path
) -> None:
    job = write_job(tmp_path / "job", max_steps=100_000)
    command = ["srun", "-n2", "-J", "victim", *TRN, "run", "--config", str(job), "--ddp", "--run-id", "demo", "--json"]
    reports = tmp_path / "runs" / "demo" / "reports"
    metrics = reports / "train_metrics.jsonl"
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as step:
        until(lambda: metrics.exists() and metrics.stat().st_size > 1000, timeout_s=60)
        assert run(environ, "scancel", "-s", "TERM", "-n", "victim").returncode == 0
        told, said = step.communicate(timeout=60)
    assert step.returncode == 75, said
    assert "preempted" in said
    document = json.loads(told)  # one door answers
    assert (document["state"], document["outcome"]["resumable"]) == ("preempted", True)
    assert signal.SIGTERM.name in document["reason"]
    assert len(json.loads(run(environ, *TRN, "list", "--json").stdout)) == 1
    assert run(environ, *TRN, "verify", "demo").returncode == 0
    assert json.loads((reports / "resolved_config.json").read_text())["world_size"] == 2
    until(lambda: not marked(environ["TRN_TEST_MARK"]))


def test_a_mistake_is_told_by_every_task_and_starts_nothing(environ: dict[str, str], tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", max_steps=60)
    done = run(environ, "srun", "-n2", *TRN, "run", "--config", str(job))
    assert done.returncode == 2
    assert done.stderr.count("expected `ddp: true` for 2 processes, found false") == 2
    assert not (tmp_path / "runs").exists()
