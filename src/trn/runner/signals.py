"""What signals mean to a run: finish the step, save, end as preempted or cancelled; a second SIGINT ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType

from trn.errors import Stopped
from trn.loop.stop import AT_ONCE, StopRequest

__all__ = ["install"]

_PREEMPTING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def install(stop: StopRequest, *, ignored_too: bool = True) -> Callable[[], None]:
    """Route SIGTERM, SIGHUP, SIGUSR1 and SIGINT to `stop`; returns what puts the handlers before back.

    Only in the main thread. Without `ignored_too`, a signal that this process ignores stays ignored: so nohup wants it.
    """

    def preempt(number: int, frame: FrameType | None) -> None:
        stop.ask("preempted", f"{signal.Signals(number).name} was received")
        stop.give_way()

    def cancel(number: int, frame: FrameType | None) -> None:
        if stop.outcome != "cancelled":
            stop.ask("cancelled", "SIGINT was received")
            stop.give_way()
            return
        stop.at_once = True
        # only a trainer's own code is broken off: whatever writes comes to its end, and looks at `at_once` then
        if stop.breakable:
            stop.breakable = False
            raise Stopped("cancelled", AT_ONCE)

    before = {number: signal.getsignal(number) for number in _ALL}
    for number, handler in before.items():
        if ignored_too or handler is not signal.SIG_IGN:
            signal.signal(number, cancel if number == signal.SIGINT else preempt)
    global _watches_forks
    if not _watches_forks:
        # a child that a trainer forks is no runner: it must die of a signal that ends it. They are held back during the
        # fork, since Python drops one that comes to the child before its handlers are reset.
        os.register_at_fork(before=_hold, after_in_parent=_let_through, after_in_child=_forget)
        _watches_forks = True
    _routed.append(stop)

    def put_back() -> None:
        _routed.remove(stop)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    return put_back


_ALL = (*_PREEMPTING, signal.SIGINT)
_watches_forks = False
_routed: list[StopRequest] = []


def _hold() -> None:
    if _routed:
        signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)


def _let_through() -> None:
    if _routed:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ALL)


def _forget() -> None:
    with contextlib.suppress(ValueError):  # forked by another thread than the main one
        for number in _ALL if _routed else ():
            signal.signal(number, signal.SIG_DFL)
    _let_through()
    _routed.clear()
