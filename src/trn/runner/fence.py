"""The fence of a run: a process whose run was taken by another one writes nothing more of it, and ends.

While its holder lives, the lock of a run on a local disk cannot be taken: neither a slow process nor one that is
stopped (SIGSTOP, a debugger, a suspended machine) loses it. It is lost where somebody removes or replaces the lock
file, and on a network file system whose server gives up a client that is silent. The next one to take the run then
leaves another note, and the process that wakes up is a zombie: it goes on in the middle of a step.

The fence is asked before a file of the run gets its name or is removed (checkpoints, samples, the outcome), and before
a line of the journal: of what comes with every step (metrics, and their events) at most four times a second and always
after a pause, of all else each. A question costs two calls of the system. What it cannot do: take back a write that was
begun when the answer was given, which is microseconds later. Lines about the process itself, in its heartbeat and its
log, may still come until it ends; they name their job, and nothing is computed from them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from trn.errors import ResumeRefused
from trn.files import Holder, Lock, guarding, is_locked
from trn.files.system import storage_errors

__all__ = ["Fence", "RunTaken"]


class RunTaken(ResumeRefused):
    """Another process took the run while this one was silent: this one may write nothing, not even an outcome."""


class Fence:
    """Asked before anything of the run is written; nothing happens while the lock is ours."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock

    def guarding(self) -> AbstractContextManager[None]:
        """Inside, it is asked before any file of the run gets its name or is removed."""
        return guarding(self._lock.path.parent, self)

    def __call__(self) -> None:
        """Raises RunTaken, StorageError."""
        with storage_errors("look at", self._lock.path):
            if self._lock.is_ours():
                return
            other = is_locked(self._lock.path) or self._note()
        own = Holder.read(self._lock.note).generation
        found = f"another process took it meanwhile ({Holder.read(other)}; this one was of generation {own})"
        if other == self._lock.note:
            found = "this process does not hold the lock file that stands there, though it is a copy of its own"
        raise RunTaken(
            f"{found}, and nothing more is written.",
            where=str(self._lock.path.parent),
            hint="Never remove or replace the .lock of a run; a resume goes on from the last checkpoint.",
        )

    def _note(self) -> str:
        return Path(self._lock.path).read_text(errors="replace")
