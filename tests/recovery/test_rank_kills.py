"""Two ranks of which one is killed or stopped, at any step: restarted soon, nobody left over, and the end is identical.

TRN_RANK_TRIALS sets how many runs.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.compare import assert_identical, events
from support.processes import alive, marked
from support.together import run, write_together

TRIALS = int(os.environ.get("TRN_RANK_TRIALS", "4"))
STEPS = 60
STARTED = b'"event":"started"'


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_together(tmp_path_factory.mktemp("ranks"), max_steps=STEPS, pause_s=0.02, grace_s=5.0)


@pytest.fixture(scope="module")
def oracle(spec: Path) -> Path:
    return run(2, spec, "oracle")


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(TRIALS))
def test_a_run_whose_ranks_are_killed_or_stopped_ends_as_if_nothing_was(
    spec: Path, oracle: Path, tmp_path: Path, trial: int
) -> None:
    chance = random.Random(trial)
    number = chance.choice([signal.SIGKILL, signal.SIGSTOP])
    rank, target = chance.randrange(2), chance.randrange(STEPS - 5)
    run_dir, mark = tmp_path / "runs/r", f"{os.getpid()}-{trial}"
    with Door(spec, tmp_path / "runs", mark, tmp_path / "log") as process:
        pids = wait_for_ranks(run_dir, mark, target, process)
        os.kill(pids[rank], number)
        killed_s = time.monotonic()
        wait_until(lambda: not any(map(alive, pids)), process, tmp_path / "log")
        assert time.monotonic() - killed_s < 30
        wait_until(lambda: count(run_dir / "reports/events.jsonl", STARTED) == 2, process, tmp_path / "log")
        assert process.wait(60) == 0, (tmp_path / "log").read_text()
    assert marked(mark) == []
    endings = [event for event in events(run_dir) if event["event"] in ("completed", "failed")]
    assert [event["outcome"] for event in endings] == ["rank_lost", "completed"]
    assert_identical(run_dir, oracle)


class Door:
    """`trn run` with two processes and restarts, and at the end whatever is left of it killed."""

    def __init__(self, spec: Path, runs_dir: Path, mark: str, log: Path) -> None:
        command = [sys.executable, "-m", "trn", "run", "--config", str(spec), "--runs-dir", str(runs_dir)]
        command += ["--run-id", "r", "--nproc", "2", "--max-restarts", "3"]
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                command, env=os.environ | {"TRN_TEST_MARK": mark}, stdout=output, stderr=output, start_new_session=True
            )
        self.mark = mark

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self.process

    def __exit__(self, *_: object) -> None:
        for pid in marked(self.mark):
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


def wait_for_ranks(run_dir: Path, mark: str, step: int, process: subprocess.Popen[bytes]) -> list[int]:
    """The processes of the ranks, once the run has made so many steps."""
    reports = run_dir / "reports"
    wait_until(lambda: count(reports / "events.jsonl", STARTED) == 1, process)
    wait_until(lambda: count(reports / "train_metrics.jsonl", b"\n") >= step, process)
    return [next(pid for pid in marked(mark) if is_rank(pid, rank)) for rank in range(2)]


def is_rank(pid: int, rank: int) -> bool:
    folder = Path(f"/proc/{pid}")
    variables = (folder / "environ").read_bytes().split(b"\0")
    return b"trn.runner" in (folder / "cmdline").read_bytes().split(b"\0") and f"RANK={rank}".encode() in variables


def wait_until(what: Callable[[], bool], process: subprocess.Popen[bytes], log: Path | None = None) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, log and log.read_text()
        assert process.poll() is None, log and log.read_text()
        time.sleep(0.005)


def count(path: Path, text: bytes) -> int:
    try:
        return path.read_bytes().count(text)
    except FileNotFoundError:
        return 0
