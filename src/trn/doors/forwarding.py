"""Signals of a door passed on to its child: those that ask a run to stop, each exactly once and in order.

A keeper is started with them held back, until it can pass them on itself: what comes while it is still being loaded is
its job's, too.
"""

from __future__ import annotations

import contextlib
import signal
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["Signals", "forwarding", "held_back"]

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Signals:
    """Passes signals on to the child, each exactly once and in order, also those that come before there is one."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._waiting: deque[int] = deque()
        self._send: Callable[[int], object] | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        self._waiting.append(number)
        self._pass_on()

    def attach(self, send: Callable[[int], object]) -> None:
        """There is a child now, to which `send` gives a signal."""
        self._send = send
        self._pass_on()

    def _pass_on(self) -> None:
        # a handler may come between any two steps here: popleft hands each signal out once
        while self._send is not None and self._waiting:
            with contextlib.suppress(IndexError):
                self._send(self._waiting.popleft())


@contextlib.contextmanager
def forwarding() -> Iterator[Signals]:
    """Take the signals that ask a run to stop; one that the user had ignored (nohup) stays ignored."""
    signals = Signals()
    before = {number: signal.getsignal(number) for number in _FORWARDED}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signals.handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """What is started inside gets these signals only when it is `forwarding` them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
