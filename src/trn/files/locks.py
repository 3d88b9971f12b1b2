"""Locks that die with their holder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from trn.errors import StorageError
from trn.files.system import open_file, storage_errors

__all__ = ["Lock", "Note", "is_locked"]

Note = str | Callable[[str], str]
"""What a holder leaves in the file, or what makes it from the note before."""


class Lock:
    """An exclusive lock on a file, held from `acquire` until `release` or the death of this process.

    It is an flock(2): it survives a rename of the file or of its folder, is released by the system however the
    holder dies, and is closed in forked children, so that no child can keep it. Nobody but the holder may remove the
    file, as the last it does: whoever unlinks another's lets two holders in. Whoever waited for a file that is gone
    takes a new one. Not for network file systems without flock support.

    A holder that is stopped, or swapped out for an hour, holds it all the same: on a local disk nobody can take a lock
    away from a living process, and two holders at a time need somebody who removes or replaces the file. On a network
    file system the server may also give the lock of a silent client to another one. `is_ours` notices both, when it
    is asked: what is written between the question and the answer's use is not fenced by anything.
    """

    _POLL_S = 0.005

    def __init__(self, path: Path) -> None:
        self.path = path
        """Where the file is; for whoever moves it to say."""
        self._fd: int | None = None
        self._inode = (0, 0)
        self._left = b""

    def acquire(self, note: Note = "", wait_s: float = 0.1) -> bool:
        """Take the lock within `wait_s` seconds, or return False; `note` is left in the file for whoever asks.

        It may be made from the note that was there before. The short default wait only covers somebody else's
        `is_locked`.
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
        status = os.fstat(fd)
        if status.st_nlink == 0:
            # somebody removed the file between our open and our flock: nobody else would meet us there
            os.close(fd)
            return self.acquire(note, wait_s=max(0.0, deadline - time.monotonic()))
        self._fd, self._inode = fd, (status.st_dev, status.st_ino)
        _held.add(self)
        with contextlib.suppress(OSError):  # the note is a courtesy; on a full disk the lock holds all the same
            text = note if isinstance(note, str) else note(os.pread(fd, _NOTE_BYTES, 0).decode(errors="replace"))
            os.ftruncate(fd, 0)
            os.pwrite(fd, text.encode(), 0)
        self._left = os.pread(fd, _NOTE_BYTES, 0)
        return True

    @property
    def note(self) -> str:
        """What `acquire` left in the file."""
        return self._left.decode(errors="replace")

    def is_ours(self) -> bool:
        """Whether nobody else stands in its place: the file at `path` is still the one we hold, with our note.

        A file that is gone is nobody else's. Costs two calls of the system. Raises OSError.
        """
        if self._fd is None:
            return False
        try:
            found = os.stat(self.path)
            if (found.st_dev, found.st_ino) != self._inode:
                return False
            return os.pread(self._fd, _NOTE_BYTES, 0) == self._left
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError as error:
            if error.errno == errno.ESTALE:  # on a network file system: the file was replaced
                return False
            raise

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


_NOTE_BYTES = 4096
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
        return os.pread(fd, _NOTE_BYTES, 0).decode(errors="replace")
    finally:
        os.close(fd)
    return None
