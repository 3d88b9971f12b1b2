"""A runner whose run was taken while it was stopped: it wakes in the middle of a step, writes nothing, and ends."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.compare import events
from support.door import until
from support.forkserver import ForkServer
from support.job import write_job
from trn.errors import exit_code
from trn.files import Holder, Lock, holder_note
from trn.journal import EventLog, MetricsLog
from trn.runner.fence import Fence, RunTaken
from trn.verify import verify_run


def content(folder: Path) -> dict[str, str]:
    """All that a run is; the lines of its processes about themselves, each of which names its job, are not."""
    own = (folder / "logs/train.log", folder / "reports/train_heartbeat.rank0.jsonl")
    files = (path for path in folder.rglob("*") if path.is_file() and path not in own)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def replace_by_copy(path: Path) -> None:
    """What a program does that syncs folders: from now on the lock can be had."""
    shutil.copy(path, path.with_name("copy"))
    os.replace(path.with_name("copy"), path)


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[Lock]:
    one = Lock(tmp_path / ".lock")
    assert one.acquire(holder_note("job-a"))
    yield one
    one.release()


def test_the_fence_lets_through_until_another_one_holds_the_run(lock: Lock, tmp_path: Path) -> None:
    fence = Fence(lock)
    fence()
    lock.path.unlink()
    fence()  # nobody else is there
    lock.path.write_text("")
    with pytest.raises(RunTaken):
        fence()


def test_a_later_generation_is_named_and_neither_journal_writes_a_line_more(lock: Lock, tmp_path: Path) -> None:
    fence = Fence(lock)
    events_log = EventLog(tmp_path / "events.jsonl", run_id="r", job_id="job-a", guard=fence)
    metrics = MetricsLog(tmp_path / "train_metrics.jsonl", guard=fence)
    events_log.emit("started", step=0, max_steps=1)
    metrics.append({"step": 1})
    replace_by_copy(lock.path)
    other = Lock(lock.path)
    assert other.acquire(holder_note("job-b"))
    assert Holder.read(other.note).generation == 2
    time.sleep(0.26)  # as after a pause; in less, a line of the metrics is not asked for
    before = content(tmp_path)
    with pytest.raises(RunTaken, match=r"job=job-b .*generation=2; this one was of generation 1"):
        events_log.emit("note", kind="x")
    with pytest.raises(RunTaken):
        metrics.append({"step": 2})
    assert content(tmp_path) == before
    other.release()


def test_a_lock_file_that_was_replaced_by_a_copy_is_told_as_that(lock: Lock) -> None:
    replace_by_copy(lock.path)
    with pytest.raises(RunTaken, match="does not hold the lock file that stands there"):
        Fence(lock)()


def test_the_event_of_each_step_is_asked_for_as_seldom_as_its_line(tmp_path: Path) -> None:
    asked: list[int] = []
    log = EventLog(tmp_path / "events.jsonl", run_id="r", job_id="j", guard=lambda: asked.append(log.seq))
    log.emit("started", step=0, max_steps=9)
    for step in (1, 2):
        log.emit("metric", step=step)
    log.emit("checkpoint", step=2)
    time.sleep(0.26)
    log.emit("metric", step=3)
    assert {0, 3, 4} <= set(asked)
    assert len(asked) <= 5  # on a machine that stood still in between, before the second and third too


def test_a_note_that_another_one_left_in_the_very_file_fences_too(lock: Lock) -> None:
    # as on a network file system whose server gave the lock to somebody else
    lock.path.write_text("pid=1 job=job-b generation=2")
    with pytest.raises(RunTaken):
        Fence(lock)()


@pytest.mark.slow
@pytest.mark.parametrize("stopped_at", [30, 150])
def test_a_zombie_writes_nothing_more_and_ends(server: ForkServer, tmp_path: Path, stopped_at: int) -> None:
    spec = write_job(tmp_path / "job", max_steps=1_000_000)
    run_dir, runs_dir = tmp_path / "runs/run", tmp_path / "runs"
    argv = ["--job-id", "job-zombie", "--config", str(spec), "--runs-dir", str(runs_dir), "--run-id", "run"]
    zombie = server.start(argv, tmp_path / "zombie.log")
    metrics = run_dir / "reports/train_metrics.jsonl"
    until(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") >= stopped_at)
    os.kill(zombie, signal.SIGSTOP)
    again = ["--job-id", "job-next", "--run-dir", str(run_dir)]
    # a process that is stopped holds its run
    assert server.run(again, tmp_path / "refused.log") == exit_code("resume_refused")
    replace_by_copy(run_dir / ".lock")
    following = server.start(again, tmp_path / "next.log")
    until(lambda: any(one["job_id"] == "job-next" for one in events(run_dir, "metric") + events(run_dir, "checkpoint")))
    os.kill(following, signal.SIGTERM)
    assert server.wait(following) == 75, (tmp_path / "next.log").read_text()
    assert Holder.read((run_dir / ".lock").read_text()).generation == 2
    before = content(run_dir)
    os.kill(zombie, signal.SIGCONT)
    assert server.wait(zombie) == exit_code("resume_refused")
    assert "another process took it meanwhile" in (tmp_path / "zombie.log").read_text()
    assert content(run_dir) == before
    assert [str(one) for one in verify_run(run_dir) if one.problem] == []
