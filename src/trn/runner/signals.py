"""What signals mean to a run: finish the step, save, end as preempted or cancelled; a second SIGINT ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType

from trn.errors import Stopped
from trn.loop.stop import AT_ONCE, StopRequest

__all__ = ["install"]

_PREEMPTING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def install(stop: StopRequest) -> None:
    """Route SIGTERM, SIGHUP, SIGUSR1 and SIGINT to `stop`. Only in the main thread."""

    def preempt(number: int, frame: FrameType | None) -> None:
        stop.ask("preempted", f"{signal.Signals(number).name} was received")

    def cancel(number: int, frame: FrameType | None) -> None:
        if stop.outcome != "cancelled":
            stop.ask("cancelled", "SIGINT was received")
            return
        stop.at_once = True
        # only a trainer's own code is broken off: whatever writes comes to its end, and looks at `at_once` then
        if stop.breakable:
            stop.breakable = False
            raise Stopped("cancelled", AT_ONCE)

    for number in _PREEMPTING:
        signal.signal(number, preempt)
    signal.signal(signal.SIGINT, cancel)
    # a child that a trainer forks is no runner: it must die of a signal that ends it. They are held back during the
    # fork, since Python drops one that comes to the child before its handlers are reset.
    os.register_at_fork(before=_hold, after_in_parent=_let_through, after_in_child=_forget)


_ALL = (*_PREEMPTING, signal.SIGINT)


def _hold() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)


def _let_through() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ALL)


def _forget() -> None:
    with contextlib.suppress(ValueError):  # forked by another thread than the main one
        for number in _ALL:
            signal.signal(number, signal.SIG_DFL)
    _let_through()
