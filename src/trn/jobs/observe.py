"""The truth of a job, from the disk: who holds the run's lock, and which outcome lies in its folder.

A row says what its door knew last; a door can be killed, so the row alone is never believed:

    the run's `.lock` is held by this job                         running
    reports/outcome.json, or outcomes/<job_id>.json, is its own   that outcome
    its door, or the maker of its folder, holds a lock            as the row says
    it waits in the queue, or an engine has it                    as the row says: nobody here has to be at work yet
    none of these                                                 lost

Locks die with their holders, so no process id is ever asked. Reading changes nothing; `record_lost` is for doors that
write anyway.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from trn.files import is_locked, remove
from trn.jobs.folders import checked_id, is_id, outcome_of
from trn.jobs.store import Store
from trn.records import JobRow, Outcome, utc_now

__all__ = [
    "OPEN_STATES",
    "UNREADABLE",
    "launch_lock",
    "observe",
    "record_lost",
]

OPEN_STATES = frozenset({"submitted", "queued", "starting", "running"})
"""States that claim that somebody is at work."""

UNREADABLE = "its folder cannot be read: "
"""How the reason begins of a row that could not be looked at."""

_LOCAL_LAUNCHERS = frozenset({"local", "torchrun", "inline"})
"""Launchers whose processes are of this machine, and hold locks that can be seen here."""

_LOST = "nobody holds the run any more, and no outcome was written"
_HOLDER = re.compile(r"\bjob=(\S+)")


def launch_lock(runs_dir: Path, job_id: str) -> Path:
    """The lock that a foreground door holds from before its job's row exists until after the row has its end."""
    return runs_dir / ".trn" / "launch" / f"{checked_id(job_id)}.lock"


def observe(row: JobRow, runs_dir: Path) -> JobRow:
    """The row as the disk has it now; its `run_dir` is below `runs_dir`, also where that was moved.

    A row without a job id (see `rows_of_folders`) takes the id of the job that holds the run or ended it. Where the
    folder cannot be read the row says what the store said last, and `reason` why nobody knows better.
    """
    run_dir = runs_dir / row.run_id
    row = replace(row, run_dir=str(run_dir))
    if row.state not in OPEN_STATES and row.state != "lost":
        return row
    try:
        return _seen(row, runs_dir, run_dir)
    except OSError as error:
        return replace(row, reason=f"{UNREADABLE}{error.filename or run_dir}: {error.strerror or error}")


def _seen(row: JobRow, runs_dir: Path, run_dir: Path) -> JobRow:
    """The row of a job that may be going on, from locks and outcomes. Raises OSError."""
    # asked first: a door lets go of its lock only after the folder has an outcome and the row its end
    attended = _is_attended(runs_dir, row.job_id)
    holder = _holder(run_dir)
    if holder is not None and row.job_id in (holder, ""):
        return replace(row, job_id=holder, state="running", reason=None)
    if outcome := outcome_of(run_dir, row.job_id):
        return _ended(row, outcome)
    if attended or _is_with_others(row):
        return row
    return replace(row, state="lost", reason=row.reason if row.state == "lost" and row.reason else _LOST)


def _is_with_others(row: JobRow) -> bool:
    """Whether it may go on though nobody here is at work: it waits for its turn, or its engine knows where it is."""
    return row.state == "queued" or (row.launcher not in _LOCAL_LAUNCHERS and row.state != "lost")


def _is_attended(runs_dir: Path, job_id: str) -> bool:
    """Whether the job's door is there, or its run's folder is still being made."""
    if not is_id(job_id):
        return False
    locks = (launch_lock(runs_dir, job_id), runs_dir / ".trn" / "staging" / job_id / ".lock")
    return any(is_locked(lock) is not None for lock in locks)


def _may_be_attended(runs_dir: Path, job_id: str) -> bool:
    try:
        return _is_attended(runs_dir, job_id)
    except OSError:
        return True


def _holder(run_dir: Path) -> str | None:
    """The job that holds the run's lock, "" where it has not said so yet, None where nobody does."""
    try:
        note = is_locked(run_dir / ".lock")
    except NotADirectoryError:
        return None
    if note is None:
        return None
    found = _HOLDER.search(note)
    return found[1] if found and is_id(found[1]) else ""


def _ended(row: JobRow, outcome: Outcome) -> JobRow:
    return replace(
        row,
        job_id=outcome.job_id,
        state=outcome.status,
        reason=outcome.reason,
        exit_code=outcome.exit_code,
        started_at=row.started_at or outcome.started_at,
        ended_at=outcome.ended_at,
    )


def record_lost(store: Store) -> list[JobRow]:
    """Bring rows up to what the disk says where their door cannot any more; returns the new rows.

    A job whose door is there is left alone, ended or not: its row, its lock and its log are that door's to finish.
    """
    recorded = []
    for row in store.list(states=OPEN_STATES):
        if _may_be_attended(store.runs_dir, row.job_id):
            continue
        seen = observe(row, store.runs_dir)
        if seen.state in OPEN_STATES:
            continue
        moved = store.swap(
            row,
            seen.state,
            exit_code=seen.exit_code,
            reason=seen.reason,
            started_at=seen.started_at,
            ended_at=seen.ended_at or utc_now(),
        )
        if moved is not None:
            if is_id(row.job_id):
                remove(launch_lock(store.runs_dir, row.job_id))
            recorded.append(moved)
    return recorded
