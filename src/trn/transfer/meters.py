"""What all fetches of one call share: how far they are, how much disk they may still take, how long they may wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trn.errors import StorageError
from trn.files import free_bytes
from trn.transfer.backoff import Backoff

__all__ = ["Halted", "Meter", "Patience", "Room"]

_SPARE_BYTES = 64 << 20
"""Left free on the disk, for the run that is to come."""
_LOOK_EVERY_BYTES = 32 << 20


class Halted(Exception):
    """Somebody else's error, or a stop: this fetch ends where it is."""


class Meter:
    """Bytes done and bytes in all, of each input by its place; written by threads, read by one."""

    def __init__(self, totals: Sequence[int | None]) -> None:
        """`totals` are the sizes as far as they are known before."""
        self._lock = threading.Lock()
        self._done = [0] * len(totals)
        self._totals = list(totals)

    def put(self, index: int, done: int, total: int | None) -> None:
        with self._lock:
            self._done[index], self._totals[index] = done, total

    def read(self) -> tuple[int, int | None]:
        """All inputs together; the total is None as long as that of any is not known."""
        with self._lock:
            known = [total for total in self._totals if total is not None]
            return sum(self._done), sum(known) if len(known) == len(self._totals) else None


class Room:
    """The free bytes of a disk, of which each fetch takes its share before it writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._promised = 0

    @contextmanager
    def taken(self, size_bytes: int) -> Iterator[Callable[[int], None]]:
        """Room for `size_bytes` until the block ends; what is given must be told how much was written each time.

        Raises StorageError where there is not enough, and for what comes beyond that size as soon as there is not.
        """
        left = size_bytes
        self._take(left)
        unseen = 0

        def wrote(count: int) -> None:
            nonlocal left, unseen
            now = min(count, left)
            left -= now
            unseen += count - now
            with self._lock:
                self._promised -= now
            if unseen >= _LOOK_EVERY_BYTES:
                unseen = 0
                self._take(0)

        try:
            yield wrote
        finally:
            with self._lock:
                self._promised -= left

    def _take(self, size_bytes: int) -> None:
        with self._lock:
            free = free_bytes(self._folder) - self._promised - _SPARE_BYTES
            if free < size_bytes:
                raise StorageError(
                    f"the inputs take {size_bytes} bytes more, and {max(free, 0)} are free.",
                    where=str(self._folder),
                    hint="Free some space, or name another cache.",
                )
            self._promised += size_bytes


class Patience:
    """How long one input may go without progress, and when its source is asked again."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._backoff = Backoff()
        self.restart(-1)

    def restart(self, size_bytes: int) -> None:
        self._most = size_bytes
        self._since = time.monotonic()

    def reached(self, size_bytes: int) -> None:
        """So much is there; only more than ever is progress, so that a source which always breaks off has an end."""
        if size_bytes > self._most:
            self.restart(size_bytes)
            self._backoff.reset()

    @property
    def is_over(self) -> bool:
        return time.monotonic() - self._since >= self.limit_s

    def wait(self, wish_s: float | None, halt: threading.Event) -> None:
        """Until the source may be asked again, or told to halt; at the limit it is asked once more."""
        left_s = self._since + self.limit_s - time.monotonic()
        halt.wait(max(0.0, min(self._backoff.failed(wish_s), left_s)))
