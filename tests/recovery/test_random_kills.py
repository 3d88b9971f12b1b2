"""A run that is killed again and again, anywhere, ends as the run that nobody interrupted: bit for bit.

TRN_KILL_TRIALS sets how many runs; each is killed at least three times.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from support.compare import assert_identical, events
from support.forkserver import ForkServer
from support.job import command

STARTED = b'"event":"started"'
TRIALS = int(os.environ.get("TRN_KILL_TRIALS", "20"))


def count(path: Path, text: bytes) -> int:
    try:
        return path.read_bytes().count(text)
    except FileNotFoundError:
        return 0


def kill_in_training(pid: int, run_dir: Path, started: int, target: int, delay_s: float) -> bool:
    """SIGKILL the process group a little after it began to train and its journal has `target` lines.

    `started` is how often the run had begun to train before. False if it ended first.
    """
    reports = run_dir / "reports"
    while count(reports / "events.jsonl", STARTED) <= started or count(reports / "train_metrics.jsonl", b"\n") < target:
        if _is_over(pid):
            return False
        time.sleep(0.0005)
    time.sleep(delay_s)
    os.killpg(pid, signal.SIGKILL)
    return True


def _is_over(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(TRIALS))
def test_a_run_killed_at_random_ends_bit_identical(
    server: ForkServer, job: Path, oracle: Path, tmp_path: Path, trial: int
) -> None:
    chance = random.Random(trial)
    run_dir, log = tmp_path / "run", tmp_path / "log"
    kills = 0
    if trial % 3 == 0:
        # somewhere while it plans, publishes or builds
        pid = server.start(command(job, tmp_path, "run"), log)
        time.sleep(chance.uniform(0.0, 0.4))
        os.killpg(pid, signal.SIGKILL)
        server.wait(pid)
    for target in sorted(chance.sample(range(1, 198), chance.randint(3, 5))):
        started = count(run_dir / "reports/events.jsonl", STARTED)
        pid = server.start(command(job, tmp_path, "run"), log)
        kills += kill_in_training(pid, run_dir, started, target, chance.uniform(0.0, 0.02))
        server.wait(pid)
    code = server.run(command(job, tmp_path, "run"), log)
    assert code == 0, log.read_text()
    assert kills >= 3
    assert_identical(run_dir, oracle)
    assert len(events(run_dir, "job_started")) >= 4
