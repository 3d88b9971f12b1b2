"""Files of a run, read by a process that may read more than the run's trainer: no link is followed on the way down.

A trainer may put what it likes into its run's folder while the worker reads there. A link in the place of a file, or of
a folder on the way to it, could lead to /proc/self/environ, which is the worker's own where the worker opens it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

__all__ = ["open_plain"]

_NO_LINK = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def open_plain(folder: Path, name: str) -> BinaryIO:
    """The plain file `name`, a path below `folder`, to be read. Raises OSError, also where `folder` is a link."""
    *parents, last = name.split("/")
    fd = os.open(folder, _NO_LINK | os.O_DIRECTORY)
    try:
        for parent in parents:
            below = os.open(parent, _NO_LINK | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        stream = os.fdopen(os.open(last, _NO_LINK, dir_fd=fd), "rb")
    finally:
        os.close(fd)
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "it is no plain file", str(folder / name))
    return stream
