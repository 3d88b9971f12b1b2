"""The one ending of a job: outcome.json, published whole, then the event that says the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from trn.checkpoint.meta import CheckpointMeta, listed_steps, meta_name
from trn.errors import STATUS, ResumeRefused
from trn.files import make_folder, move, sha256_file, write_atomic
from trn.journal import EventLog
from trn.loop.progress import Progress
from trn.records import ENDINGS, Json, JsonError, Outcome, ending_of, pretty_json, read_json, read_lines, utc_now
from trn.spec.plan_model import Plan

__all__ = ["archive_outcome", "mend_journal", "publish_outcome", "read_outcome", "report"]

OUTCOME_NAME = "reports/outcome.json"
_HASHED = ("reports/resolved_config.json", "reports/train_metrics.jsonl", "reports/val_metrics.jsonl")


def read_outcome(run_dir: Path) -> Outcome | None:
    """The outcome in the folder, None where there is none. Raises ResumeRefused for one that is damaged."""
    path = run_dir / OUTCOME_NAME
    if not path.is_file():
        return None
    try:
        return Outcome.from_json(read_json(path))
    except JsonError as error:
        raise ResumeRefused(
            f"this is not an outcome: {error}.", where=str(path), hint="Remove it to resume from the last checkpoint."
        ) from error


def report(outcome: Outcome, run_dir: Path) -> int:
    """Say again how a finished run ended; changes nothing. Returns its exit status."""
    print(f"{run_dir} is finished: {outcome.status} at step {outcome.step}.", file=sys.stderr)
    return outcome.exit_code


def archive_outcome(run_dir: Path, outcome: Outcome) -> None:
    """Move the outcome of an earlier job to reports/outcomes/<job_id>.json, so that a job has at most its own."""
    move(run_dir / OUTCOME_NAME, make_folder(run_dir / "reports/outcomes") / f"{outcome.job_id}.json")


def publish_outcome(
    plan: Plan,
    *,
    job_id: str,
    status: str,
    reason: str,
    progress: Progress,
    events: EventLog,
    started_at: str,
    inexact_because: list[str] | None = None,
) -> Outcome:
    """Write outcome.json, then its event. Raises StorageError.

    `inexact_because` is for a loop of the user's own: what keeps a resume of it from being exact, where anything does.
    """
    run_dir = Path(plan.run_dir)
    outcome = Outcome(
        status=status,
        reason=reason,
        step=progress.step,
        run_id=plan.run_id,
        job_id=job_id,
        epochs_completed=progress.step // plan.budget.steps_per_epoch,
        plan_fingerprint=plan.fingerprint,
        started_at=started_at,
        ended_at=utc_now(),
        resumable=STATUS[status].exit != 0,
        final=progress.validation,
        best=progress.best,
        checkpoint=_last_checkpoint(run_dir),
        artifacts={name: sha256_file(run_dir / name) for name in _HASHED if (run_dir / name).is_file()},
        exact=None if inexact_because is None else not inexact_because,
        inexact_because=inexact_because,
    )
    write_atomic(run_dir / OUTCOME_NAME, pretty_json(outcome.to_json()))
    _emit_ending(events, outcome)
    return outcome


def mend_journal(plan: Plan, outcome: Outcome) -> None:
    """Write the event of an outcome whose job was killed between the two. The caller has the lock."""
    path = Path(plan.run_dir) / "reports/events.jsonl"
    if any(event.get("event") in ENDINGS and event.get("job_id") == outcome.job_id for event in read_lines(path)):
        return
    events = EventLog(path, run_id=plan.run_id, job_id=outcome.job_id)
    _emit_ending(events, outcome)
    events.close()


def _emit_ending(events: EventLog, outcome: Outcome) -> None:
    fields: dict[str, Any] = {"outcome": outcome.status, "exit_code": outcome.exit_code}
    events.emit(ending_of(outcome.status), **fields, reason=outcome.reason, step=outcome.step)


def _last_checkpoint(run_dir: Path) -> Json | None:
    folder = run_dir / "checkpoints"
    for step in listed_steps(folder):
        try:
            meta = CheckpointMeta.read(folder / meta_name(step))
        except (JsonError, OSError):
            continue
        return {"file": f"checkpoints/{meta.file}", "sha256": meta.sha256, "step": meta.step}
    return None
