"""torchrun's error file: how a process of a world says why it ended, to the agent that started it. No torch here.

The agent gives each process a path in TORCHELASTIC_ERROR_FILE, and reads there, once the process has ended badly:

    {"message": {"message": WHY, "errorCode": EXIT_STATUS, "extraInfo": {"py_callstack": WHY, "timestamp": "SECONDS"}}}

The timestamp is text, in whole seconds, and the earliest is the failure that torchrun names; py_callstack is what its
table shows. `errorCode` is what torchrun itself puts there for its caller. Anybody can write such a file: `read` takes
nothing from one that it does not understand.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from trn.errors import StorageError
from trn.files import write_atomic
from trn.records import JsonError, json_line, read_json

__all__ = ["VARIABLE", "read", "write"]

VARIABLE = "TORCHELASTIC_ERROR_FILE"
_LONGEST = 4000


def write(status: int, reason: str, *, is_cause: bool = True) -> None:
    """Say that this process ends with the exit status `status` because of `reason`; nothing where nobody asked.

    A rank that only follows another one's ending is no cause, and dates its word a second later: torchrun names the
    earliest. The first word stands: a file that is there is left alone. A disk that refuses costs the ending nothing.
    """
    path = os.environ.get(VARIABLE, "")
    if not path or os.path.exists(path):
        return
    said = reason[:_LONGEST].encode(errors="backslashreplace").decode()
    extra = {"py_callstack": said, "timestamp": str(int(time.time()) + (0 if is_cause else 1))}
    with contextlib.suppress(StorageError, OSError):
        write_atomic(Path(path), json_line({"message": {"message": said, "errorCode": status, "extraInfo": extra}}))


def read(path: Path) -> tuple[int, str] | None:
    """The exit status and the reason that such a file holds; None where there is none, or it says something else."""
    try:
        message = read_json(path).get("message")
    except (JsonError, OSError):
        return None
    if not isinstance(message, dict):
        return None
    status, reason = message.get("errorCode"), message.get("message")
    if not isinstance(status, int) or isinstance(status, bool) or not isinstance(reason, str):
        return None
    return status, reason
