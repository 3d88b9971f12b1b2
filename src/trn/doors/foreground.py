"""One job kept in the foreground: started, watched, its signals passed on, its ending told.

    hold the launch lock -> row `submitted` -> start the child -> `starting` -> its first event -> `running`
        while it lives: news from the run's folder and the job's log -> display; signals -> child
    child gone, the run let go -> settle (what the runner could not write) -> row with its outcome -> Ending

A door watches and records. When the store, the log or the terminal fails it says so, or falls silent, and the run
goes on: nothing here may end a training but a signal that the user sent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from trn.doors.follow import Follower, parsed
from trn.doors.progress import Display, SilentDisplay
from trn.doors.standing import Standing, after_event, after_metrics
from trn.doors.text import clean_line
from trn.errors import StorageError
from trn.files import Lock, is_locked, make_folder, remove
from trn.jobs import Store, job_log, launch_lock
from trn.jobs.ending import Ending, settle
from trn.launch import Handle, Launcher
from trn.records import JobRow, utc_now

__all__ = ["Watch", "run_in_foreground"]

_LOOK_EVERY_S = 0.2
_OUTLIVED_S = 600.0
"""How long a job whose child is gone may hold its run: a step, the grace, and a checkpoint."""
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def run_in_foreground(watch: Watch, launcher: Launcher, argv: Sequence[str]) -> Ending:
    """Run `argv` as the job of `watch` until it ends; the job's row and the run's folder are then settled.

    Raises StorageError where the job cannot be recorded before it starts, or its log cannot be opened.
    """
    lock = Lock(watch.launch_lock)
    make_folder(lock.path.parent)
    lock.acquire(note=f"pid={os.getpid()} job={watch.row.job_id}")
    try:
        watch.submit()
        with _forwarding() as signals:
            watch.signals = signals.received
            child = launcher.start(argv, log=watch.log.path)
            signals.attach(child)
            watch.record("starting", pid=child.pid)
            while child.poll() is None:
                watch.look()
                child.wait(_LOOK_EVERY_S)
            is_free = _wait_for_run(watch)
            watch.look_at_the_rest()
            ending = _end(watch, child.poll() or 0, child.failure())
            return ending if is_free else replace(ending, is_lost=False)
    finally:
        with contextlib.suppress(StorageError):
            remove(lock.path)
        lock.release()


def _wait_for_run(watch: Watch) -> bool:
    """Watch on while the child has ended and the job still holds its run; returns whether the run is free.

    Ranks outlive a launcher that is killed: they end their step, and write their last checkpoint.
    """
    deadline_s = time.monotonic() + _OUTLIVED_S
    is_told = False
    while watch.holds_run():
        if time.monotonic() > deadline_s:
            watch.say(f"trn: the run is still held after {_OUTLIVED_S:g} s; what ends it is not waited for")
            return False
        if not is_told:
            watch.say("trn: what started the run is gone; waiting for the run to end")
        is_told = True
        watch.look()
        time.sleep(_LOOK_EVERY_S)
    return True


def _end(watch: Watch, returncode: int, failure: tuple[int, str] | None) -> Ending:
    """Settle the folder, the row and the log of a job whose child has ended."""
    row = watch.row
    ending = settle(row, returncode, watch.signals, failure)
    if ending.problem:
        watch.say(ending.problem)
    if ending.is_lost and failure is not None and failure[0] < 0 and failure[1] != ending.reason:
        watch.say(f"trn: {clean_line(failure[1])}")  # what the others could not know
    if ending.outcome is not None and ending.outcome.job_id == row.job_id:
        watch.record("running", started_at=ending.outcome.started_at)
    elif ending.state in ("rejected", "preempted", "cancelled"):
        # refused or stopped before it began: what it said was shown, and nothing of it stays behind
        if ending.state == "rejected":
            ending = replace(ending, reason=watch.last_output or ending.reason)
        with contextlib.suppress(StorageError):
            remove(watch.log.path)
    watch.record(ending.state, exit_code=ending.exit_code, reason=ending.reason, ended_at=utc_now())
    return ending


class Watch:
    """What the door knows of its job: the row in the store, and the news of its run since the job was submitted."""

    def __init__(self, store: Store, row: JobRow, display: Display) -> None:
        reports = Path(row.run_dir) / "reports"
        self.row = row
        self.log = Follower(job_log(store.runs_dir, row))
        self.standing = Standing()
        self.sample: dict[str, Any] | None = None
        """The newest event of this kind."""
        self.signals: Sequence[int] = ()
        """What was passed on to the child."""
        self.last_output = ""
        self._has_begun = False
        self._was_blind = False
        self._events = Follower(reports / "events.jsonl", from_end=True)
        self._metrics = Follower(reports / "train_metrics.jsonl", from_end=True)
        self._store = store
        self._display = display

    @property
    def launch_lock(self) -> Path:
        """The lock by which others know that this door is there."""
        return launch_lock(self._store.runs_dir, self.row.job_id)

    def holds_run(self) -> bool:
        """Whether a process of this very job holds the run."""
        try:
            note = is_locked(Path(self.row.run_dir) / ".lock") or ""
        except OSError:
            return False
        return f"job={self.row.job_id}" in note.split()

    def submit(self) -> None:
        """Put the job into the store. Raises StorageError."""
        self._store.add(self.row)

    def record(self, state: str, **changes: Any) -> None:
        """Move the job's row, once to each state; a store that fails is told of, and costs the run nothing."""
        if state == self.row.state:
            return
        try:
            self.row = self._store.advance(self.row.job_id, state, **changes)
        except StorageError as error:
            self.say(str(error))

    def say(self, text: str) -> None:
        """Show a line, if anybody still looks."""
        with self._guarded():
            self._display.line(text)

    def look(self) -> bool:
        """Take in what is new and show it; returns whether there was anything."""
        try:
            output = self.log.read()
            metrics = parsed(self._metrics.read())
            events = parsed(self._events.read())
        except OSError as error:
            if not self._was_blind:
                self.say(f"trn: cannot look at the run just now, and goes on: {error}")
            self._was_blind = True
            return False
        self._echo(output)
        own = [event for event in events if event.get("job_id") == self.row.job_id]
        if own and not self._has_begun:
            self._has_begun = True
            self.record("running", started_at=utc_now())
        if self._has_begun and (own or metrics):
            self._take_in(own, metrics)
        return bool(output or metrics or events)

    def _take_in(self, events: Sequence[dict[str, Any]], metrics: Sequence[dict[str, Any]]) -> None:
        for event in events:
            self.standing = after_event(self.standing, event)
            self.sample = event if event.get("event") == "sample" else self.sample
        for line in metrics:
            self.standing = after_metrics(self.standing, line)
        with self._guarded():
            self._display.update(self.standing, events)

    def look_at_the_rest(self) -> None:
        """Everything that is left, when nobody writes any more."""
        while self.look():
            pass
        self._echo([self.log.rest()])
        with self._guarded():
            self._display.close()

    def _echo(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            if text := clean_line(line.decode(errors="replace")):
                self.last_output = text
                # a child that is interrupted before it has begun has nothing to say but where it was
                if self._has_begun or not self.signals:
                    self.say(text)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """A stream that cannot be written to any more is left alone from then on."""
        try:
            yield
        except OSError:
            self._display = SilentDisplay()


class _Signals:
    """Passes signals on to the child, each exactly once and in order, also those that come before there is one."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._waiting: deque[int] = deque()
        self._child: Handle | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        self._waiting.append(number)
        self._pass_on()

    def attach(self, child: Handle) -> None:
        self._child = child
        self._pass_on()

    def _pass_on(self) -> None:
        # a handler may come between any two steps here: popleft hands each signal out once
        while self._child is not None and self._waiting:
            with contextlib.suppress(IndexError):
                self._child.signal(self._waiting.popleft())


@contextlib.contextmanager
def _forwarding() -> Iterator[_Signals]:
    """Take the signals that ask a run to stop; one that the user had ignored (nohup) stays ignored."""
    signals = _Signals()
    before = {number: signal.getsignal(number) for number in _FORWARDED}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signals.handle)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
