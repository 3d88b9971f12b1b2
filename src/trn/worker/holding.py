"""That a worker is at work on a run, for who cleans up beside the runs (`trn gc`): a lock in the worker's own folder.

Held from before the first input is fetched until the worker ends. As long as the contract is older than the lock, what
was fetched and decoded for this run may be named nowhere yet.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from trn.errors import StorageError
from trn.files import Lock, make_folder

__all__ = ["Holding"]

_LOCK_NAME = ".lock"


class Holding:
    """One worker's; nothing of it is an error of the job's, and another worker that holds it is not waited for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock(folder / _LOCK_NAME)
        self._is_held = False

    def begin(self) -> None:
        with suppress(StorageError):
            make_folder(self._folder)
            self._is_held = self._lock.acquire(note=f"pid={os.getpid()} worker")

    def end(self) -> None:
        """A folder in which there is nothing else goes: of a job that was refused nothing stays."""
        if not self._is_held:
            return
        with suppress(OSError):
            if os.listdir(self._folder) == [_LOCK_NAME]:
                os.unlink(self._lock.path)
                os.rmdir(self._folder)
        self._lock.release()
        self._is_held = False
