"""What signals mean to a run: finish the step, save, end as preempted or cancelled; a second SIGINT ends at once."""

from __future__ import annotations

import signal
from types import FrameType

from trn.errors import Stopped
from trn.loop.stop import StopRequest

__all__ = ["install"]

_PREEMPTING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def install(stop: StopRequest) -> None:
    """Route SIGTERM, SIGHUP, SIGUSR1 and SIGINT to `stop`. Only in the main thread."""

    def preempt(number: int, frame: FrameType | None) -> None:
        stop.ask("preempted", f"{signal.Signals(number).name} was received")

    def cancel(number: int, frame: FrameType | None) -> None:
        if stop.outcome == "cancelled":
            raise Stopped("cancelled", "a second SIGINT was received: ended at once, without a checkpoint")
        stop.ask("cancelled", "SIGINT was received")

    for number in _PREEMPTING:
        signal.signal(number, preempt)
    signal.signal(signal.SIGINT, cancel)
