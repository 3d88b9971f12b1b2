"""Who still writes in a folder that a hook says it has filled: what this process has open there.

What is buffered in such a file would reach it after it was hashed. Of other processes nothing is known, and of none
where the system does not list what is open.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["open_for_writing"]

_FDS = Path("/proc/self/fd")
_INFO = Path("/proc/self/fdinfo")


def open_for_writing(folder: Path) -> str | None:
    """The path in `folder` of a file that is open for writing, None where there is none.

    Nor may garbage hold it: what is buffered in a file of a cycle is lost where the collector comes to the descriptor
    first.
    """
    return next(_open_in(os.path.realpath(folder) + os.sep), None)


def _open_in(prefix: str) -> Iterator[str]:
    try:
        names = os.listdir(_FDS)
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError, ValueError, IndexError):  # closed meanwhile, as the one that lists them is
            path = os.readlink(_FDS / name)
            if path.startswith(prefix):
                flags = (_INFO / name).read_text().partition("flags:")[2].split()[0]
                if int(flags, 8) & os.O_ACCMODE != os.O_RDONLY:
                    yield path.removeprefix(prefix)
