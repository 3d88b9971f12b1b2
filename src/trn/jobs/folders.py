"""What run folders tell of their jobs: how one ended, which jobs there were, and which runs there are at all.

A folder is a run if it has a plan. All here is read from files that anybody may have written, so an id is checked
before it becomes a part of a path. Nothing is changed. Not here: who holds a run now (observe).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trn.errors import StorageError
from trn.records import RESERVED_RUN_IDS, RUN_ID_PATTERN, JobRow, JsonError, Outcome, from_json, read_json

__all__ = [
    "checked_id",
    "is_id",
    "is_run",
    "jobs_of_folder",
    "names_of_runs",
    "outcome_of",
    "row_of_folder",
    "rows_of_folders",
]

_PLAN = os.path.join("reports", "resolved_config.json")
_BEGINNING = b'{"event":"job_started"'


def is_id(job_id: str) -> bool:
    """Whether it may be a part of a path; ids are read from files that anybody may have written."""
    return RUN_ID_PATTERN.fullmatch(job_id) is not None


def checked_id(job_id: str) -> str:
    """The id, for use in a path. Raises StorageError for one that could lead elsewhere."""
    if not is_id(job_id):
        raise StorageError(f"this is no job id: {job_id[:80]!r}.")
    return job_id


def outcome_of(run_dir: Path, job_id: str) -> Outcome | None:
    """How the job ended, from the run's folder; with job id "" how the run's last job did. None: no whole outcome."""
    reports = run_dir / "reports"
    paths = [reports / "outcome.json", *([reports / "outcomes" / f"{job_id}.json"] if is_id(job_id) else [])]
    for path in paths:
        outcome = _outcome_in(path)
        if outcome is not None and job_id in (outcome.job_id, ""):
            return outcome
    return None


def _outcome_in(path: Path) -> Outcome | None:
    try:
        outcome = Outcome.from_json(read_json(path))
    except (FileNotFoundError, NotADirectoryError, JsonError):
        return None
    return outcome if is_id(outcome.job_id) else None


# Runs by their folders


def names_of_runs(runs_dir: Path, known: Collection[str] = ()) -> list[str]:
    """What may be a run in `runs_dir`, by its name alone, and is not `known`. Raises OSError."""
    try:
        names = os.listdir(runs_dir)
    except (FileNotFoundError, NotADirectoryError):
        return []
    # the known ones are taken out first: of 100,000 folders, few are others
    return [name for name in set(names).difference(known) if name not in RESERVED_RUN_IDS and is_id(name)]


def is_run(folder: Path) -> bool:
    """Whether it is a folder with a plan in it; a link to one is none."""
    return os.path.isfile(os.path.join(folder, _PLAN)) and not folder.is_symlink()


def rows_of_folders(runs_dir: Path, known: Collection[str]) -> list[JobRow]:
    """A row for each run in `runs_dir` whose id is not in `known`, the newest first: a lost store costs no run.

    The rows have no job id, the state `lost` and the time of the plan; `observe` completes those that are shown.
    """
    folders = (runs_dir / name for name in names_of_runs(runs_dir, known))
    rows = [row_of_folder(folder) for folder in folders if is_run(folder)]
    return sorted(rows, key=lambda row: (row.submitted_at, row.run_id), reverse=True)


def row_of_folder(run_dir: Path) -> JobRow:
    """A row for a run of which no job is known, see `rows_of_folders`. Raises OSError where there is no plan."""
    planned = datetime.fromtimestamp((run_dir / _PLAN).stat().st_mtime, UTC)
    return JobRow(
        job_id="",
        run_id=run_dir.name,
        run_dir=str(run_dir),
        state="lost",
        config_path="",
        submitted_at=_utc(planned),
    )


# Jobs by their run's folder


def jobs_of_folder(run_dir: Path) -> list[JobRow]:
    """The jobs that have left something in a run's folder, in the order in which they began; those that were refused
    have not. What only a store knows, their spec and their process, is not in these rows, and one without an outcome
    is `running`, as far as the folder says. Raises OSError.
    """
    begun: dict[str, str] = {}
    for event in _beginnings(run_dir / "reports" / "events.jsonl"):
        job_id, ts = event.get("job_id"), event.get("ts")
        if isinstance(job_id, str) and is_id(job_id) and isinstance(ts, str) and _is_time(ts):
            begun.setdefault(job_id, ts)
    ended = {outcome.job_id: outcome for outcome in _outcomes(run_dir)}
    begun |= {job_id: one.started_at for job_id, one in ended.items() if job_id not in begun}
    rows = [_row(run_dir, job_id, started_at, ended.get(job_id)) for job_id, started_at in begun.items()]
    return sorted(rows, key=lambda row: row.submitted_at)


def _row(run_dir: Path, job_id: str, started_at: str, outcome: Outcome | None) -> JobRow:
    return JobRow(
        job_id=job_id,
        run_id=run_dir.name,
        run_dir=str(run_dir),
        state="running" if outcome is None else outcome.status,
        config_path="",
        submitted_at=_time_in(job_id) or started_at,
        started_at=started_at,
        ended_at=None if outcome is None else outcome.ended_at,
        exit_code=None if outcome is None else outcome.exit_code,
        reason=None if outcome is None else outcome.reason,
    )


def _beginnings(path: Path) -> Iterator[dict[str, Any]]:
    """The events with which jobs began; a damaged line is left out."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not be waited for
    except (FileNotFoundError, NotADirectoryError):
        return
    with open(fd, "rb") as stream:
        for line in stream:
            if line.startswith(_BEGINNING):
                try:
                    event = from_json(line)
                except JsonError:
                    continue
                yield event


def _outcomes(run_dir: Path) -> Iterator[Outcome]:
    reports = run_dir / "reports"
    try:
        earlier = sorted(os.listdir(reports / "outcomes"))
    except (FileNotFoundError, NotADirectoryError):
        earlier = []
    for path in (
        *(reports / "outcomes" / name for name in earlier if name.endswith(".json")),
        reports / "outcome.json",
    ):
        outcome = _outcome_in(path)
        if outcome is not None and _is_time(outcome.started_at) and _is_time(outcome.ended_at):
            yield outcome


def _time_in(job_id: str) -> str | None:
    """When a job was submitted, to the microsecond, as our own ids say; None of an id that is not ours."""
    try:
        return _utc(datetime.strptime(job_id[: len("job-20260101-000000-000000")], "job-%Y%m%d-%H%M%S-%f"))
    except ValueError:
        return None


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _utc(moment: datetime) -> str:
    """As `records.utc_now` writes it."""
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
