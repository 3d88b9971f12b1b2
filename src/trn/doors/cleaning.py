"""Looking after folders of runs, and, where that is wanted, removing what may go.

Looking takes no lock and changes nothing. Before anything of a run is removed, its lock is taken, as a job of it would,
and everything is looked at under it: a run that somebody works on is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trn.doors.disk import changed_at, freed_bytes, occupied_bytes
from trn.doors.leftovers import LOCK_NAME, Item, items_of_run, items_of_store
from trn.doors.unused import unused_in
from trn.errors import StorageError
from trn.files import Lock, is_locked, remove, remove_tree, sync_folder
from trn.jobs import outcome_of

__all__ = ["Cleaner", "Report", "Row"]

_BUSY = "somebody is working on it"


@dataclass
class Row:
    """One item of a report; `paths` are relative to the folder of the runs, `size_bytes` is what its removal frees."""

    kind: str
    paths: list[str]
    size_bytes: int
    removed: bool = False


@dataclass
class Report:
    """One run, or with run id "" all that lies beside the runs: what it occupied before, what may go, what went."""

    runs_dir: Path
    run_id: str = ""
    state: str = ""
    """`running`, the word of its outcome, or `unfinished`."""
    size_bytes: int = 0
    rows: list[Row] = field(default_factory=list)
    kept: str | None = None
    """Why something stays that else might go."""

    def total_bytes(self, *, removed: bool) -> int:
        """Of all items that are, or are not, removed."""
        return sum(row.size_bytes for row in self.rows if row.removed is removed)

    def to_json(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "run_dir": str(self.runs_dir / self.run_id),
            "state": self.state,
            "size_bytes": self.size_bytes,
            "freeable_bytes": self.total_bytes(removed=False),
            "freed_bytes": self.total_bytes(removed=True),
            "kept": self.kept,
            "items": [vars(row) for row in self.rows],
        }


class Cleaner:
    """Looks, and removes what may go if it `is_sure`. What was changed after `until` stays.

    A failure is put into `problems`, and what comes after it goes on.
    """

    def __init__(self, *, is_sure: bool, until: float | None = None) -> None:
        self.problems: list[str] = []
        self._is_sure = is_sure
        self._until = until

    def run(self, run_dir: Path) -> Report:
        """One run."""
        report = Report(run_dir.parent, run_dir.name)
        with self._guarded():
            report.size_bytes = occupied_bytes(run_dir)
            outcome = outcome_of(run_dir, "")
            report.state = outcome.status if outcome else "unfinished"
            report.kept = self._reason_to_leave(run_dir)
            if report.kept == _BUSY:
                report.state = "running"
            elif report.kept is None:
                self._clean(run_dir, report)
        return report

    def beside(self, runs_dir: Path) -> Report:
        """What lies beside the runs."""
        report = Report(runs_dir)
        items: list[Item] = []
        for find in (items_of_store, unused_in):
            with self._guarded():
                items += find(runs_dir)
        with self._guarded():
            if self._until is not None:
                items = [item for item in items if max(map(changed_at, item.paths)) <= self._until]
            self._take(report, items)
        return report

    def _reason_to_leave(self, run_dir: Path) -> str | None:
        lock = run_dir / LOCK_NAME
        if lock.is_symlink() or (lock.exists() and not lock.is_file()):
            return "its lock is no file"
        if is_locked(lock) is not None:
            return _BUSY
        # the lock is left out: whoever looks after the run touches it
        if self._until is not None and changed_at(run_dir, lock) > self._until:
            return "it was changed lately"
        return None

    def _clean(self, run_dir: Path, report: Report) -> None:
        with _holding(run_dir / LOCK_NAME if self._is_sure else None) as is_held:
            if not is_held:
                report.kept = _BUSY
                return
            items, report.kept = items_of_run(run_dir)
            self._take(report, items)

    def _take(self, report: Report, items: list[Item]) -> None:
        """Put the items into the report, and remove each of them if that is wanted."""
        sizes = freed_bytes([item.paths for item in items])
        for item, size_bytes in zip(items, sizes, strict=True):
            paths = [str(path.relative_to(report.runs_dir)) for path in item.paths]
            report.rows.append(Row(item.kind, paths, size_bytes))
        for item, row in zip(items, report.rows, strict=True):
            if self._is_sure:
                with self._guarded():
                    row.removed = _remove(item)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            self.problems.append(str(error))
        except OSError as error:
            self.problems.append(str(StorageError(f"{error.strerror or error}.", where=error.filename)))


def _remove(item: Item) -> bool:
    """Whether it is gone now; each path durably before the next, so that a commit mark goes first."""
    with _holding(item.lock) as is_held:
        if not is_held or not item.may_still_go():
            return False
        for path in item.paths:
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                remove(path)
            sync_folder(path.parent)
    return True


@contextmanager
def _holding(path: Path | None) -> Iterator[bool]:
    """Hold a lock, and say whether it could be had; None needs none.

    Its note stays: it says which job held the run last, and who finds the run crashed asks for that.
    """
    if path is None or not path.parent.is_dir():
        yield path is None
        return
    note = path.read_text(errors="replace")[:4096] if path.exists() else f"pid={os.getpid()} trn gc"
    lock = Lock(path)
    is_held = lock.acquire(note=note)
    try:
        yield is_held
    finally:
        lock.release()
