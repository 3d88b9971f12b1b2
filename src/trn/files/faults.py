"""Failpoints: one switch that makes any durable operation of a process fail, for the tests of every room.

`TRN_FAULT="op=fsync,n=7,do=kill"` makes the seventh fsync of this process kill it. `op` is one of open, write, fsync,
rename, link, unlink, truncate, mkdir, or any; `do` is kill, enospc, eio, short (a write that writes half and returns),
tear (half, then kill). `path=TEXT` counts only operations on paths that contain TEXT.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from dataclasses import dataclass

from trn.errors import UsageError

__all__ = ["fault_count", "is_armed", "set_fault", "trip"]


@dataclass
class _Fault:
    op: str
    n: int
    do: str
    path: str = ""
    seen: int = 0

    _OPS = ("open", "write", "fsync", "rename", "link", "unlink", "truncate", "mkdir", "any")
    _DOS = ("kill", "enospc", "eio", "short", "tear")

    @classmethod
    def parse(cls, text: str) -> _Fault:
        fields = {key: value for key, _, value in (part.partition("=") for part in text.split(","))}
        if fields.get("op") not in cls._OPS or fields.get("do") not in cls._DOS or not fields.get("n", "").isdigit():
            raise UsageError(
                f"cannot read {text!r}; expected op={'|'.join(cls._OPS)},n=NUMBER,do={'|'.join(cls._DOS)}.",
                where="TRN_FAULT",
            )
        return cls(op=fields["op"], n=int(fields["n"]), do=fields["do"], path=fields.get("path", ""))

    def due(self, op: str, path: str) -> bool:
        if self.op not in (op, "any") or self.path not in path:
            return False
        self.seen += 1
        return self.seen == self.n


_fault = _Fault.parse(os.environ["TRN_FAULT"]) if os.environ.get("TRN_FAULT") else None
_fault_guard = threading.Lock()


def set_fault(text: str | None) -> None:
    """Arm a failpoint in this process, or disarm with None; counts start anew. For tests that fork."""
    global _fault
    _fault = _Fault.parse(text) if text else None


def fault_count() -> int:
    """How many operations the armed failpoint has counted; 0 when none is armed."""
    return _fault.seen if _fault else 0


def is_armed() -> bool:
    """Whether a failpoint waits in this process."""
    return _fault is not None


def trip(op: str, path: str) -> str | None:
    """Fail here if a failpoint says so; returns "short" or "tear" for the caller of a write to act on."""
    if _fault is None:
        return None
    with _fault_guard:
        due = _fault.due(op, path)
    if not due:
        return None
    if _fault.do == "kill" or (_fault.do == "tear" and op != "write"):
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # the signal is on its way; nothing after this line may happen
    if _fault.do == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    if _fault.do == "eio":
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)
    return _fault.do
