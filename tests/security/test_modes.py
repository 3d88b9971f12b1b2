"""Folders 0700, files 0600: all that a run, its door and the store make, whatever the umask, at every moment."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from support.door import until
from support.job import write_job

pytestmark = pytest.mark.slow


def modes(folder: Path) -> dict[str, str]:
    """The mode of each file and folder at or below `folder`; what vanishes meanwhile has none."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "file" if stat.S_ISREG(status.st_mode) else "other"
        found[str(path.relative_to(folder))] = f"{kind} {stat.S_IMODE(status.st_mode):04o}"
    return found


def start(umask: int, spec: Path, runs_dir: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trn.doors.cli", "run", "--config", str(spec), "--runs-dir", str(runs_dir)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = ["--run-id", "demo", *more]
    return subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=environ, umask=umask)


@pytest.mark.parametrize("umask", [0o022, 0o000])
def test_nothing_that_a_run_makes_can_be_read_by_others(tmp_path: Path, umask: int) -> None:
    spec, runs_dir = write_job(tmp_path / "job", max_steps=100_000), tmp_path / "not/there/yet/runs"
    door = start(umask, spec, runs_dir)
    until((runs_dir / "demo/checkpoints/best.pt").exists, timeout_s=60)
    seen = modes(runs_dir)
    door.send_signal(signal.SIGTERM)
    _, said = door.communicate(timeout=60)
    assert door.returncode == 75, said
    seen |= modes(runs_dir)
    step = len((runs_dir / "demo/reports/train_metrics.jsonl").read_bytes().splitlines())
    longer = ("--resume", "--allow-change", "max_steps", "--allow-change", "lr", "--set", f"max_steps={step + 60}")
    door = start(umask, spec, runs_dir, *longer)
    _, said = door.communicate(timeout=60)
    assert door.returncode == 0, said
    seen |= modes(runs_dir)
    assert set(seen.values()) == {"folder 0700", "file 0600"}, seen
    for name in (
        *(".", ".trn", ".trn/jobs.db", ".trn/jobs.db-wal", ".trn/jobs.db-shm", ".trn/jobs.lock", ".trn/launch"),
        *("jobs/index.jsonl", "logs", "demo", "demo/.lock", "demo/config_source.yaml", "demo/samples"),
        *("demo/reports/run_meta.json", "demo/reports/events.jsonl", "demo/reports/outcome.json"),
        *("demo/reports/outcomes", "demo/reports/plans/0.json", "demo/checkpoints/last.pt"),
    ):
        assert name in seen
    assert modes(tmp_path / "not")["."] == "folder 0700", "the folders above the runs too"
