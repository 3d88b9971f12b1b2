"""The system calls that make bytes durable, each with its failpoint, and what their failures are called."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from trn.errors import StorageError
from trn.files.faults import trip

__all__ = ["CHUNK_BYTES", "FOLDER_MODE", "fsync", "open_file", "rename", "storage_errors", "write_all"]

FILE_MODE = 0o600
FOLDER_MODE = 0o700
CHUNK_BYTES = 1 << 20


def open_file(path: Path, flags: int) -> int:
    trip("open", str(path))
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, FILE_MODE)


def write_all(fd: int, data: bytes | memoryview, path: Path) -> None:
    """Write all of `data`; one write(2) unless the system, or a failpoint, takes fewer bytes."""
    view = memoryview(data)
    while view:
        act = trip("write", str(path))
        if act is not None:
            written = os.write(fd, view[: max(1, len(view) // 2)])
            if act == "tear":
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)
        else:
            written = os.write(fd, view)
        view = view[written:]


def fsync(fd: int, path: Path) -> None:
    trip("fsync", str(path))
    os.fsync(fd)


def rename(source: Path, target: Path) -> None:
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
            hint="Free some space and resume." if full else None,
        ) from error
