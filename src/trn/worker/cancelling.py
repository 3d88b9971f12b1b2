"""A platform's wish that the job ends: a file that appears. Looked for by a thread, told once.

Present and empty, or with a word that means yes, it is a wish; so is one that cannot be read. What it becomes, a
`trn cancel` of the job or a start that does not happen, is the caller's business.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

__all__ = ["CancelFile", "asks_to_cancel"]

_WORDS = frozenset({"", "1", "true", "t", "yes", "y", "cancel", "canceled", "cancelled"})
_LOOK_EVERY_S = 0.5
_MOST_BYTES = 64


def asks_to_cancel(path: Path) -> bool:
    """Whether the file is there and means yes."""
    try:
        with open(path, "rb") as stream:
            text = stream.read(_MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return text.decode(errors="replace").strip().lower() in _WORDS


class CancelFile:
    """From `start` to `end`, looks for the file at `path` and calls `cancel` once it asks for it."""

    def __init__(self, path: Path, cancel: Callable[[str], None]) -> None:
        self._path, self._cancel = path, cancel
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trn-cancel-file", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._is_over.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not asks_to_cancel(self._path):
            if self._is_over.wait(_LOOK_EVERY_S):
                return
        self._cancel(f"the file {self._path.name} asked for it")
