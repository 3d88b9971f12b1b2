"""The job store: one row a job, changed by compare-and-swap, and an append-only index of all changes.

    <runs_dir>/.trn/jobs.db         SQLite, WAL; its columns are `records.JobRow` (table), made again if lost (database)
    <runs_dir>/.trn/jobs.lock       held for every change
    <runs_dir>/jobs/index.jsonl     {"ts", ...JobRow} for every change, in order (index)

A change is compare-and-swap on `revision`, and its line is written before its commit: after a crash in between, the
index holds a line whose (job_id, revision) comes again; the last line of a job holds. Commits survive the death of the
process, and the last ones may be gone after a power cut (`synchronous=NORMAL`): the folders of the runs are the truth,
the store only lists who asked for what.
"""

from __future__ import annotations

import contextlib
import heapq
import sqlite3
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from trn.errors import STATUS, StorageError
from trn.files import make_folder, sweep
from trn.jobs.database import Database, damaged
from trn.jobs.folders import is_run
from trn.jobs.index import index_path, note, write_index
from trn.jobs.looks import forget, is_noted, known_runs, look, put_look, runs_without_jobs
from trn.jobs.table import COLUMNS, columns_of, put, rows_of, values_of, version_of_table
from trn.records import JobRow

__all__ = ["MOVES", "Store", "job_log", "open_store"]

_OUTCOMES = frozenset(STATUS)

MOVES: dict[str, frozenset[str]] = {
    "submitted": frozenset({"queued", "starting", "running", "rejected", "lost"}) | _OUTCOMES,
    "queued": frozenset({"starting", "running", "rejected", "lost"}) | _OUTCOMES,
    "starting": frozenset({"running", "rejected", "lost"}) | _OUTCOMES,
    "running": frozenset({"lost"}) | _OUTCOMES,
    "lost": frozenset({"running"}) | _OUTCOMES,
}
"""The legal moves of a job; a state that is not here is an end.

A state in between may be skipped when the store could not be written. `lost` was only seen: the disk may know better.
"""


def open_store(runs_dir: Path) -> Store:
    """The job store of `runs_dir`. Touches nothing: the files appear with the first `add`."""
    return Store(runs_dir)


def job_log(runs_dir: Path, row: JobRow) -> Path:
    """Where a job's captured output goes: `logs/YYYY/MM/DD/<job_id>.log`, by the UTC day of its submission.

    Raises StorageError for a row whose time is none.
    """
    try:
        day = datetime.fromisoformat(row.submitted_at)
    except ValueError as error:
        raise damaged(runs_dir / ".trn" / "jobs.db", str(error)) from error
    return runs_dir / "logs" / f"{day:%Y/%m/%d}" / f"{row.job_id}.log"


class Store:
    """Rows of jobs. One connection, opened when first needed; not for threads, nor to be carried over a fork.

    Reading leaves nothing behind, and a missing store has no jobs. All methods raise StorageError where the file is
    damaged, written by a newer version, or out of reach.
    """

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self._database = Database(runs_dir)
        self.path = self._database.path
        self._index = index_path(runs_dir)

    @property
    def news(self) -> tuple[str, ...]:
        """What to tell of a store that was lost: where its jobs are known from now, and what could not be read."""
        rebuilt = self._database.rebuilt
        if rebuilt is None or not (rebuilt.rows or rebuilt.problems):
            return ()
        return (f"the job store was lost: {len(rebuilt.rows)} jobs are known from {rebuilt.source}", *rebuilt.problems)

    # Changes

    def add(self, row: JobRow) -> None:
        """Put a new job in. Raises StorageError for a job id that is there already."""
        with self._database.changing() as connection:
            put(connection, [row])
            self._note(connection, row)
        self._look(is_patient=False)

    def swap(self, row: JobRow, state: str, **changes: Any) -> JobRow | None:
        """Move the job to `state`; returns its new row, or None, and changes nothing, if it is not at `row` any more.

        `changes` are other fields of JobRow. Raises StorageError for a move that is not in MOVES.
        """
        if state not in MOVES.get(row.state, frozenset()):
            raise StorageError(f"job {row.job_id} is {row.state} and cannot become {state}.", where=str(self.path))
        moved = replace(row, state=state, revision=row.revision + 1, **changes)
        with self._database.changing() as connection:
            columns = ", ".join(f"{name} = ?" for name in COLUMNS)
            changed = connection.execute(
                f"UPDATE jobs SET {columns} WHERE job_id = ? AND revision = ?",
                (*values_of(moved), moved.job_id, moved.revision - 1),
            )
            if changed.rowcount == 0:
                return None
            if moved.state == "rejected" and (self.runs_dir / moved.run_id).is_dir():
                forget(connection)
            self._note(connection, moved)
        if moved.state == "running" or moved.state not in MOVES:
            self._look(is_patient=True)
        return moved

    def advance(self, job_id: str, state: str, **changes: Any) -> JobRow:
        """Move a job to `state` from wherever it is now; returns its new row. Raises StorageError as `swap` does.

        One that somebody else has moved there already stays as it is, without the `changes`.
        """
        while True:
            row = self.get(job_id)
            if row is None:
                raise StorageError(f"there is no job {job_id}.", where=str(self.path))
            if row.state == state:
                return row
            if moved := self.swap(row, state, **changes):
                return moved

    def _note(self, connection: sqlite3.Connection, row: JobRow) -> None:
        """Write the change down, before it is committed."""
        if self._index.exists():
            note(self._index, row)
        else:  # the first one, or somebody removed it
            make_folder(self._index.parent)
            sweep(self._index.parent)
            everything = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM jobs ORDER BY submitted_at, job_id")
            write_index(self._index, rows_of(everything))

    def _look(self, is_patient: bool) -> None:
        """Note which folders no job is known of, for those who read. The change is done: this may fail.

        A folder that was made a moment ago is waited for where the job has begun, and is a while at work from now on.
        """
        with contextlib.suppress(StorageError, OSError):
            with self._database.reading() as connection:
                found = None if is_noted(connection, self.runs_dir) else look(connection, self.runs_dir, is_patient)
            if found is not None:
                with self._database.changing() as connection:
                    put_look(connection, found)

    # Reading

    def get(self, job_id: str) -> JobRow | None:
        """One job, or None."""
        return next(iter(self._select("WHERE job_id = ?", (job_id,))), None)

    def list(self, limit: int | None = None, states: Collection[str] = (), since: str = "") -> tuple[JobRow, ...]:
        """The newest `limit` jobs, the newest first; with `states`, only jobs whose row says one of these.

        `since` leaves out what was submitted before that time, which is as `utc_now` writes it.
        """
        tail = "submitted_at >= ? ORDER BY submitted_at DESC, job_id DESC LIMIT ?"
        end = (since, -1 if limit is None else limit)
        if not states:
            return self._select(f"WHERE {tail}", end)
        # one question a state: each is answered in order from the index, and none reads more than it gives
        by_state = [self._select(f"WHERE state = ? AND {tail}", (state, *end)) for state in sorted(set(states))]
        merged = heapq.merge(*by_state, key=lambda row: (row.submitted_at, row.job_id), reverse=True)
        return tuple(merged)[:limit]

    def of_run(self, run_id: str) -> tuple[JobRow, ...]:
        """All jobs of one run, the oldest first."""
        return self._select("WHERE run_id = ? ORDER BY submitted_at, job_id", (run_id,))

    def run_ids(self) -> frozenset[str]:
        """The ids of all runs that a job was ever begun for; one that was refused has not begun."""
        with self._database.reading() as connection:
            return known_runs(connection)

    def runs_without_jobs(self, limit: int | None = None) -> tuple[JobRow, ...]:
        """A row, without a job id, for each run whose folder is there and of which no job is known, the newest first.

        Raises OSError where the folder of the runs cannot be read.
        """
        with self._database.reading() as connection:
            return tuple(runs_without_jobs(connection, self.runs_dir, limit))

    def names_of_runs(self, beginning: str, limit: int) -> tuple[str, ...]:
        """The ids of the newest runs that begin so and whose folders are there, the newest first. Raises OSError."""
        clause = "WHERE run_id >= ? AND run_id < ? AND state != 'rejected' GROUP BY run_id ORDER BY 2 DESC LIMIT ?"
        with self._database.reading() as connection:
            found = connection.execute(
                f"SELECT run_id, max(submitted_at) FROM jobs {clause}", (beginning, beginning + "\U0010ffff", limit)
            ).fetchall()
        found = [(run_id, at) for run_id, at in found if is_run(self.runs_dir / run_id)]
        found += [
            (row.run_id, row.submitted_at) for row in self.runs_without_jobs() if row.run_id.startswith(beginning)
        ]
        return tuple(run_id for run_id, _ in sorted(found, key=lambda one: one[1], reverse=True)[:limit])

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _select(self, clause: str, values: tuple[object, ...]) -> tuple[JobRow, ...]:
        with self._database.reading() as connection:
            columns = columns_of(version_of_table(connection, str(self.path)))
            return tuple(rows_of(connection.execute(f"SELECT {columns} FROM jobs {clause}", values)))
