"""Ending a job on somebody's wish: one that waits is taken out of the queue, one that is at work finds a file.

    queued                        row -> `cancelled`, the request to start it is removed
    submitted, starting, running  <runs_dir>/.trn/cancel/<job_id>: the runner looks for it four times a second, ends
                                  after its step with a checkpoint, or at once, and writes the outcome itself
    ended, lost                   nothing

The file says by being there what is wanted, so that whoever may write into the folder of the runs may cancel, and
nobody has to be at the same machine. It stays until the job has ended; then its door removes it, or whoever asked.
"""

from __future__ import annotations

from pathlib import Path

from trn.errors import exit_code
from trn.files import make_folder, remove, write_atomic
from trn.jobs.folders import checked_id
from trn.jobs.request import drop_request
from trn.jobs.store import Store
from trn.records import JobRow, cancel_path, pretty_json, utc_now

__all__ = ["ask_to_cancel", "forget_cancel", "take_from_queue"]

_REASON = "`trn cancel` asked for it"


def ask_to_cancel(runs_dir: Path, job_id: str, *, now: bool, reason: str = _REASON) -> None:
    """Let the job know, whenever it looks. Asked again, the last wish holds. Raises StorageError."""
    path = cancel_path(runs_dir, checked_id(job_id))
    make_folder(path.parent)
    write_atomic(path, pretty_json({"reason": reason, "now": now}))


def forget_cancel(runs_dir: Path, job_id: str) -> None:
    """The job has ended: nobody looks any more. Raises StorageError."""
    remove(cancel_path(runs_dir, checked_id(job_id)))


def take_from_queue(store: Store, row: JobRow) -> JobRow | None:
    """The row of a job that waited, and will not be started; None where it is not at `row` any more.

    Raises StorageError.
    """
    changes = {"exit_code": exit_code("cancelled"), "reason": "cancelled while it waited in the queue"}
    moved = store.swap(row, "cancelled", **changes, ended_at=utc_now())
    if moved is not None:
        drop_request(store, row.job_id)
    return moved
