"""Which folders are runs of which no job is known, without looking at all folders each time.

    folders (run_id, planned_at)          such a run; planned_at null: a folder that has no plan yet, and may be one
    looked (mtime_ns, times_forgotten)    the time of the runs' folder when they were looked for; -1: look again

A run whose job is known costs nothing here. A folder that somebody copied in changes the modification time of the
runs' folder, as every new run does: as long as that time is the noted one, the notes are right. Whoever changes the
store looks again, outside of its lock; who only reads, and finds another time, looks for itself and notes nothing.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import NamedTuple

from trn.jobs.folders import is_run, names_of_runs, row_of_folder, rows_of_folders
from trn.records import JobRow

__all__ = ["Look", "forget", "is_noted", "known_runs", "look", "put_look", "runs_without_jobs"]

_SETTLED_NS = 50_000_000
"""A time that is younger proves nothing: the file system's clock goes in steps, of up to 10 ms."""
_MOST_ODD_FOLDERS = 1000
"""Folders without a plan, each of which is looked at by every reader; with more of them nothing is noted."""
_KNOWN = "SELECT DISTINCT run_id FROM jobs WHERE state != 'rejected'"
_UNKNOWN = "NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.run_id = folders.run_id AND state != 'rejected')"


class Look(NamedTuple):
    """What was found in the runs' folder at a time."""

    mtime_ns: int
    times_forgotten: int
    new: list[tuple[str, str | None]]
    gone: list[str]


def runs_without_jobs(connection: sqlite3.Connection, runs_dir: Path, limit: int | None) -> list[JobRow]:
    """The newest such runs, as `rows_of_folders` gives them. Raises OSError."""
    if not is_noted(connection, runs_dir):
        return rows_of_folders(runs_dir, known_runs(connection))[:limit]
    odd = connection.execute(f"SELECT run_id FROM folders WHERE planned_at IS NULL AND {_UNKNOWN}")
    rows = [row_of_folder(folder) for folder in (runs_dir / name for (name,) in odd) if is_run(folder)]
    for run_id, planned_at in connection.execute(
        f"SELECT run_id, planned_at FROM folders WHERE planned_at IS NOT NULL AND {_UNKNOWN}"
        " ORDER BY planned_at DESC, run_id DESC LIMIT ?",
        (-1 if limit is None else limit,),
    ):
        rows.append(JobRow("", run_id, str(runs_dir / run_id), "lost", "", planned_at))
    return sorted(rows, key=lambda row: (row.submitted_at, row.run_id), reverse=True)[:limit]


def known_runs(connection: sqlite3.Connection) -> frozenset[str]:
    """The ids of all runs that a job was ever begun for; one that was refused has not begun."""
    return frozenset(run_id for (run_id,) in connection.execute(_KNOWN))


def is_noted(connection: sqlite3.Connection, runs_dir: Path) -> bool:
    """Whether what is noted is right; a table of the first version has no notes."""
    if connection.execute("PRAGMA user_version").fetchone()[0] < 2:
        return False
    try:
        return _looked(connection)[0] == os.stat(runs_dir).st_mtime_ns
    except OSError:
        return False


def look(connection: sqlite3.Connection, runs_dir: Path, is_patient: bool) -> Look | None:
    """Look for the runs without jobs; None where that cannot be noted. Changes nothing. Raises OSError.

    The time of a folder that has just changed says nothing yet; who is patient waits for it, for at most 50 ms.
    """
    times_forgotten = _looked(connection)[1]
    mtime_ns = _settled(runs_dir, is_patient)
    if mtime_ns is None:
        return None
    unknown = set(names_of_runs(runs_dir, known_runs(connection)))
    noted = dict(connection.execute("SELECT run_id, planned_at FROM folders").fetchall())
    new = [
        (name, planned_at)
        for name in unknown
        if noted.get(name) is None and ((planned_at := _planned_at(runs_dir / name)) or name not in noted)
        if planned_at or (runs_dir / name).is_dir()
    ]
    without_plan = sum(planned_at is None for planned_at in (noted | dict(new)).values())
    is_still_so = os.stat(runs_dir).st_mtime_ns == mtime_ns
    if not is_still_so or without_plan > _MOST_ODD_FOLDERS:
        return None
    return Look(mtime_ns, times_forgotten, new, [name for name in noted if name not in unknown])


def put_look(connection: sqlite3.Connection, found: Look) -> None:
    """Note what was found, in the caller's transaction, unless a run was forgotten since."""
    if _looked(connection)[1] == found.times_forgotten:
        connection.executemany("DELETE FROM folders WHERE run_id = ?", [(name,) for name in found.gone])
        connection.executemany("INSERT OR REPLACE INTO folders VALUES (?, ?)", found.new)
        connection.execute("UPDATE looked SET mtime_ns = ?", (found.mtime_ns,))


def forget(connection: sqlite3.Connection) -> None:
    """The jobs of some run are no longer known as such: what is noted may not have it."""
    connection.execute("UPDATE looked SET mtime_ns = -1, times_forgotten = times_forgotten + 1")


def _looked(connection: sqlite3.Connection) -> tuple[int, int]:
    """The noted time, and how often a run was forgotten."""
    found = connection.execute("SELECT mtime_ns, times_forgotten FROM looked").fetchone()
    return (-1, 0) if found is None else (int(found[0]), int(found[1]))


def _settled(runs_dir: Path, is_patient: bool) -> int | None:
    """The time of the runs' folder, once it is old enough; None where it is not, or the clocks do not agree."""
    mtime_ns = os.stat(runs_dir).st_mtime_ns
    age_ns = time.time_ns() - mtime_ns
    if age_ns < 0 or (age_ns < _SETTLED_NS and not is_patient):
        return None
    if age_ns < _SETTLED_NS:
        time.sleep((_SETTLED_NS - age_ns) / 1e9)
    return mtime_ns


def _planned_at(folder: Path) -> str | None:
    return row_of_folder(folder).submitted_at if is_run(folder) else None
