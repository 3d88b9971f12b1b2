"""Whole files: written aside, synced, renamed. `path` is as it was, or as it should be, never in between."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from trn.files.digests import Sha256Aside, new_sha256
from trn.files.faults import trip
from trn.files.system import CHUNK_BYTES, fsync, open_file, pass_page_cache, rename, storage_errors, write_all

__all__ = ["TEMP_MARK", "AtomicFile", "atomic_file", "link_atomic", "sync_folder", "write_atomic"]

TEMP_MARK = ".tmp-"
_counter = itertools.count()


class AtomicFile:
    """A file being written aside: `write` bytes to it, read `size_bytes` and `sha256` of what was written so far."""

    LAG = Sha256Aside.LAG
    """Of a big file: what is given to `write` must stay as it is until so many more calls."""
    closed = False
    """Asked by pyarrow before each write."""

    def __init__(self, path: Path, *, is_big: bool = False) -> None:
        self.path = path
        self.temporary = path.parent / f".{path.name}{TEMP_MARK}{os.getpid()}-{next(_counter)}"
        self.size_bytes = 0
        self._hash = Sha256Aside() if is_big else new_sha256()
        self._fd = open_file(self.temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        if is_big:
            pass_page_cache(self._fd)

    def write(self, data: bytes | memoryview) -> int:
        """Append `data`; returns its length in bytes."""
        view = memoryview(data)
        self._hash.update(view)
        write_all(self._fd, view, self.path)
        self.size_bytes += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        """Present because writers of files call it; every `write` has already reached the system."""

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def _sync(self) -> None:
        fsync(self._fd, self.path)

    def _close(self) -> None:
        self.closed = True
        self._hash.hexdigest()  # after which nobody reads what `write` was given
        os.close(self._fd)


@contextlib.contextmanager
def atomic_file(path: Path, *, is_big: bool = False) -> Iterator[AtomicFile]:
    """Give a file to write to that becomes `path` when the block ends, whole and durable, or never.

    One that `is_big` goes past the page cache as far as its writes are whole pages of memory, and is hashed
    aside: what is given to `write` must stay as it is for the next `AtomicFile.LAG` calls.
    Raises StorageError when the system refuses. On any exception the temporary is gone and `path` is as it was.
    A failed fsync is never retried on the same descriptor: the file is thrown away.
    """
    with storage_errors("write", path):
        file = AtomicFile(path, is_big=is_big)
        try:
            try:
                yield file
                file._sync()
            finally:
                file._close()
            rename(file.temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file.temporary)
            raise
        sync_folder(path.parent)


def write_atomic(path: Path, data: bytes) -> str:
    """Publish `data` as the whole content of `path`; returns its sha256. Raises StorageError."""
    with atomic_file(path) as file:
        file.write(data)
    return file.sha256


def sync_folder(folder: Path) -> None:
    """Make renames, links and removals in `folder` durable. Raises StorageError."""
    with storage_errors("sync", folder):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fsync(fd, folder)
        finally:
            os.close(fd)


def link_atomic(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, replacing what was there in one step; a copy where links fail."""
    temporary = target.parent / f".{target.name}{TEMP_MARK}{os.getpid()}-{next(_counter)}"
    with storage_errors("link", target):
        try:
            trip("link", str(target))
            os.link(source, temporary)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS):
                raise
            _copy(source, target)
            return
        try:
            rename(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        # rename(2) between two names of one file does nothing, and leaves the temporary name behind
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        sync_folder(target.parent)


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as stream, atomic_file(target) as file:
        while chunk := stream.read(CHUNK_BYTES):
            file.write(chunk)
