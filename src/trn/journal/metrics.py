"""train_metrics.jsonl and val_metrics.jsonl: lines that belong to steps, and are cut back with them on a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trn.files import AppendLog, write_atomic
from trn.records import Position, flat_line

__all__ = ["MetricsLog"]


class MetricsLog:
    """Appends one line a step. Not thread-safe, except that `sync` may be called beside `append`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = AppendLog(path)
        self._lines = path.read_bytes().count(b"\n")

    @property
    def position(self) -> Position:
        """Where the file ends now; what a checkpoint records."""
        return Position(self._log.offset, self._log.sha256, self._lines)

    def append(self, line: dict[str, Any]) -> None:
        """One write of one whole line of numbers by name. Raises StorageError; ValueError for NaN or Infinity."""
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
