"""Being the door of a job: its launch lock, held until the job has ended, or waits in the queue for another door.

It is taken before the job's row exists, or before the row leaves the queue.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from trn.errors import StorageError
from trn.files import Lock, make_folder, remove
from trn.jobs.observe import launch_lock

__all__ = ["attend", "attending"]


def attend(runs_dir: Path, job_id: str, wait_s: float = 0.1) -> Lock | None:
    """The launch lock of a job, held; None where another door has it. Raises StorageError."""
    lock = Lock(launch_lock(runs_dir, job_id))
    make_folder(lock.path.parent)
    return lock if lock.acquire(note=f"pid={os.getpid()} job={job_id}", wait_s=wait_s) else None


@contextlib.contextmanager
def attending(lock: Lock) -> Iterator[None]:
    """Be the door until the job has ended, or waits for another one; entered twice, the inner one lets go."""
    try:
        yield
    finally:
        with contextlib.suppress(StorageError, OSError):
            if lock.is_ours():
                remove(lock.path)
        lock.release()
