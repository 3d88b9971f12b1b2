"""What signals mean to a run: finish the step, save, end as preempted or cancelled; a second SIGINT ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType

from trn.loop.stop import StopRequest

__all__ = ["install", "wake"]

_PREEMPTING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def install(stop: StopRequest, *, ignored_too: bool = True) -> Callable[[], None]:
    """Route SIGTERM, SIGHUP, SIGUSR1 and SIGINT to `stop`; returns what puts the handlers before back.

    Only in the main thread. Without `ignored_too`, a signal that this process ignores stays ignored: so nohup wants it.
    """

    def preempt(number: int, frame: FrameType | None) -> None:
        stop.ask("preempted", f"{signal.Signals(number).name} was received")
        stop.give_way()
        stop.break_off()

    interrupted = False

    def cancel(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if not interrupted:  # of this process: what `trn cancel` or another rank asked for costs no checkpoint
            interrupted = True
            stop.ask("cancelled", "SIGINT was received")
            stop.give_way()
            return
        stop.at_once = True
        stop.break_off()

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


def wake(stop: StopRequest) -> None:
    """Let the main thread look at `stop` now, in whatever it is, as if a signal had come. From any thread."""
    if stop in _routed:
        os.kill(os.getpid(), signal.SIGUSR1)


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
