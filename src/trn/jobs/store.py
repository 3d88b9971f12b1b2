"""The job store: one SQLite table whose columns are `records.JobRow`, and an append-only index of all changes.

    <runs_dir>/.trn/jobs.db         WAL; `PRAGMA user_version` is the version of the table, a newer one is refused
    <runs_dir>/.trn/jobs.lock       held for every change
    <runs_dir>/jobs/index.jsonl     {"ts", ...JobRow} for every change, in order

A change is compare-and-swap on `revision`, and its line is written before its commit: after a crash in between, the
index holds a line whose (job_id, revision) comes again; the last one of a revision holds. Commits survive the death
of the process, and the last ones may be gone after a power cut (`synchronous=NORMAL`): the folders of the runs are
the truth, the store only lists who asked for what.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import astuple, fields, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from trn.errors import STATUS, StorageError
from trn.files import Lock, append_line, make_folder
from trn.records import JobRow, json_line, utc_now

__all__ = ["MOVES", "Store", "job_log", "open_store"]

_OUTCOMES = frozenset(STATUS)

MOVES: dict[str, frozenset[str]] = {
    "submitted": frozenset({"queued", "starting", "running", "rejected", "lost"}) | _OUTCOMES,
    "queued": frozenset({"starting", "rejected", "lost"}) | _OUTCOMES,
    "starting": frozenset({"running", "rejected", "lost"}) | _OUTCOMES,
    "running": frozenset({"lost"}) | _OUTCOMES,
    "lost": frozenset({"running"}) | _OUTCOMES,
}
"""The legal moves of a job; a state that is not here is an end.

A state in between may be skipped when the store could not be written. `lost` was only seen: the disk may know better.
"""

_VERSION = 1
_BUSY_S = 30.0
_DAMAGE = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
_COLUMNS = tuple(field.name for field in fields(JobRow))
_TABLE = f"""
CREATE TABLE jobs (
  {", ".join(f"{name} {'INTEGER' if name in ('pid', 'exit_code', 'revision') else 'TEXT'}" for name in _COLUMNS)},
  PRIMARY KEY (job_id)
) STRICT;
CREATE INDEX jobs_by_run ON jobs (run_id, submitted_at);
CREATE INDEX jobs_by_time ON jobs (submitted_at, job_id);
PRAGMA user_version = {_VERSION};
"""
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM jobs"


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
        raise _damaged(runs_dir / ".trn" / "jobs.db", str(error)) from error
    return runs_dir / "logs" / f"{day:%Y/%m/%d}" / f"{row.job_id}.log"


class Store:
    """Rows of jobs. One connection, opened when first needed; not for threads, nor to be carried over a fork.

    Reading leaves nothing behind, and a missing store has no jobs. All methods raise StorageError where the file is
    damaged, written by a newer version, or out of reach.
    """

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self.path = runs_dir / ".trn" / "jobs.db"
        self._index = runs_dir / "jobs" / "index.jsonl"
        self._connection: sqlite3.Connection | None = None

    # Changes

    def add(self, row: JobRow) -> None:
        """Put a new job in. Raises StorageError for a job id that is there already."""
        with self._changing() as connection:
            marks = ", ".join("?" * len(_COLUMNS))
            connection.execute(f"INSERT INTO jobs VALUES ({marks})", astuple(row))
            self._note(row)

    def swap(self, row: JobRow, state: str, **changes: Any) -> JobRow | None:
        """Move the job to `state`; returns its new row, or None, and changes nothing, if it is not at `row` any more.

        `changes` are other fields of JobRow. Raises StorageError for a move that is not in MOVES.
        """
        if state not in MOVES.get(row.state, frozenset()):
            raise StorageError(f"job {row.job_id} is {row.state} and cannot become {state}.", where=str(self.path))
        moved = replace(row, state=state, revision=row.revision + 1, **changes)
        with self._changing() as connection:
            columns = ", ".join(f"{name} = ?" for name in _COLUMNS)
            changed = connection.execute(
                f"UPDATE jobs SET {columns} WHERE job_id = ? AND revision = ?",
                (*astuple(moved), row.job_id, row.revision),
            )
            if changed.rowcount == 0:
                return None
            self._note(moved)
        return moved

    def advance(self, job_id: str, state: str, **changes: Any) -> JobRow:
        """Move a job to `state` from wherever it is now; returns its new row. Raises StorageError as `swap` does."""
        while True:
            row = self.get(job_id)
            if row is None:
                raise StorageError(f"there is no job {job_id}.", where=str(self.path))
            if moved := self.swap(row, state, **changes):
                return moved

    # Reading

    def get(self, job_id: str) -> JobRow | None:
        """One job, or None."""
        return next(iter(self._select("WHERE job_id = ?", (job_id,))), None)

    def list(self, limit: int | None = None, states: Collection[str] = ()) -> tuple[JobRow, ...]:
        """The newest `limit` jobs, the newest first; with `states`, only jobs whose row says one of these."""
        where = f"WHERE state IN ({', '.join('?' * len(states))})" if states else ""
        return self._select(
            f"{where} ORDER BY submitted_at DESC, job_id DESC LIMIT ?",
            (*states, -1 if limit is None else limit),
        )

    def of_run(self, run_id: str) -> tuple[JobRow, ...]:
        """All jobs of one run, the oldest first."""
        return self._select("WHERE run_id = ? ORDER BY submitted_at, job_id", (run_id,))

    def run_ids(self) -> frozenset[str]:
        """The ids of all runs that a job was ever begun for; one that was refused has not begun."""
        with self._reading() as connection:
            if connection is None:
                return frozenset()
            return frozenset(
                row[0] for row in connection.execute("SELECT DISTINCT run_id FROM jobs WHERE state != 'rejected'")
            )

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # The file

    def _select(self, clause: str, values: tuple[object, ...]) -> tuple[JobRow, ...]:
        with self._reading() as connection:
            if connection is None:
                return ()
            return tuple(JobRow(*row) for row in connection.execute(f"{_SELECT} {clause}", values))

    def _note(self, row: JobRow) -> None:
        append_line(self._index, json_line({"ts": utc_now(), **row.to_json()}))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """The connection, or None where no store was ever made."""
        with self._plainly():
            if self._connection is None and self.path.exists():
                self._connection = self._connect()
            connection = self._connection
            made = connection is not None and connection.execute("PRAGMA user_version").fetchone()[0]
            yield connection if made else None

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """One short transaction, alone among all processes; rolled back on any exception."""
        make_folder(self.path.parent)
        make_folder(self._index.parent)
        with self._plainly(), Lock(self.path.with_name("jobs.lock")):
            connection = self._made()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a failed COMMIT may have ended it
                    connection.execute("ROLLBACK")
                raise

    def _connect(self) -> sqlite3.Connection:
        # never mode=ro: a read-only connection to a WAL file leaves its -shm and -wal behind (seen with 3.40), and
        # cannot be opened where the folder is not writable: nobody writes there, so the file is as good as immutable
        mode = "mode=rw" if os.access(self.path.parent, os.W_OK) else "immutable=1"
        uri = f"file:{quote(str(self.path))}?{mode}"
        connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = NORMAL")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise StorageError(
                    f"the job store has version {version}, this trn knows {_VERSION}.",
                    where=str(self.path),
                    hint="Use the newer trn that wrote it.",
                )
        except BaseException:
            connection.close()
            raise
        return connection

    def _made(self) -> sqlite3.Connection:
        """The connection, after making the file and its table where they are missing; the caller holds the lock."""
        if self._connection is None:
            if not self.path.exists():
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._connection = self._connect()
        connection = self._connection
        if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(f"BEGIN IMMEDIATE; {_TABLE} COMMIT;")
        return connection

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        """Turn an error of SQLite into a StorageError that says what to do."""
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise StorageError(f"the job is there already ({error}).", where=str(self.path)) from error
        except (sqlite3.Error, UnicodeDecodeError) as error:
            # the low byte is the primary code; what never came from SQLite is text that is none
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _DAMAGE:
                raise _damaged(self.path, str(error)) from error
            raise StorageError(f"cannot use the job store: {error}.", where=str(self.path)) from error


def _damaged(path: Path, found: str) -> StorageError:
    return StorageError(
        f"the job store is damaged: {found}.",
        where=str(path),
        hint="Move jobs.db, jobs.db-wal and jobs.db-shm away: the runs' own folders have all that matters.",
    )
