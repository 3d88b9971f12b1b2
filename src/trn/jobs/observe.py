"""The truth of a job, from the disk: who holds the run's lock, and which outcome lies in its folder.

A row says what its door knew last; a door can be killed, so the row alone is never believed:

    the run's `.lock` is held by this job                         running
    reports/outcome.json, or outcomes/<job_id>.json, is its own   that outcome
    its door, or the maker of its folder, holds a lock            as the row says
    none of these                                                 lost

Locks die with their holders, so no process id is ever asked. Reading changes nothing; `record_lost` is for doors that
write anyway.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from trn.errors import StorageError
from trn.files import is_locked, remove
from trn.jobs.store import Store
from trn.records import RESERVED_RUN_IDS, RUN_ID_PATTERN, JobRow, JsonError, Outcome, read_json, utc_now

__all__ = [
    "OPEN_STATES",
    "UNREADABLE",
    "checked_id",
    "launch_lock",
    "observe",
    "outcome_of",
    "record_lost",
    "row_of_folder",
    "rows_of_folders",
]

OPEN_STATES = frozenset({"submitted", "queued", "starting", "running"})
"""States that claim that somebody is at work."""

UNREADABLE = "its folder cannot be read: "
"""How the reason begins of a row that could not be looked at."""

_PLAN = Path("reports") / "resolved_config.json"
_LOST = "nobody holds the run any more, and no outcome was written"
_HOLDER = re.compile(r"\bjob=(\S+)")


def launch_lock(runs_dir: Path, job_id: str) -> Path:
    """The lock that a foreground door holds from before its job's row exists until after the row has its end."""
    return runs_dir / ".trn" / "launch" / f"{checked_id(job_id)}.lock"


def is_id(job_id: str) -> bool:
    """Whether it may be a part of a path; ids are read from files that anybody may have written."""
    return RUN_ID_PATTERN.fullmatch(job_id) is not None


def checked_id(job_id: str) -> str:
    """The id, for use in a path. Raises StorageError for one that could lead elsewhere."""
    if not is_id(job_id):
        raise StorageError(f"this is no job id: {job_id[:80]!r}.")
    return job_id


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
    return row if attended else replace(row, state="lost", reason=_LOST)


def _is_attended(runs_dir: Path, job_id: str) -> bool:
    """Whether the job's door is there, or its run's folder is still being made."""
    if not is_id(job_id):
        return False
    locks = (launch_lock(runs_dir, job_id), runs_dir / ".trn" / "staging" / job_id / ".lock")
    return any(is_locked(lock) is not None for lock in locks)


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


def outcome_of(run_dir: Path, job_id: str) -> Outcome | None:
    """How the job ended, from the run's folder; with job id "" how the run's last job did. None: no whole outcome."""
    reports = run_dir / "reports"
    paths = [reports / "outcome.json", *([reports / "outcomes" / f"{job_id}.json"] if is_id(job_id) else [])]
    for path in paths:
        try:
            outcome = Outcome.from_json(read_json(path))
        except (FileNotFoundError, NotADirectoryError, JsonError):
            continue
        if is_id(outcome.job_id) and job_id in (outcome.job_id, ""):
            return outcome
    return None


def rows_of_folders(runs_dir: Path, known: Collection[str]) -> list[JobRow]:
    """A row for each run in `runs_dir` whose id is not in `known`, the newest first: a lost store costs no run.

    The rows have no job id, the state `lost` and the time of the plan; `observe` completes those that are shown.
    """
    rows = []
    try:
        entries = list(os.scandir(runs_dir))
    except (FileNotFoundError, NotADirectoryError):
        return []
    for entry in entries:
        if entry.name in known or entry.name in RESERVED_RUN_IDS or not RUN_ID_PATTERN.fullmatch(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False) and (Path(entry.path) / _PLAN).is_file():
            rows.append(row_of_folder(Path(entry.path)))
    return sorted(rows, key=lambda row: row.submitted_at, reverse=True)


def row_of_folder(run_dir: Path) -> JobRow:
    """A row for a run of which no job is known, see `rows_of_folders`. Raises OSError where there is no plan."""
    planned = datetime.fromtimestamp((run_dir / _PLAN).stat().st_mtime, UTC)
    return JobRow(
        job_id="",
        run_id=run_dir.name,
        run_dir=str(run_dir),
        state="lost",
        config_path="",
        submitted_at=planned.isoformat(timespec="microseconds").replace("+00:00", "Z"),
    )


def record_lost(store: Store) -> list[JobRow]:
    """Bring rows up to what the disk says where their door cannot any more; returns the new rows."""
    recorded = []
    for row in store.list(states=OPEN_STATES):
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
