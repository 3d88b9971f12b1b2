"""How a job ended whose runner is gone: its own outcome, or the one that its door writes in its place.

A runner that is killed can write nothing more. Its door then takes the run's lock and completes what is missing, so
that the folder tells one ending, in both places, whenever somebody was there to see it:

    outcome.json   ending event
    there          there            nothing to do
    there          missing          the event is written from the outcome
    missing        there            the outcome is written from the event
    missing        missing          `crashed` (71), `cancelled` (92) where a SIGINT did it, or `io_error` (74)

A job that left nothing in the run's folder was refused, or was stopped before it began: nothing is written for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trn.checkpoint.meta import CheckpointMeta, listed_steps, meta_name
from trn.errors import STATUS, StorageError, exit_code
from trn.files import Lock, last_line, make_folder, move, write_atomic
from trn.jobs.observe import outcome_of
from trn.journal import EventLog
from trn.records import (
    ENDINGS,
    RUN_ID_PATTERN,
    JobRow,
    JsonError,
    Outcome,
    ending_of,
    from_json,
    pretty_json,
    read_json,
    utc_now,
)

__all__ = ["Ending", "settle"]

Json = dict[str, Any]

_EXITS = frozenset(status.exit for status in STATUS.values())
_SPOKEN = {exit_code(word): word for word in ("io_error", "preempted", "cancelled")}
"""Exit statuses that only the runner itself gives, also where it could not write an outcome."""
_LOCK_WAIT_S = 5.0
_FREQUENT = (b'{"event":"metric"', b'{"event":"heartbeat"')


@dataclass(frozen=True)
class Ending:
    """How a job ended: the state for its row, the exit status of its door, and the outcome if the run has one.

    `problem` says why the folder could not be completed, "" when it was.
    """

    state: str
    exit_code: int
    reason: str
    outcome: Outcome | None = None
    problem: str = ""


def settle(row: JobRow, returncode: int, forwarded: Collection[int] = ()) -> Ending:
    """The ending of a job whose runner exited with `returncode` (negative: killed by that signal).

    `forwarded` are the signals that the door passed on. Writes what is missing in the run's folder, see above; where
    another job holds the run by now, nothing is written.
    """
    run_dir = Path(row.run_dir)
    outcome = outcome_of(run_dir, row.job_id)
    if outcome is not None and _is_ending(_last_event(run_dir), row.job_id):
        return _ending(outcome)
    journal = _read_journal(run_dir)
    if outcome is None and not _has_begun(run_dir, row.job_id, journal, returncode):
        return _not_begun(run_dir, returncode, forwarded)
    said = next((event for event in reversed(journal) if _is_ending(event, row.job_id)), None)
    found = outcome or _outcome(row, journal, said or _crash(returncode, forwarded))
    try:
        _complete(run_dir, found, write_outcome=outcome is None, write_event=said is None)
    except StorageError as error:
        return replace(_ending(found), problem=str(error))
    return _ending(found)


def _ending(outcome: Outcome) -> Ending:
    return Ending(outcome.status, outcome.exit_code, outcome.reason, outcome)


# What the folder says


def _is_ending(event: Json, job_id: str) -> bool:
    is_ending = str(event.get("event")) in ENDINGS and str(event.get("outcome")) in STATUS
    return is_ending and event.get("job_id") == job_id


def _last_event(run_dir: Path) -> Json:
    with contextlib.suppress(JsonError, NotADirectoryError):
        event = from_json(last_line(run_dir / "reports" / "events.jsonl") or b"{}")
        return event if isinstance(event, dict) else {}
    return {}


def _read_journal(run_dir: Path) -> list[Json]:
    """The run's events without the frequent kinds, which would cost a second per 100,000; damaged lines left out."""
    events: list[Json] = []
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
        open(run_dir / "reports" / "events.jsonl", "rb") as stream,
    ):
        for line in stream:
            if line.startswith(_FREQUENT):
                continue
            with contextlib.suppress(JsonError):
                event = from_json(line)
                events.extend([event] if isinstance(event, dict) else [])
    return events


def _has_begun(run_dir: Path, job_id: str, journal: list[Json], returncode: int) -> bool:
    """Whether the run has anything of this job: an event, or a fresh folder that it died over."""
    if any(event.get("job_id") == job_id for event in journal):
        return True
    return returncode not in _EXITS and _last_holder(run_dir) == job_id and outcome_of(run_dir, "") is None


def _last_holder(run_dir: Path) -> str:
    """The job whose note is in the run's lock file, whether it still holds it or not."""
    try:
        found = re.search(r"\bjob=(\S+)", (run_dir / ".lock").read_text(errors="replace"))
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return found[1] if found else ""


# What follows from it


def _not_begun(run_dir: Path, returncode: int, forwarded: Collection[int]) -> Ending:
    """The runner left before the run's folder had anything of this job."""
    before = outcome_of(run_dir, "")
    if before is not None and before.exit_code == returncode and not before.resumable:
        return Ending(before.status, returncode, "the run had ended before, and its outcome stands", before)
    if returncode in _SPOKEN or (forwarded and returncode not in _EXITS):
        state = _SPOKEN.get(returncode) or ("cancelled" if signal.SIGINT in forwarded else "preempted")
        return Ending(state, exit_code(state), "nothing was begun")
    if returncode in _EXITS and returncode != 0:
        return Ending("rejected", returncode, "refused")
    crash = _crash(returncode, forwarded)
    return Ending(crash["outcome"], crash["exit_code"], crash["reason"])


def _crash(returncode: int, forwarded: Collection[int]) -> Json:
    """The ending event of a runner that wrote neither event nor outcome."""
    how = f"was killed by {_signal_name(-returncode)}" if returncode < 0 else f"exited with {returncode}"
    by_user = signal.SIGINT in forwarded and returncode == -signal.SIGINT
    status = "cancelled" if by_user else _SPOKEN.get(returncode, "crashed")
    return {"outcome": status, "exit_code": exit_code(status), "reason": f"the runner {how} without an outcome"}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _outcome(row: JobRow, journal: list[Json], ending: Json) -> Outcome:
    """An outcome from what the journal has; values that only the runner knew (final, best) stay null."""
    last = {str(event.get("event")): event for event in journal}
    first = next((event for event in journal if event.get("job_id") == row.job_id), {})
    return Outcome(
        status=ending["outcome"],
        reason=str(ending.get("reason") or ending["outcome"]),
        step=_whole(ending.get("step")) or _last_step(Path(row.run_dir)),
        run_id=row.run_id,
        job_id=row.job_id,
        epochs_completed=_whole(last["epoch"].get("epoch")) + 1 if "epoch" in last else 0,
        plan_fingerprint=str(last.get("plan_written", {}).get("fingerprint", "")),
        started_at=str(first.get("ts") or row.started_at or row.submitted_at),
        ended_at=utc_now(),
        resumable=exit_code(ending["outcome"]) != 0,
        checkpoint=_last_checkpoint(Path(row.run_dir)),
    )


def _last_checkpoint(run_dir: Path) -> Json | None:
    """The newest checkpoint that was committed; its file is not read."""
    folder = run_dir / "checkpoints"
    for step in listed_steps(folder):
        with contextlib.suppress(JsonError, FileNotFoundError):
            meta = CheckpointMeta.read(folder / meta_name(step))
            return {"file": f"checkpoints/{meta.file}", "sha256": meta.sha256, "step": step}
    return None


def _last_step(run_dir: Path) -> int:
    """The last step that has a line in the metrics, 0 without one."""
    with contextlib.suppress(JsonError):
        line = from_json(last_line(run_dir / "reports" / "train_metrics.jsonl") or b"{}")
        return _whole(line.get("step")) if isinstance(line, dict) else 0
    return 0


def _whole(value: object) -> int:
    """A count from a file; 0 for what is none."""
    return value if isinstance(value, int) else 0


# Writing it down


def _complete(run_dir: Path, outcome: Outcome, *, write_outcome: bool, write_event: bool) -> None:
    """Write what is missing, as the holder of the run's lock; nothing where somebody else holds it."""
    lock = Lock(run_dir / ".lock")
    if not lock.acquire(note=f"pid={os.getpid()} job={outcome.job_id}", wait_s=_LOCK_WAIT_S):
        return
    try:
        if write_outcome:
            _publish(run_dir / "reports", outcome)
        if write_event:
            log = EventLog(run_dir / "reports" / "events.jsonl", run_id=outcome.run_id, job_id=outcome.job_id)
            fields = {key: getattr(outcome, key) for key in ("exit_code", "reason", "step")}
            log.emit(ending_of(outcome.status), outcome=outcome.status, **fields)
            log.close()
    finally:
        lock.release()


def _publish(reports: Path, outcome: Outcome) -> None:
    """Make it the run's outcome; the one of an earlier job moves aside under that job's id."""
    current = reports / "outcome.json"
    try:
        earlier = Outcome.from_json(read_json(current)).job_id
    except (FileNotFoundError, JsonError):
        earlier = ""
    if RUN_ID_PATTERN.fullmatch(earlier):
        move(current, make_folder(reports / "outcomes") / f"{earlier}.json")
    write_atomic(current, pretty_json(outcome.to_json()))
