"""The system calls that make bytes durable, each with its failpoint, and what their failures are called."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from trn.errors import StorageError
from trn.files.faults import trip
from trn.files.guards import ask_guards

__all__ = [
    "CHUNK_BYTES",
    "FOLDER_MODE",
    "fsync",
    "open_file",
    "pass_page_cache",
    "rename",
    "storage_errors",
    "write_all",
]

FILE_MODE = 0o600
FOLDER_MODE = 0o700
CHUNK_BYTES = 1 << 20
_O_DIRECT = getattr(os, "O_DIRECT", 0)


def open_file(path: Path, flags: int) -> int:
    trip("open", str(path))
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, FILE_MODE)


def pass_page_cache(fd: int) -> None:
    """Let what is written to `fd` go straight to the disk, where its file system can.

    It asks for data, lengths and offsets in whole pages; `write_all` goes back to the page cache at the first that
    are not.
    """
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | _O_DIRECT)


def write_all(fd: int, data: bytes | memoryview, path: Path) -> None:
    """Write all of `data`; one write(2) unless the system, or a failpoint, takes fewer bytes."""
    view = memoryview(data)
    while view:
        act = trip("write", str(path))
        part = view if act is None else view[: max(1, len(view) // 2)]
        try:
            written = os.write(fd, part)
        except OSError as error:
            if error.errno != errno.EINVAL or not _use_page_cache(fd):
                raise
            written = os.write(fd, part)
        if act == "tear":
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        view = view[written:]


def _use_page_cache(fd: int) -> bool:
    """Take `pass_page_cache` back; False if it was not in force."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~_O_DIRECT)
    return bool(flags & _O_DIRECT)


def fsync(fd: int, path: Path) -> None:
    trip("fsync", str(path))
    os.fsync(fd)


def rename(source: Path, target: Path) -> None:
    ask_guards(target)
    trip("rename", str(target))
    os.rename(source, target)


@contextlib.contextmanager
def storage_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError into a StorageError that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageError(
            f"cannot {doing}: {error.strerror or error}.",
            where=str(path),
            hint="Free some space, and do it again." if full else None,
        ) from error
