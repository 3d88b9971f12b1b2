"""Bring a run's folder back to a checkpoint: the journal, what came later. Its state: see reopen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trn.checkpoint.discover import Found, set_aside_later
from trn.checkpoint.meta import CheckpointMeta, listed_steps
from trn.files import sweep
from trn.journal import EventLog, MetricsLog
from trn.loop.progress import Progress
from trn.records import EMPTY, Json, JsonError, read_lines
from trn.reopen import progress_of
from trn.spec.plan_model import Plan

__all__ = ["Restored", "is_announced", "is_untouched", "restore_folder"]


@dataclass(frozen=True)
class Restored:
    """Where a resumed run stands; `meta` is None when no checkpoint was ever committed."""

    meta: CheckpointMeta | None
    progress: Progress
    last_line: Json


def restore_folder(
    plan: Plan,
    found: Found,
    job_id: str,
    events: EventLog,
    metrics: MetricsLog,
    val_metrics: MetricsLog,
    *,
    is_named: bool = False,
) -> Restored:
    """Cut the metrics back to the checkpoint that was found and set later files aside; says each in an event.

    `is_named`: whether the user named it.
    """
    run_dir = Path(plan.run_dir)
    for file, reason in found.rejected:
        events.emit("checkpoint_rejected", file=file, reason=reason)
    meta = found.meta
    progress = Progress() if meta is None else progress_of(meta)
    positions = {} if meta is None else meta.positions()
    for log in (metrics, val_metrics):
        side_file = log.path.with_name(f"{log.path.stem}.cut-{job_id}.jsonl")
        if cut := log.cut_to(positions.get(log.path.name, EMPTY), side_file):
            events.emit("metrics_cut", from_step=progress.step, lines=cut, side_file=f"reports/{side_file.name}")
    epochs_over = progress.step // plan.budget.steps_per_epoch
    set_aside_later(run_dir, step=progress.step, epochs_over=epochs_over, best_step=progress.best_step, job_id=job_id)
    for name in ("", "reports", "reports/outcomes", "reports/plans", "samples"):
        if (run_dir / name).is_dir():
            sweep(run_dir / name)
    events.emit("resumed", from_step=progress.step, checkpoint=None if meta is None else meta.file, named=is_named)
    return Restored(meta, progress, {} if meta is None else meta.metrics)


def is_untouched(run_dir: Path, *, is_fork: bool) -> bool:
    """Whether no job has told or made anything of the run yet: it was planned, and is still to begin.

    A fork begins with a checkpoint and the metrics up to it.
    """
    if not _is_empty(run_dir / "reports/events.jsonl"):
        return False
    return is_fork or (_is_empty(run_dir / "reports/train_metrics.jsonl") and not listed_steps(run_dir / "checkpoints"))


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except FileNotFoundError:
        return True


def is_announced(plan: Plan) -> bool:
    """Whether the journal tells of this revision of the plan."""
    try:
        found = [event.get("fingerprint") for event in read_lines(Path(plan.run_dir) / "reports/events.jsonl")]
    except JsonError:
        return False  # a damaged line hides what came after it: to say it twice does no harm
    return plan.fingerprint in found
