"""What there is to send: events from a place on, and metrics up to where they still stand.

Both readers hold a position and nothing else, and open their file anew for each read, so that a target that is away
for a day costs no memory. events.jsonl is never cut, so a byte offset is a place for ever. A metrics file is cut back
by a resume: its reader knows the last line that it gave, and gives nothing more where that line is gone.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trn.records import JsonError, from_json

__all__ = ["Anchor", "CurveReader", "EventReader", "count_lines", "find_event", "first_mark"]

Json = dict[str, Any]

_CHUNK_BYTES = 256 << 10


class EventReader:
    """Gives the events of a run in order, at most about a quarter of a megabyte at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seq = 0
        """Of the last event that was given."""
        self.offset = 0
        """Where the line of that event ends."""

    def seek(self, seq: int, hint: int = 0) -> None:
        """Go on after the event `seq`, whose line is thought to end at `hint`."""
        self.seq, self.offset = 0, 0
        if seq and hint and _seq_before(self.path, hint) == seq:
            self.seq, self.offset = seq, hint
            return
        while self.seq < seq:
            before = self.seq, self.offset
            lines = _lines_from(self.path, self.offset)
            for line in lines:
                found = _seq_of(line)
                if found is not None and found > seq:
                    return
                self.offset += len(line)
                self.seq = found or self.seq
            if (self.seq, self.offset) == before:
                return

    def read(self, limit: int) -> list[Json]:
        """The next events, at most `limit`; [] when there is none. A line that is no event is left out.

        Raises OSError, but not for a missing file.
        """
        events: list[Json] = []
        for line in _lines_from(self.path, self.offset):
            value = _parse(line)
            seq = _seq_in(value)
            self.offset += len(line)
            if value is not None and seq is not None and seq > self.seq:
                self.seq = seq
                events.append(value)
                if len(events) == limit:
                    break
        return events

    def stands(self) -> bool:
        """Whether what was given is still there: a journal only grows, unless its run is moved or removed."""
        try:
            return self.offset == 0 or os.stat(self.path).st_size >= self.offset
        except (FileNotFoundError, NotADirectoryError):
            return False

    def behind(self) -> int:
        """How many lines were not given yet."""
        return count_lines(self.path, self.offset)


@dataclass(frozen=True)
class Anchor:
    """A line of a metrics file: its step, where it ends, how long it is, and its checksum."""

    step: int = 0
    end: int = 0
    size: int = 0
    crc: int = 0

    @classmethod
    def from_json(cls, value: object) -> Anchor:
        """The beginning of the file for what is no anchor."""
        if isinstance(value, dict) and all(type(value.get(name)) is int and value[name] >= 0 for name in _FIELDS):
            return cls(**{name: value[name] for name in _FIELDS})
        return cls()


_FIELDS = ("step", "end", "size", "crc")


class CurveReader:
    """Gives the lines of a metrics file in order, as long as the last line that it gave still stands."""

    def __init__(self, path: Path, anchor: Anchor) -> None:
        self.path = path
        self.anchor = anchor

    def stands(self) -> bool:
        """Whether what was given is still in the file. Raises OSError, but not for a missing file."""
        if self.anchor.end == 0:
            return True
        data = _pread(self.path, self.anchor.size, self.anchor.end - self.anchor.size)
        return len(data) == self.anchor.size and zlib.crc32(data) == self.anchor.crc

    def rewind(self, step: int) -> None:
        """Go on with the first line above `step`."""
        self.anchor = Anchor()
        for value, anchor in self._ahead():
            if value is not None and anchor.step > step:
                return
            self.anchor = anchor

    def peek(self) -> int | None:
        """The step of the next line; None where there is none, or what was given does not stand."""
        return (
            next((anchor.step for value, anchor in self._ahead() if value is not None), None) if self.stands() else None
        )

    def read(self, limit: int) -> tuple[list[Json], Anchor]:
        """The next lines, at most `limit`, and the anchor to set once they are written; [] when there is none.

        A line that is no JSON object with a step is left out.
        """
        values: list[Json] = []
        last = self.anchor
        for value, anchor in self._ahead():
            last = anchor
            if value is not None:
                values.append(value)
                if len(values) == limit:
                    break
        return (values, last) if self.stands() else ([], self.anchor)

    def behind(self) -> int:
        """How many lines were not given yet; 0 where what was given does not stand."""
        return count_lines(self.path, self.anchor.end) if self.stands() else 0

    def _ahead(self) -> Iterator[tuple[Json | None, Anchor]]:
        anchor = self.anchor
        while lines := _lines_from(self.path, anchor.end):
            for line in lines:
                value = _parse(line)
                step = value.get("step") if value is not None else None
                is_step = isinstance(step, int) and not isinstance(step, bool)
                anchor = Anchor(
                    step if isinstance(step, int) and is_step else anchor.step,
                    anchor.end + len(line),
                    len(line),
                    zlib.crc32(line),
                )
                yield (value if is_step else None), anchor


def find_event(path: Path, seq: int) -> Json | None:
    """The event `seq` of a journal; None where there is none."""
    mark = f'"seq":{seq},'.encode()
    offset = 0
    while lines := _lines_from(path, offset):
        for line in lines:
            offset += len(line)
            if mark in line and _seq_of(line) == seq:
                return _parse(line)
    return None


def first_mark(path: Path) -> str:
    """A short name of a journal, by its first line; "" where there is none."""
    lines = _lines_from(path, 0)
    return hashlib.sha256(lines[0]).hexdigest()[:16] if lines else ""


def count_lines(path: Path, offset: int) -> int:
    """How many whole lines follow `offset`; 0 in a missing file."""
    count = 0
    while data := _pread(path, 1 << 20, offset):
        count += data.count(b"\n")
        offset += len(data)
    return count


def _lines_from(path: Path, offset: int) -> list[bytes]:
    """Whole lines from `offset` on, with their newlines; a line that is longer than a chunk is given whole."""
    size = _CHUNK_BYTES
    while True:
        data = _pread(path, size, offset)
        end = data.rfind(b"\n") + 1
        if end:
            return [part + b"\n" for part in data[: end - 1].split(b"\n")]
        if len(data) < size:
            return []
        size *= 4


def _pread(path: Path, size: int, offset: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    try:
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)


def _parse(line: bytes) -> Json | None:
    try:
        value = from_json(line)
    except JsonError:
        return None
    return value if isinstance(value, dict) else None


def _seq_in(value: Json | None) -> int | None:
    seq = value.get("seq") if value is not None else None
    return seq if isinstance(seq, int) and not isinstance(seq, bool) and seq > 0 else None


def _seq_of(line: bytes) -> int | None:
    return _seq_in(_parse(line))


def _seq_before(path: Path, offset: int) -> int | None:
    """The seq of the line that ends at `offset`."""
    start = max(0, offset - _CHUNK_BYTES)
    data = _pread(path, offset - start, start)
    if len(data) != offset - start or not data.endswith(b"\n"):
        return None
    return _seq_of(data[data.rfind(b"\n", 0, -1) + 1 :])
