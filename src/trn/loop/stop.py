"""A request to stop: set by a signal handler, a vanished door or a deadline; obeyed between two steps."""

from __future__ import annotations

import os
import time

__all__ = ["StopRequest"]


class StopRequest:
    """Asked once, remembered. `requested` is cheap enough to be polled at every step, wait and validation batch.

    `door_pid` is the process that must stay our parent: when it is gone, that is a stop like SIGTERM. None: detached.
    """

    def __init__(self, *, door_pid: int | None = None, max_runtime_s: float = 0.0) -> None:
        self.outcome: str | None = None
        self.reason = ""
        self._door_pid = door_pid
        self._deadline_s = time.monotonic() + max_runtime_s if max_runtime_s else None

    def limit_runtime(self, max_runtime_s: float) -> None:
        """From now on, at most so many seconds; 0 for no limit."""
        self._deadline_s = time.monotonic() + max_runtime_s if max_runtime_s else None

    def ask(self, outcome: str, reason: str) -> None:
        """Ask for an ending; the first to ask decides which. Safe in a signal handler."""
        if self.outcome is None:
            self.outcome, self.reason = outcome, reason

    def requested(self) -> bool:
        if self.outcome is None:
            if self._door_pid is not None and os.getppid() != self._door_pid:
                self.ask("preempted", "the process that started this run is gone")
            elif self._deadline_s is not None and time.monotonic() >= self._deadline_s:
                self.ask("time_limit", "limits.max_runtime_seconds is over")
        return self.outcome is not None

    def wait(self, seconds: float) -> None:
        """Sleep, but wake within 50 ms of a request."""
        end = time.monotonic() + seconds
        while not self.requested() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))
