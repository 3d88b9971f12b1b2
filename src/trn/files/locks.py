"""Locks that die with their holder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import weakref
from pathlib import Path
from types import TracebackType

from trn.errors import StorageError
from trn.files.system import open_file, storage_errors

__all__ = ["Lock", "is_locked"]


class Lock:
    """An exclusive lock on a file, held from `acquire` until `release` or the death of this process.

    It is an flock(2): it survives a rename of the file or of its folder, is released by the system however the
    holder dies, and is closed in forked children, so that no child can keep it. The file is never removed: whoever
    unlinks a lock file lets two holders in. Not for network file systems without flock support.
    """

    _POLL_S = 0.005

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self, note: str = "", wait_s: float = 0.1) -> bool:
        """Take the lock within `wait_s` seconds, or return False; `note` is left in the file for whoever asks.

        The short default wait only covers somebody else's `is_locked`.
        """
        deadline = time.monotonic() + wait_s
        with storage_errors("lock", self.path):
            fd = open_file(self.path, os.O_RDWR | os.O_CREAT)
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(fd)
                    return False
                time.sleep(self._POLL_S)
        if os.fstat(fd).st_nlink == 0:
            # somebody removed the file between our open and our flock: nobody else would meet us there
            os.close(fd)
            return self.acquire(note, wait_s=max(0.0, deadline - time.monotonic()))
        self._fd = fd
        _held.add(self)
        with contextlib.suppress(OSError):  # the note is a courtesy; on a full disk the lock holds all the same
            os.ftruncate(fd, 0)
            os.pwrite(fd, note.encode(), 0)
        return True

    def release(self) -> None:
        self._close()

    def _close(self) -> None:
        _held.discard(self)
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __enter__(self) -> Lock:
        if not self.acquire(wait_s=30.0):
            raise StorageError("another process has held this lock for 30 s.", where=str(self.path))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _close_in_child() -> None:
    for lock in list(_held):
        lock._close()


os.register_at_fork(after_in_child=_close_in_child)


def is_locked(path: Path) -> str | None:
    """The note of whoever holds the lock on `path` ("" if it left none), or None when nobody does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not be waited for
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(fd, 4096, 0).decode(errors="replace")
    finally:
        os.close(fd)
    return None
