"""A request to stop: by a signal, `trn cancel`, a vanished door or a deadline; obeyed between two steps."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from trn.errors import Stopped

__all__ = ["AT_ONCE", "StopRequest"]

AT_ONCE = "a second SIGINT was received: ended at once, without a checkpoint"


class StopRequest:
    """Asked once, remembered. `requested` is cheap enough to be polled at every step, wait and validation batch.

    `door_pid` is the process that must stay our parent: when it is gone, that is a stop like SIGTERM. None: detached.
    """

    def __init__(self, *, door_pid: int | None = None, max_runtime_s: float = 0.0) -> None:
        self.outcome: str | None = None
        self.reason = ""
        self.at_once = False
        """Do not even save."""
        self.at_once_reason = AT_ONCE
        self.breakable = False
        """Whether an exception may be raised right now: inside a trainer's hooks, never while anything is written."""
        self.gives_way = False
        """Whether the first signal may already raise one, see `giving_way`."""
        self._door_pid = door_pid
        self._deadline_s = time.monotonic() + max_runtime_s if max_runtime_s else None

    def limit_runtime(self, max_runtime_s: float) -> None:
        """From now on, at most so many seconds; 0 for no limit."""
        self._deadline_s = time.monotonic() + max_runtime_s if max_runtime_s else None

    def ask(self, outcome: str, reason: str) -> None:
        """Ask for an ending; the first to ask decides which. Safe in a signal handler, and from any thread."""
        if self.outcome is None:
            # no call in between, so that no other thread comes in between either; the outcome, which is looked at, last
            self.reason, self.outcome = reason, outcome

    def requested(self) -> bool:
        """Whether to stop; looks at the door and the clock, and remembers what it saw."""
        if self.outcome is None:
            if self._door_pid is not None and os.getppid() != self._door_pid:
                self.ask("preempted", "the process that started this run is gone")
            elif self._deadline_s is not None and time.monotonic() >= self._deadline_s:
                self.ask("time_limit", "limits.max_runtime_seconds is over")
        return self.outcome is not None

    @contextlib.contextmanager
    def breaking_off(self) -> Iterator[None]:
        """Inside, a request to end at once raises Stopped."""
        if self.at_once:
            raise Stopped("cancelled", self.at_once_reason)
        self.breakable = True
        try:
            yield
        finally:
            self.breakable = False

    @contextlib.contextmanager
    def giving_way(self, what: str) -> Iterator[None]:
        """Inside, the first signal raises Stopped: for work that takes long, and that a resume does again as a whole.

        Raised again at the end where the code inside has swallowed it, or made another error of it.
        """
        self.gives_way = True
        if self.outcome is not None:
            self.gives_way = False
            raise Stopped(self.outcome, f"{self.reason}, before {what}")
        try:
            yield
        finally:
            is_broken_off, self.gives_way = not self.gives_way, False
            if is_broken_off:
                raise Stopped(self.outcome or "preempted", f"{self.reason}, during {what}")

    def break_off(self) -> None:
        """For a signal handler, where it was asked to end at once: raise Stopped where a trainer's own code runs.

        Whatever writes comes to its end, and looks at `at_once` then.
        """
        if self.at_once and self.breakable:
            self.breakable = False
            raise Stopped("cancelled", self.at_once_reason)

    def give_way(self) -> None:
        """For a signal handler, once it has asked: raise Stopped where the work is of that kind."""
        if self.gives_way:
            self.gives_way = False
            raise Stopped(self.outcome or "preempted", self.reason)

    def wait(self, seconds: float) -> None:
        """Sleep, but wake within 50 ms of a request."""
        end = time.monotonic() + seconds
        while not self.requested() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))
