"""How a job ended whose runner is gone: its own outcome, or the one that its door writes in its place.

A runner that is killed can write nothing more. Its door then takes the run's lock and completes what is missing, so
that the folder tells one ending, in both places, whenever somebody was there to see it:

    outcome.json   ending event
    there          there            nothing to do
    there          missing          the event is written from the outcome
    missing        there            the outcome is written from the event
    missing        missing          `crashed` (71), `cancelled` (92) where a SIGINT did it, or `io_error` (74);
                                    `out_of_memory` (89) or `time_limit` (93) where its launcher saw that;
                                    `crashed` too of a job whose run another one took;
                                    of several ranks, what the first that failed says, or `rank_lost` (87) if killed

A door can be late: stopped with Ctrl-Z while another job took the run up, and perhaps completed it. outcome.json is
then of that job and is not touched: the late ending goes to reports/outcomes/<job_id>.json, and its event to the end
of the journal. The order of jobs is therefore that of their first events, never that of their endings.

A job that left nothing in the run's folder was refused, or was stopped before it began: nothing is written for it.
"""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trn.checkpoint.meta import CheckpointMeta, listed_steps, meta_name
from trn.errors import STATUS, StorageError, exit_code
from trn.files import Lock, holder_note, last_line, make_folder, move, write_atomic
from trn.jobs.folders import checked_id, outcome_of
from trn.journal import EventLog
from trn.records import (
    ENDINGS,
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
_FALLEN = {exit_code(word): word for word in ("rank_lost", "hang", "crashed", "out_of_memory", "time_limit")}
"""Exit statuses that are never a refusal: a rank gives them when another one is gone, a launcher for what it ended."""
_LOCK_WAIT_S = 5.0
_FREQUENT = (b'{"event":"metric"', b'{"event":"heartbeat"')


@dataclass(frozen=True)
class Ending:
    """How a job ended: the state for its row, the exit status of its door, and the outcome if the run has one.

    `problem` says why the folder could not be completed, "" when it was. `is_lost`: it was no decision of the run, and
    a new job can go on from the last checkpoint.
    """

    state: str
    exit_code: int
    reason: str
    outcome: Outcome | None = None
    problem: str = ""
    is_lost: bool = False


def settle(
    row: JobRow, returncode: int, forwarded: Collection[int] = (), failure: tuple[int, str] | None = None
) -> Ending:
    """The ending of a job whose runner exited with `returncode` (negative: killed by that signal).

    `forwarded` are the signals that the door passed on; `failure` what the launcher knows better: the exit status and
    the reason of the first rank that failed, or of what it has ended itself, which then count in the place of the
    child's. Writes what is missing in the run's folder, see above;
    where another job holds the run by now, nothing is written.
    """
    if failure is not None:
        returncode = failure[0]
    crash = _crash(returncode, forwarded, "" if failure is None else failure[1])
    ending = _settle(row, returncode, forwarded, crash)
    was_killed = returncode < 0 and ending.state == "crashed"
    return replace(ending, is_lost=was_killed or ending.state in ("rank_lost", "hang"))


def _settle(row: JobRow, returncode: int, forwarded: Collection[int], crash: Json) -> Ending:
    run_dir = Path(row.run_dir)
    outcome = outcome_of(run_dir, row.job_id)
    if outcome is not None and _is_ending(_last_event(run_dir), row.job_id):
        return _ending(outcome)
    journal = _read_journal(run_dir)
    if outcome is None and not _has_begun(run_dir, row.job_id, journal, returncode):
        return _not_begun(run_dir, returncode, forwarded, crash)
    seen = _look(row, len(journal))
    if seen.is_whole:
        return _ending(seen.outcome_or(crash))
    lock = Lock(run_dir / ".lock")
    try:
        if not lock.acquire(holder_note(row.job_id), wait_s=_LOCK_WAIT_S):
            return _ending(seen.outcome_or(crash))
    except StorageError as error:
        return replace(_ending(seen.outcome_or(crash)), problem=str(error))
    try:
        # whatever was read before may be old: another job can have come and gone
        seen = _look(row, len(journal))
        if seen.later and not seen.has_traces:
            return _not_begun(run_dir, returncode, forwarded, crash)
        return _complete(seen, crash)
    finally:
        lock.release()


def _ending(outcome: Outcome) -> Ending:
    return Ending(outcome.status, outcome.exit_code, outcome.reason, outcome)


# What the folder says


@dataclass(frozen=True)
class _Seen:
    """What the run's folder has of a job: its outcome, its ending event, and the jobs that began after it."""

    row: JobRow
    journal: list[Json]
    outcome: Outcome | None
    said: Json | None
    later: frozenset[str]

    @property
    def is_whole(self) -> bool:
        return self.outcome is not None and self.said is not None

    @property
    def has_traces(self) -> bool:
        return self.outcome is not None or any(event.get("job_id") == self.row.job_id for event in self.journal)

    def outcome_or(self, crash: Json) -> Outcome:
        """The job's outcome; where it has none, one from its ending event, else from `crash`."""
        return self.outcome or _outcome(self, self.said or crash)


def _look(row: JobRow, known: int) -> _Seen:
    """Read the folder; a job without an event began when the journal had `known` of them."""
    run_dir = Path(row.run_dir)
    journal = _read_journal(run_dir)
    said = next((event for event in reversed(journal) if _is_ending(event, row.job_id)), None)
    return _Seen(row, journal, outcome_of(run_dir, row.job_id), said, _later_jobs(row, journal, known))


def _later_jobs(row: JobRow, journal: list[Json], known: int) -> frozenset[str]:
    """The jobs whose first event comes after this one's first, and the job of a newer outcome."""
    firsts: dict[str, int] = {}
    for index, event in enumerate(journal):
        if job_id := _job_of(event):
            firsts.setdefault(job_id, index)
    begun = firsts.get(row.job_id, known - 1)
    later = {job_id for job_id, index in firsts.items() if index > begun}
    current = outcome_of(Path(row.run_dir), "")
    if current is not None and current.job_id not in {row.job_id, *firsts}:
        # its door was killed before it wrote the event: only the clock can tell
        since = str(journal[begun].get("ts", "")) if row.job_id in firsts else row.submitted_at
        later |= {current.job_id} if current.ended_at > since else set()
    return frozenset(later)


def _is_ending(event: Json, job_id: str) -> bool:
    is_ending = str(event.get("event")) in ENDINGS and str(event.get("outcome")) in STATUS
    return is_ending and event.get("job_id") == job_id


def _last_event(run_dir: Path) -> Json:
    with contextlib.suppress(JsonError, NotADirectoryError):
        event = from_json(last_line(run_dir / "reports" / "events.jsonl") or b"{}")
        return event if isinstance(event, dict) else {}
    return {}


def _job_of(event: Json) -> str:
    """The job that wrote the event, "" where it names none."""
    job_id = event.get("job_id")
    return job_id if isinstance(job_id, str) else ""


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
    return (
        returncode not in _EXITS - set(_FALLEN) and _last_holder(run_dir) == job_id and outcome_of(run_dir, "") is None
    )


def _last_holder(run_dir: Path) -> str:
    """The job whose note is in the run's lock file, whether it still holds it or not."""
    try:
        found = re.search(r"\bjob=(\S+)", (run_dir / ".lock").read_text(errors="replace"))
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return found[1] if found else ""


# What follows from it


def _not_begun(run_dir: Path, returncode: int, forwarded: Collection[int], crash: Json) -> Ending:
    """The runner left before the run's folder had anything of this job."""
    before = outcome_of(run_dir, "")
    if before is not None and before.exit_code == returncode and not before.resumable:
        return Ending(before.status, returncode, "the run had ended before, and its outcome stands", before)
    if returncode in _SPOKEN or (forwarded and returncode not in _EXITS):
        state = _SPOKEN.get(returncode) or ("cancelled" if signal.SIGINT in forwarded else "preempted")
        return Ending(state, exit_code(state), "nothing was begun")
    if returncode in _EXITS - set(_FALLEN) and returncode != 0:
        return Ending("rejected", returncode, "refused")
    return Ending(crash["outcome"], crash["exit_code"], crash["reason"])


def _crash(returncode: int, forwarded: Collection[int], said: str) -> Json:
    """The ending event of a runner that wrote neither event nor outcome; `said` is of the rank that failed first."""
    how = f"was killed by {_signal_name(-returncode)}" if returncode < 0 else f"exited with {returncode}"
    by_user = signal.SIGINT in forwarded and returncode == -signal.SIGINT
    status = "rank_lost" if said and returncode < 0 else (_SPOKEN | _FALLEN).get(returncode, "crashed")
    status = "cancelled" if by_user else status
    if returncode == exit_code("resume_refused"):  # of a job that had begun: see trn.runner.fence
        said = said or "another process took the run meanwhile, and this one wrote nothing more"
    return {
        "outcome": status,
        "exit_code": exit_code(status),
        "reason": said or f"the runner {how} without an outcome",
    }


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _outcome(seen: _Seen, ending: Json) -> Outcome:
    """An outcome from what the folder has; values that only the runner knew (final, best) stay null."""
    row, run_dir = seen.row, Path(seen.row.run_dir)
    first = next((event for event in seen.journal if event.get("job_id") == row.job_id), {})
    plan = _plan(seen)
    budget = plan.get("budget")
    steps_per_epoch = _whole(budget.get("steps_per_epoch")) if isinstance(budget, dict) else 0
    step = _whole(ending.get("step")) or (_step_before_later(seen) if seen.later else _count_lines(run_dir))
    return Outcome(
        status=ending["outcome"],
        reason=str(ending.get("reason") or ending["outcome"]),
        step=step,
        run_id=row.run_id,
        job_id=row.job_id,
        epochs_completed=step // steps_per_epoch if steps_per_epoch > 0 else 0,
        plan_fingerprint=str(plan.get("fingerprint") or ""),
        started_at=str(first.get("ts") or row.started_at or row.submitted_at),
        ended_at=utc_now(),
        resumable=exit_code(ending["outcome"]) != 0,
        checkpoint=_last_checkpoint(run_dir, seen.later),
    )


def _plan(seen: _Seen) -> Json:
    """The plan that the job ran: the run's own, or where a later job may have revised it, the one announced before."""
    reports = Path(seen.row.run_dir) / "reports"
    announced = ""
    for event in seen.journal:
        if _job_of(event) in seen.later:
            break
        if event.get("event") == "plan_written":
            announced = str(event.get("fingerprint", ""))
    for path in (reports / "resolved_config.json", *sorted((reports / "plans").glob("*.json"))):
        with contextlib.suppress(JsonError, OSError):
            plan = read_json(path)
            if "fingerprint" in plan and (not seen.later or announced in ("", plan["fingerprint"])):
                return plan
    return {"fingerprint": announced}


def _last_checkpoint(run_dir: Path, later: Collection[str]) -> Json | None:
    """The newest checkpoint that was committed, not by a `later` job; its file is not read."""
    folder = run_dir / "checkpoints"
    for step in listed_steps(folder):
        with contextlib.suppress(JsonError, FileNotFoundError):
            meta = CheckpointMeta.read(folder / meta_name(step))
            if meta.job_id not in later:
                return {"file": f"checkpoints/{meta.file}", "sha256": meta.sha256, "step": step}
    return None


def _count_lines(run_dir: Path) -> int:
    """How many whole lines the metrics have, one a step."""
    count = 0
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
        open(run_dir / "reports" / "train_metrics.jsonl", "rb") as stream,
    ):
        while block := stream.read(1 << 20):
            count += block.count(b"\n")
    return count


def _step_before_later(seen: _Seen) -> int:
    """The last step of a job whose metrics a later one has cut: from its own events, and from what was cut."""
    steps = [0]
    next_job = ""
    for event in seen.journal:
        if _job_of(event) == seen.row.job_id:
            steps.append(_whole(event.get("step")))
        elif _job_of(event) in seen.later:
            next_job = next_job or _job_of(event)
            if _job_of(event) == next_job and event.get("event") in ("metrics_cut", "resumed"):
                is_cut = str(event.get("side_file", "")).startswith("reports/train_metrics.")
                steps.append(_whole(event.get("from_step")) + (_whole(event.get("lines")) if is_cut else 0))
    return max(steps)


def _whole(value: object) -> int:
    """A count from a file; 0 for what is none."""
    return value if isinstance(value, int) else 0


# Writing it down


def _complete(seen: _Seen, crash: Json) -> Ending:
    """Write what is missing, as the holder of the run's lock."""
    run_dir, outcome = Path(seen.row.run_dir), seen.outcome_or(crash)
    try:
        if seen.outcome is None:
            _publish(run_dir / "reports", outcome, is_late=bool(seen.later))
        if seen.said is None:
            log = EventLog(run_dir / "reports" / "events.jsonl", run_id=outcome.run_id, job_id=outcome.job_id)
            fields = {key: getattr(outcome, key) for key in ("exit_code", "reason", "step")}
            log.emit(ending_of(outcome.status), outcome=outcome.status, **fields)
            log.close()
    except StorageError as error:
        return replace(_ending(outcome), problem=str(error))
    return _ending(outcome)


def _publish(reports: Path, outcome: Outcome, *, is_late: bool) -> None:
    """Make it the run's outcome; the one of an earlier job moves aside under that job's id.

    Where it is late, it goes aside itself: outcome.json is then a later job's, or that job's to write.
    """
    current = reports / "outcome.json"
    if is_late:
        current = make_folder(reports / "outcomes") / f"{checked_id(outcome.job_id)}.json"
    elif earlier := outcome_of(reports.parent, ""):
        move(current, make_folder(reports / "outcomes") / f"{earlier.job_id}.json")
    write_atomic(current, pretty_json(outcome.to_json()))
