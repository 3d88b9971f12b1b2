"""The table of jobs: its columns, which are the fields of `records.JobRow`, and the versions that it has had.

    1    job_id ... revision
    2    and launcher, engine_id, devices, generation; an index by state; what `looks` keeps

A table of an earlier version is read as it is, the new columns with their defaults, and brought up by the first
change; one of a later version is refused. Not here: when and under which lock (store).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import fields

from trn.errors import StorageError
from trn.records import JobRow

__all__ = [
    "COLUMNS",
    "VERSION",
    "columns_of",
    "make_table",
    "migrate",
    "put",
    "rows_of",
    "values_of",
    "version_of_table",
]

VERSION = 2
COLUMNS = tuple(field.name for field in fields(JobRow))
_COLUMNS_OF_1 = COLUMNS[: COLUMNS.index("revision") + 1]
_NUMBERS = frozenset({"pid", "exit_code", "revision", "generation"})
_NEW_COLUMNS = (
    "launcher TEXT NOT NULL DEFAULT 'local'",
    "engine_id TEXT",
    "devices TEXT",
    "generation INTEGER DEFAULT 0",
)
_NEW_IN_2 = (
    "CREATE INDEX jobs_by_state ON jobs (state, submitted_at, job_id)",
    "CREATE TABLE folders (run_id TEXT PRIMARY KEY, planned_at TEXT) STRICT",
    "CREATE TABLE looked (mtime_ns INTEGER, times_forgotten INTEGER) STRICT",
    "INSERT INTO looked VALUES (-1, 0)",
    f"PRAGMA user_version = {VERSION}",
)
_MAKE = (
    f"""CREATE TABLE jobs (
      {", ".join(f"{name} {'INTEGER' if name in _NUMBERS else 'TEXT'}" for name in COLUMNS)},
      PRIMARY KEY (job_id)
    ) STRICT""",
    "CREATE INDEX jobs_by_run ON jobs (run_id, submitted_at)",
    "CREATE INDEX jobs_by_time ON jobs (submitted_at, job_id)",
    *_NEW_IN_2,
)
_MIGRATE = (
    *(f"ALTER TABLE jobs ADD COLUMN {column}" for column in _NEW_COLUMNS),
    *_NEW_IN_2,
)


def version_of_table(connection: sqlite3.Connection, path: str) -> int:
    """The version of the table, 0 where there is none yet. Raises StorageError for one of a later trn."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        raise StorageError(
            f"the job store has version {version}, this trn knows {VERSION}.",
            where=path,
            hint="Use the newer trn that wrote it.",
        )
    return version


def make_table(connection: sqlite3.Connection) -> None:
    """The table with its indexes, of this version, in the caller's transaction."""
    for statement in _MAKE:
        connection.execute(statement)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a table of version 1 up to this one, in the caller's transaction."""
    for statement in _MIGRATE:
        connection.execute(statement)


def columns_of(version: int) -> str:
    """What to select for a row from a table of this version."""
    return ", ".join(_COLUMNS_OF_1 if version == 1 else COLUMNS)


def put(connection: sqlite3.Connection, rows: Iterable[JobRow]) -> None:
    """Insert rows. Raises sqlite3.IntegrityError for a job that is there already."""
    marks = ", ".join("?" * len(COLUMNS))
    connection.executemany(f"INSERT INTO jobs ({columns_of(VERSION)}) VALUES ({marks})", map(values_of, rows))


def values_of(row: JobRow) -> tuple[object, ...]:
    """The fields of a row in the order of COLUMNS."""
    return tuple(getattr(row, name) for name in COLUMNS)


def rows_of(found: Iterable[tuple[object, ...]]) -> Iterator[JobRow]:
    """The rows of a selection of `columns_of` some version."""
    return (JobRow(*values) for values in found)  # type: ignore[arg-type]  # the table is STRICT
