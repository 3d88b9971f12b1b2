"""The queue of a folder of runs: which of its jobs wait, in the order in which they were submitted, and who serves it.

    row `queued` in the store, with its request beside it     a job that waits
    .trn/queue.lock                                           held by whoever serves
    .trn/waiting.json                                         why each job waits, as the server saw it last

Not here: taking leases and starting jobs (serving), and what a request holds (request).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trn.files import is_locked, write_atomic
from trn.jobs.store import Store
from trn.records import JobRow, JsonError, pretty_json, read_json

__all__ = ["is_served", "queue_lock", "tell_waiting", "waiting_rows", "why_waiting"]

_LOCAL = frozenset({"local", "torchrun"})
"""Launchers whose jobs wait here; those of an engine wait there."""


def queue_lock(runs_dir: Path) -> Path:
    """The lock of whoever serves the queue."""
    return runs_dir / ".trn" / "queue.lock"


def is_served(runs_dir: Path) -> str | None:
    """The note of whoever serves the queue, None where nobody does. Raises OSError."""
    return is_locked(queue_lock(runs_dir))


def waiting_rows(store: Store) -> list[JobRow]:
    """The jobs that wait here, in their order. Raises StorageError."""
    rows = [row for row in store.list(states=("queued",)) if row.launcher in _LOCAL]
    return sorted(rows, key=lambda row: (row.submitted_at, row.job_id))


def why_waiting(runs_dir: Path) -> dict[str, str]:
    """By job id, what the server of the queue last said of the jobs that wait; nothing where nobody serves."""
    try:
        value = read_json(_notes(runs_dir)) if is_served(runs_dir) is not None else {}
    except (JsonError, OSError):
        return {}
    return {job_id: text for job_id, text in value.items() if isinstance(text, str)}


def tell_waiting(runs_dir: Path, reasons: Mapping[str, str]) -> None:
    """Leave word of why jobs wait, for whoever asks. Raises StorageError."""
    write_atomic(_notes(runs_dir), pretty_json(reasons))


def _notes(runs_dir: Path) -> Path:
    return runs_dir / ".trn" / "waiting.json"
