"""train_metrics.jsonl and val_metrics.jsonl: lines that belong to steps, and are cut back with them on a resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import time
from typing import Any

from trn.files import AppendLog, write_atomic
from trn.records import Position, flat_line

__all__ = ["GUARD_EVERY_S", "MetricsLog"]

GUARD_EVERY_S = 0.25
"""A guard that was asked in this time is not asked again for a line that comes with every step. By the clock on the
wall: the others stand still while a machine is suspended."""


class MetricsLog:
    """Appends one line a step. Not thread-safe, except that `sync` may be called beside `append`.

    `guard` is asked before a line where it was not in the last quarter of a second, which is so after any longer pause
    of the process; it raises where the run is not ours any more.
    """

    def __init__(self, path: Path, guard: Callable[[], None] | None = None) -> None:
        self.path = path
        self._guard = guard
        self._guarded_s = 0.0
        self._log = AppendLog(path)
        self._lines = path.read_bytes().count(b"\n")

    @property
    def position(self) -> Position:
        """Where the file ends now; what a checkpoint records."""
        return Position(self._log.offset, self._log.sha256, self._lines)

    def append(self, line: dict[str, Any]) -> None:
        """One write of one whole line of numbers by name. Raises StorageError; ValueError for NaN or Infinity."""
        if self._guard is not None and not 0.0 <= (now_s := time()) - self._guarded_s < GUARD_EVERY_S:
            self._guarded_s = now_s
            self._guard()
        self._log.append(flat_line(line))
        self._lines += 1

    def cut_to(self, position: Position, side_file: Path) -> int:
        """Drop all lines after `position`, which must hold in the file; returns how many.

        The dropped lines are first copied whole to `side_file`. Raises StorageError; ValueError if it does not hold.
        """
        if not position.holds_in(self.path):
            raise ValueError(f"{self.path} does not begin with the {position.offset} bytes that were recorded")
        tail = self.path.read_bytes()[position.offset :]
        if tail:
            write_atomic(side_file, tail)
            self._log.cut(position.offset)
        self._lines = position.lines
        return tail.count(b"\n")

    def sync(self) -> None:
        self._log.sync()

    def close(self) -> None:
        self._log.close()
