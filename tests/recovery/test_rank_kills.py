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
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.compare import assert_identical, events, outcome
from support.processes import alive, marked
from support.together import ranks, run, write_together
from trn.files import Lock

TRIALS = int(os.environ.get("TRN_RANK_TRIALS", "4"))
STEPS = 60
STARTED = b'"event":"started"'
DECODING = b"rows into the cache"


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


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Path, Lock]]:
    """A spec with a cache, and the lock of that cache: no rank comes further than to its making."""
    spec = write_together(tmp_path, max_steps=STEPS, grace_s=6.0)
    spec.write_text(spec.read_text().replace("end: cycle}", "end: cycle, cache: cached}"))
    (tmp_path / "cached").mkdir()
    lock = Lock(tmp_path / "cached/.trn-cache.lock")
    assert lock.acquire("the test")
    yield spec, lock
    lock.release()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_while_the_cache_is_made_is_lost_though_the_launcher_stops_the_other(
    held: tuple[Path, Lock], tmp_path: Path, rank: int
) -> None:
    (spec, lock), log = held, tmp_path / "log"
    mark, run_dir = f"{os.getpid()}-cache-{rank}", tmp_path / "runs/r"
    with Door(spec, tmp_path / "runs", mark, log) as process:
        wait_until(lambda: count(log, DECODING) > 0, process, log)
        pids = [next(pid for pid in marked(mark) if is_rank(pid, rank)) for rank in range(2)]
        os.kill(pids[rank], signal.SIGKILL)
        wait_until(lambda: not any(map(alive, pids)), process, log)
        lock.release()
        assert process.wait(60) == 0, log.read_text()
    assert marked(mark) == []
    endings = [event for event in events(run_dir) if event["event"] in ("completed", "failed")]
    assert [event["outcome"] for event in endings] == ["rank_lost", "completed"]
    assert f"rank {rank} was killed by SIGKILL" in log.read_text()
    if rank:
        assert f"rank {rank} gave no sign of life" in endings[0]["reason"]
    assert "rank 1: trn:" not in log.read_text()  # rank 0 tells of the cache, whichever rank makes it


@pytest.mark.slow
def test_a_stop_is_still_one_while_the_cache_is_made(held: tuple[Path, Lock], tmp_path: Path) -> None:
    (spec, _), log = held, tmp_path / "log"
    mark = f"{os.getpid()}-stop"
    with Door(spec, tmp_path / "runs", mark, log) as process:
        wait_until(lambda: count(log, DECODING) > 0, process, log)
        process.terminate()
        assert process.wait(60) == 75, log.read_text()
    assert marked(mark) == []
    assert outcome(tmp_path / "runs/r")["status"] == "preempted"


@pytest.mark.slow
def test_no_rank_that_is_left_takes_a_killed_one_for_a_stop(held: tuple[Path, Lock]) -> None:
    spec, _ = held
    spec.write_text(spec.read_text().replace("batch_size: 8", "batch_size: 9"))
    with ranks(3, spec, "r") as world:
        wait_until(lambda: "decoding" in world.log(0), world.processes[0])
        world.signal(2, signal.SIGKILL)
        for rank in (1, 0):
            world.signal(rank, signal.SIGTERM)  # as torchrun does
        assert world.wait() == [87, 87, -signal.SIGKILL], world.log(0)
    assert "rank 2 gave no sign of life" in outcome(spec.parent / "runs/r")["reason"]


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
