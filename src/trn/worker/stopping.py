"""Signals that come while the worker itself is at work: before the trainer's process is there, and after it has ended.

In between, the door forwards them (trn.doors.forwarding). The first that asks decides how the worker ends.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from trn.errors import Stopped

__all__ = ["Stopping", "hold_signals", "stopping_on_signals"]

_LOOK_EVERY_S = 0.1
_WORDS = {
    signal.SIGTERM: "preempted",
    signal.SIGHUP: "preempted",
    signal.SIGUSR1: "preempted",
    signal.SIGINT: "cancelled",
}


class Stopping:
    """A wish that the worker ends, remembered; may be asked from any thread, and by a signal in the middle of anything.

    A handler of signals must take no lock: the thread that it interrupts may hold it.
    """

    def __init__(self) -> None:
        self.outcome: str | None = None
        self.reason = ""

    def ask(self, outcome: str, reason: str) -> None:
        if self.outcome is None:
            self.reason, self.outcome = reason, outcome

    def has_signals(self) -> bool:
        """Whether signals come here, and to no door that has taken them over."""
        return any(signal.getsignal(number) == self.handle for number in _WORDS)

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.ask(_WORDS[signal.Signals(number)], f"{signal.Signals(number).name} was received")

    @contextlib.contextmanager
    def then(self, call: Callable[[], None]) -> Iterator[None]:
        """Inside, `call` is made once somebody has asked, by a thread."""
        is_over = threading.Event()

        def look() -> None:
            while not self.is_asked():
                if is_over.wait(_LOOK_EVERY_S):
                    return
            call()

        thread = threading.Thread(target=look, name="trn-stopping", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def is_asked(self) -> bool:
        return self.outcome is not None

    def require_not(self) -> None:
        """Raise Stopped where the worker is to end."""
        if self.outcome is not None:
            raise Stopped(self.outcome, self.reason)


def hold_signals() -> None:
    """Until `stopping_on_signals`: one that comes while the worker is still being loaded is not its death."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WORDS)


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[Stopping]:
    """Inside, a signal that asks a run to stop is a wish, one that was held too; one that was ignored stays ignored."""
    stopping = Stopping()
    before = {number: signal.getsignal(number) for number in _WORDS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stopping.handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WORDS)
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
