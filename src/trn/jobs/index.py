"""The index of jobs: `<runs_dir>/jobs/index.jsonl`, a line for each change of a job, for whoever reads along.

    {"ts", ...the fields of JobRow}     the last line of a job is how it stands

Written under the store's lock. It follows the store, and is what the store is made from again when that is lost; where
the index is lost, it is made anew from the store, then with one line a job. A torn last line is cut by the next writer
and read by nobody; a damaged line is left out and counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from trn.files import append_line, atomic_file
from trn.jobs.folders import is_id
from trn.records import JobRow, JsonError, from_json, json_line, utc_now

__all__ = ["index_path", "note", "read_index", "write_index"]


def index_path(runs_dir: Path) -> Path:
    """Where the index is."""
    return runs_dir / "jobs" / "index.jsonl"


def note(path: Path, row: JobRow) -> None:
    """Add a line; the caller holds the store's lock. Raises StorageError, and the file is then as it was."""
    append_line(path, _line(row))


def write_index(path: Path, rows: Iterable[JobRow]) -> None:
    """A whole new index, of these rows as they stand. Raises StorageError."""
    with atomic_file(path) as file:
        for row in rows:
            file.write(_line(row))


def read_index(path: Path) -> tuple[list[JobRow], int]:
    """The jobs as the last line of each has them, and how many lines were damaged. Raises OSError."""
    rows: dict[str, JobRow] = {}
    damaged = 0
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not be waited for
    except (FileNotFoundError, NotADirectoryError):
        return [], 0
    with open(fd, "rb") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                break
            try:
                row = _row(line)
            except (JsonError, ValueError):
                damaged += 1
                continue
            rows[row.job_id] = row
    return list(rows.values()), damaged


def _line(row: JobRow) -> bytes:
    return json_line({"ts": utc_now(), **row.to_json()})


def _row(line: bytes) -> JobRow:
    """Raises JsonError or ValueError for a line that no store wrote."""
    value = from_json(line)
    if not isinstance(value, dict):
        raise JsonError("no JSON object")
    value.pop("ts", None)
    row = JobRow.from_json(value)
    if not is_id(row.job_id) or not is_id(row.run_id):
        raise JsonError("job_id and run_id are no ids")
    datetime.fromisoformat(row.submitted_at)
    return row
