"""Which processes are there: by pid, and by a variable that they have inherited."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["alive", "marked"]


def alive(pid: int) -> bool:
    """Whether it has not ended; a zombie has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in (b"Z", b"X")


def marked(mark: str) -> list[int]:
    """Those that have TRN_TEST_MARK=`mark` in their environment, without this process."""
    wanted = f"TRN_TEST_MARK={mark}".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        try:
            variables = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in variables and alive(int(name)):
            found.append(int(name))
    return found
