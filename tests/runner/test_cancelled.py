"""How a run hears of `trn cancel`, wherever it is, and how it ends then."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.compare import events, outcome
from support.door import until
from support.forkserver import ForkServer
from support.job import write_job
from trn.errors import Stopped
from trn.files import make_folder
from trn.jobs.cancelling import ask_to_cancel
from trn.loop.stop import StopRequest
from trn.records import cancel_path
from trn.runner import signals
from trn.runner.cancelled import CancelWatch

LATE_S = 3.0
"""For a loaded machine; it looks each quarter of a second."""


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    one = StopRequest()
    put_back = signals.install(one)
    yield one
    put_back()


@pytest.fixture
def watch(stop: StopRequest, tmp_path: Path) -> Iterator[CancelWatch]:
    one = CancelWatch(cancel_path(tmp_path, "job-1"), stop)
    one.start()
    yield one
    one.end()


def wait_for_ever() -> None:
    deadline_s = time.monotonic() + 20.0
    while time.monotonic() < deadline_s:
        time.sleep(0.01)
    raise AssertionError("nothing came")


def test_the_file_of_the_job_is_a_request_to_stop(watch: CancelWatch, stop: StopRequest, tmp_path: Path) -> None:
    ask_to_cancel(tmp_path, "job-2", now=True)
    time.sleep(0.4)
    assert not stop.requested()
    ask_to_cancel(tmp_path, "job-1", now=False)
    until(stop.requested, LATE_S)
    assert (stop.outcome, stop.reason, stop.at_once) == ("cancelled", "`trn cancel` asked for it", False)


def test_one_that_was_there_before_the_process_is_seen_at_once(stop: StopRequest, tmp_path: Path) -> None:
    path = cancel_path(tmp_path, "job-1")
    make_folder(path.parent)
    path.write_text("half a wi")  # it counts that it is there
    watch = CancelWatch(path, stop)
    watch.start()
    assert stop.outcome == "cancelled"
    watch.end()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ('{"reason": "one\\n two \\ud800"}', r"one two \ud800"),
        ('{"reason": 7}', "`trn cancel` was asked for"),
        ('{"reason": "%s"}' % ("x" * 5000), "x" * 300),
        ("[" * 100_000, "`trn cancel` was asked for"),
        ('{"now": %s}' % ("9" * 10_000), "`trn cancel` was asked for"),
    ],
)
def test_whatever_stands_in_the_file_is_one_line_in_the_outcome(
    stop: StopRequest, tmp_path: Path, said: str, reason: str
) -> None:
    path = cancel_path(tmp_path, "job-1")
    make_folder(path.parent)
    path.write_text(said)
    CancelWatch(path, stop)._look()
    assert (stop.outcome, stop.reason, stop.at_once) == ("cancelled", reason, False)


def test_a_disk_that_does_not_say_whether_it_is_there_cancels_nothing(stop: StopRequest, tmp_path: Path) -> None:
    path = cancel_path(tmp_path, "job-1")
    make_folder(path.parent)
    path.symlink_to(path)  # to look at it fails with ELOOP, as with EIO on a disk that is ill
    with pytest.raises(OSError, match="symbolic links"):
        path.stat()
    CancelWatch(path, stop)._look()
    assert stop.outcome is None


def test_an_export_gives_way_to_it(watch: CancelWatch, stop: StopRequest, tmp_path: Path) -> None:
    ask_to_cancel(tmp_path, "job-1", now=False)
    with pytest.raises(Stopped, match="during the export"), stop.giving_way("the export"):
        wait_for_ever()


def test_now_breaks_off_a_step_that_hangs_and_is_remembered(
    watch: CancelWatch, stop: StopRequest, tmp_path: Path
) -> None:
    asking = threading.Timer(0.1, lambda: ask_to_cancel(tmp_path, "job-1", now=True))
    asking.start()
    with pytest.raises(Stopped, match="ended at once, without a checkpoint"), stop.breaking_off():
        wait_for_ever()
    asking.join()
    with pytest.raises(Stopped), stop.breaking_off():
        raise AssertionError("it was begun")


def test_one_interrupt_more_still_leaves_the_checkpoint_and_a_second_one_does_not(stop: StopRequest) -> None:
    stop.ask("cancelled", "`trn cancel` asked for it")
    os.kill(os.getpid(), signal.SIGINT)
    assert (stop.reason, stop.at_once) == ("`trn cancel` asked for it", False)
    stop.breakable = True
    with pytest.raises(Stopped, match="second SIGINT"):
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.at_once


def test_where_signals_are_not_ours_nothing_is_sent(tmp_path: Path) -> None:
    stop, seen = StopRequest(), threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.set())
    try:
        watch = CancelWatch(cancel_path(tmp_path, "job-1"), stop)
        watch.start()
        stop.breakable = True
        ask_to_cancel(tmp_path, "job-1", now=True)
        until(lambda: stop.at_once, LATE_S)
        watch.end()
        assert not seen.is_set()
    finally:
        signal.signal(signal.SIGUSR1, before)


# Real runs


SLOW_EVALUATION = """
    def evaluate(self, batches, state, ctx):
        (ctx.run_dir / "evaluating").touch()
        while not ctx.cancelled():
            pass
        return {"val_loss": 1.0}
"""
HANGING_STEP = """
    def loss(self, model, batch):
        self.calls = getattr(self, "calls", 0) + 1
        while self.calls > 30:
            open(__file__ + ".hangs", "w").close()
        error = model(batch["x"]).squeeze(1) - batch["y"]
        return Step(error.square().mean(), count=len(error))
"""


class Running:
    """A run of the trainer with `more` methods, which does not outlive its test."""

    def __init__(self, server: ForkServer, tmp_path: Path) -> None:
        self.server, self.folder, self.pid = server, tmp_path, 0
        self.run_dir = tmp_path / "runs/run"

    def begin(self, more: str = "") -> None:
        spec = write_job(self.folder / "job", max_steps=1_000_000, checkpoint_every=100_000)
        trainer = spec.parent / "noisy.py"
        trainer.write_text(trainer.read_text() + more)
        argv = ["--job-id", "job-1", "--config", str(spec), "--runs-dir", str(self.run_dir.parent), "--run-id", "run"]
        self.pid = self.server.start(argv, self.folder / "log")

    def cancel(self, *, now: bool = False) -> None:
        ask_to_cancel(self.run_dir.parent, "job-1", now=now)

    def wait(self) -> int:
        code, self.pid = self.server.wait(self.pid), 0
        return code

    def log(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture
def running(server: ForkServer, tmp_path: Path) -> Iterator[Running]:
    one = Running(server, tmp_path)
    yield one
    if one.pid:
        os.kill(one.pid, signal.SIGKILL)
        one.wait()


@pytest.mark.slow
def test_a_training_ends_after_its_step_with_a_checkpoint(running: Running) -> None:
    running.begin()
    until(lambda: (running.run_dir / "reports/train_metrics.jsonl").is_file())
    running.cancel()
    assert running.wait() == 92, running.log()
    end = outcome(running.run_dir)
    assert (end["status"], end["reason"]) == ("cancelled", "`trn cancel` asked for it")
    assert end["checkpoint"]["step"] == end["step"]
    assert [event["reason"] for event in events(running.run_dir, "stop_requested")] == ["`trn cancel` asked for it"]


@pytest.mark.slow
def test_now_ends_it_without_one_also_in_a_step_that_hangs(running: Running) -> None:
    running.begin(HANGING_STEP)
    until((running.folder / "job/noisy.py.hangs").exists)
    running.cancel()
    time.sleep(0.5)
    assert not (running.run_dir / "reports/outcome.json").exists()  # it waits for its step
    running.cancel(now=True)
    assert running.wait() == 92, running.log()
    end = outcome(running.run_dir)
    assert "ended at once, without a checkpoint" in end["reason"]
    assert end["checkpoint"] is None or end["checkpoint"]["step"] < end["step"]


@pytest.mark.slow
def test_an_evaluation_that_takes_long_hears_of_it(running: Running) -> None:
    running.begin(SLOW_EVALUATION)
    until((running.run_dir / "evaluating").exists)
    running.cancel()
    assert running.wait() == 92, running.log()


@pytest.mark.slow
def test_one_that_is_only_planned_leaves_nothing(running: Running) -> None:
    running.cancel()
    running.begin()
    assert running.wait() == 92
    assert "before the run began" in running.log()
    assert not running.run_dir.exists()
