"""One job kept in the foreground: started, watched, its signals passed on, its ending told.

    hold the launch lock -> row `submitted` -> start the child -> `starting` -> its first event -> `running`
        while it lives: news from the run's folder and the job's log -> display; signals -> child
    child gone, the run let go -> settle (what the runner could not write) -> row with its outcome -> Ending

A door watches and records. When the store, the log or the terminal fails it says so, or falls silent, and the run
goes on: nothing here may end a training but a signal that the user sent.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from trn.doors.forwarding import Signals, forwarding
from trn.doors.text import clean_line
from trn.doors.watch import Watch
from trn.errors import StorageError, exit_code
from trn.files import Lock, remove
from trn.jobs.attending import attending
from trn.jobs.cancelling import forget_cancel
from trn.jobs.ending import Ending, settle
from trn.launch import Handle, Launcher
from trn.records import cancel_path, utc_now

__all__ = ["plan_in_foreground", "run_in_foreground"]

_LOOK_EVERY_S = 0.2
_OUTLIVED_S = 600.0
"""How long a job whose child is gone may hold its run: a step, the grace, and a checkpoint."""


def run_in_foreground(watch: Watch, launcher: Launcher, argv: Sequence[str], *, lock: Lock | None = None) -> Ending:
    """Run `argv` as the job of `watch` until it ends; the job's row and the run's folder are then settled.

    `lock` is the job's launch lock, where this door has it already. Raises StorageError where the job cannot be
    recorded before it starts, or its log cannot be opened.
    """
    with attending(lock or watch.attend()):
        if watch.row.state == "submitted":
            watch.submit()
        elif watch.row.state == "starting":  # it waited in the queue, and was taken out of it
            watch.note("state", state="starting")
        watch.note_submission()
        with forwarding() as signals:
            child = _mind(watch, launcher, argv, signals, "starting")
            is_free = _wait_for_run(watch)
            watch.look_at_the_rest()
            ending = _end(watch, child.poll() or 0, child.failure())
            watch.relaying.end()
            return ending if is_free else replace(ending, is_lost=False)


def plan_in_foreground(
    watch: Watch, launcher: Launcher, argv: Sequence[str], enqueue: Callable[[], None]
) -> Ending | None:
    """Let `argv` plan the job of `watch`, which then waits in the queue: None, or how it ended where it was refused.

    `enqueue` does what must be done before anybody may start the job. Raises StorageError as `run_in_foreground`.
    """
    with attending(watch.attend()), forwarding() as signals:
        watch.submit()
        child = _mind(watch, launcher, argv, signals, None)
        watch.look_at_the_rest()
        if child.poll() != 0 or signals.received:
            asked = "cancelled" if signal.SIGINT in signals.received else "preempted"
            return _end(watch, child.poll() or exit_code(asked), child.failure())
        enqueue()
        watch.enqueue()
        return None


def _mind(watch: Watch, launcher: Launcher, argv: Sequence[str], signals: Signals, state: str | None) -> Handle:
    """Start the child, its row then moves to `state`, and watch it to its end."""
    watch.signals = signals.received
    child = launcher.start(argv, log=watch.log.path)
    signals.attach(child.signal)
    watch.has_child(child.pid, state)
    while child.poll() is None:
        watch.look()
        child.wait(_LOOK_EVERY_S)
    return child


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
    runs_dir = Path(row.run_dir).parent
    if ending.is_lost and cancel_path(runs_dir, row.job_id).exists():
        ending = replace(ending, is_lost=False)  # somebody wanted it to end: it is not begun anew
    with contextlib.suppress(StorageError):
        forget_cancel(runs_dir, row.job_id)
    return ending
