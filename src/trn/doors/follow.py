"""Reading lines from files that are being written, each line once, also when a resume cuts the file back.

A reader that keeps only its position sees a cut file as "nothing new", and then reads on in the middle of other
lines. A `Follower` remembers where every line that it gave ended, and its checksum: when the last of them is not
where it was, it walks back to the last line that still stands, and gives what follows from there.
"""

from __future__ import annotations

import os
import zlib
from array import array
from pathlib import Path
from typing import Any

from trn.records import JsonError, from_json

__all__ = ["Follower", "parsed"]

_CHUNK_BYTES = 1 << 20


class Follower:
    """Gives the whole lines of a growing file; the file may not exist yet, be cut, or be replaced.

    With `from_end`, what stands in the file now counts as given. A line that was cut away and written again is given
    again, unless it is the same in the same place. Costs 12 bytes of memory a line. The path is opened anew for each
    read, so nothing is held between two reads.
    """

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self.path = path
        self._ends = array("Q")
        self._sums = array("I")
        while from_end and self.read():
            pass

    def read(self) -> list[bytes]:
        """Lines, with their newline, that were not given yet; at most about a megabyte, [] when there is no more.

        A last line without its newline waits until it is whole; one of more than a megabyte comes in pieces. Raises
        OSError, but not for a missing file.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            self._walk_back(fd)
            return self._take(fd)
        finally:
            os.close(fd)

    def rest(self) -> bytes:
        """The bytes after the last whole line: what a writer that is gone did not end."""
        try:
            with open(self.path, "rb") as stream:
                stream.seek(self._position)
                return stream.read(_CHUNK_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return b""

    @property
    def _position(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _walk_back(self, fd: int) -> None:
        """Forget the lines that do not stand in the file any more."""
        while self._ends:
            start = self._ends[-2] if len(self._ends) > 1 else 0
            line = os.pread(fd, self._ends[-1] - start, start)
            if len(line) == self._ends[-1] - start and zlib.crc32(line) == self._sums[-1]:
                return
            self._ends.pop()
            self._sums.pop()

    def _take(self, fd: int) -> list[bytes]:
        position = self._position
        data = os.pread(fd, _CHUNK_BYTES, position)
        newline = data.rfind(b"\n")
        if newline < 0 and len(data) < _CHUNK_BYTES:
            return []
        # not splitlines(), which also breaks at carriage returns
        lines = [part + b"\n" for part in data[:newline].split(b"\n")] if newline >= 0 else [data]
        for line in lines:
            position += len(line)
            self._ends.append(position)
            self._sums.append(zlib.crc32(line))
        return lines


def parsed(lines: list[bytes]) -> list[dict[str, Any]]:
    """The JSON objects among `lines`; what is none is left out, `trn verify` names it."""
    values = []
    for line in lines:
        try:
            value = from_json(line)
        except JsonError:
            continue
        if isinstance(value, dict):
            values.append(value)
    return values
