"""Files of lines that only grow. A torn last line, bytes after the last newline, is trusted by nobody and cut."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from trn.errors import StorageError
from trn.files.digests import new_sha256, sha256_prefix
from trn.files.faults import is_armed, trip
from trn.files.system import CHUNK_BYTES, fsync, open_file, storage_errors, write_all

__all__ = ["AppendLog", "append_line", "last_line", "last_lines"]

_TAIL_BYTES = 256 << 10
_MOST_UNHASHED = 64


class AppendLog:
    """A file of lines that only grows: one write(2) a line, synced when told. Not thread-safe; one writer at a time.

    Opening cuts a torn last line (bytes after the last newline), since no reader may trust it. `offset` and `sha256`
    describe the content after the last append, so that a checkpoint can say exactly how far the log belongs to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._generation = _generation
        with storage_errors("open", path):
            self._fd = open_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            self._hash = new_sha256()
            self._unhashed: list[bytes] = []
            """The last lines, of which the digest does not know yet: between two steps it costs 3 us a line, else 1."""
            self.offset = self._take_whole_lines()
            self._dirty = False

    def _take_whole_lines(self) -> int:
        whole = 0
        tail = b""
        with open(self._fd, "rb", closefd=False) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                lines, newline, rest = chunk.rpartition(b"\n")
                if newline:
                    self._hash.update(tail + lines + newline)
                    whole += len(tail) + len(lines) + 1
                    tail = rest
                else:
                    tail += chunk
        if tail:
            trip("truncate", str(self.path))
            os.ftruncate(self._fd, whole)
        return whole

    @property
    def sha256(self) -> str:
        """Hex sha256 of the first `offset` bytes."""
        self._hash_lines()
        return self._hash.copy().hexdigest()

    def append(self, line: bytes) -> None:
        """Add `line`, which ends with its only newline. Raises StorageError; RuntimeError in a forked child."""
        if _generation != self._generation:
            raise RuntimeError(f"a forked child must not write to {self.path.name}")
        try:
            # one call where nothing is in the way: a line is written at every step
            if is_armed() or os.write(self._fd, line) != len(line):
                self._write_rest(line)
        except OSError as error:
            self._undo_partial_append()
            with storage_errors("append", self.path):
                raise error
        self._unhashed.append(line)
        if len(self._unhashed) == _MOST_UNHASHED:
            self._hash_lines()
        self.offset += len(line)
        self._dirty = True

    def _hash_lines(self) -> None:
        self._hash.update(b"".join(self._unhashed))
        self._unhashed.clear()

    def _write_rest(self, line: bytes) -> None:
        """What of the line is not in the file yet: all of it, or, after a short write, what was left."""
        written = os.fstat(self._fd).st_size - self.offset
        write_all(self._fd, line[written:], self.path)

    def _undo_partial_append(self) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self.offset)

    def sync(self) -> None:
        """Make all appended lines durable; may be called from another thread than `append`. Raises StorageError."""
        if self._dirty:
            self._dirty = False  # before the fsync: a line appended meanwhile marks it again
            try:
                with storage_errors("sync", self.path):
                    fsync(self._fd, self.path)
            except StorageError:
                self._dirty = True
                raise

    def cut(self, offset: int) -> None:
        """Drop all bytes from `offset` on, durably. Raises StorageError; ValueError beyond the end."""
        digest = sha256_prefix(self.path, offset)
        if digest is None:
            raise ValueError(f"{self.path} is shorter than {offset} bytes")
        with storage_errors("cut", self.path):
            trip("truncate", str(self.path))
            os.ftruncate(self._fd, offset)
            fsync(self._fd, self.path)
        self._hash = new_sha256()
        self._unhashed.clear()
        with open(self.path, "rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                self._hash.update(chunk)
        self.offset = offset

    def close(self) -> None:
        """Nothing can be appended any more. Can be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


_generation = 0
"""How many forks lie between this process and the one that imported this: asking for a pid is a call of the system."""


def _begin_in_child() -> None:
    global _generation
    _generation += 1


os.register_at_fork(after_in_child=_begin_in_child)


def append_line(path: Path, line: bytes) -> None:
    """Add `line`, which ends with its only newline, to a log that several processes share; the caller holds its lock.

    A torn last line is cut first. Costs the same however long the file is, unlike opening an `AppendLog`; not
    synced. Raises StorageError, and the file is then as it was.
    """
    with storage_errors("append", path):
        fd = open_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            end = _end_of_lines(fd)
            if end < os.fstat(fd).st_size:
                trip("truncate", str(path))
                os.ftruncate(fd, end)
            try:
                write_all(fd, line, path)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, end)
                raise
        finally:
            os.close(fd)


def last_line(path: Path) -> bytes | None:
    """The last whole line of a file, with its newline, read from the end; None where there is none. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        end = _end_of_lines(fd)
        start = _end_of_lines(fd, end - 1)
        return os.pread(fd, end - start, start) if end else None
    finally:
        os.close(fd)


def last_lines(path: Path, count: int) -> list[bytes]:
    """At most `count` whole lines from the end of a file, the newest last; fewer where they are longer than 256 kB.

    What the file is long does not matter. Raises OSError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return []
    try:
        end = _end_of_lines(fd)
        start = max(0, end - _TAIL_BYTES)
        data = os.pread(fd, end - start, start) if end else b""
    finally:
        os.close(fd)
    lines = [line + b"\n" for line in data.split(b"\n")[:-1]]
    return lines[1 if start else 0 :][-count:]  # of a tail, the first line may be half a line


def _end_of_lines(fd: int, before: int | None = None) -> int:
    """The offset just after the last newline in the first `before` bytes, or in the whole file; 0 without one."""
    end = os.fstat(fd).st_size if before is None else before
    while end > 0:
        start = max(0, end - 4096)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
