"""Bring a run back to its newest good checkpoint: the state, the random streams, the journal, the folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trn.checkpoint import rng
from trn.checkpoint.discover import Found, load_payload, set_aside_later
from trn.checkpoint.meta import CheckpointMeta, checkpoint_name
from trn.errors import ResumeRefused, TrnError
from trn.files import sweep
from trn.journal import EventLog, MetricsLog
from trn.loop.cadences import derived_seed
from trn.loop.progress import Progress
from trn.records import EMPTY, Json, JsonError, read_lines
from trn.spec.plan_model import Plan
from trn.trainer import Context, Trainer

__all__ = ["Restored", "announced_steps", "apply_state", "is_announced", "progress_of", "restore_folder"]


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


def progress_of(meta: CheckpointMeta) -> Progress:
    """Where the run stood. Raises ResumeRefused for what this version does not write."""
    try:
        return Progress.from_json(meta.progress)
    except JsonError as error:
        raise ResumeRefused(
            f"{error}.", where=f"checkpoints/{meta.file}", hint="Another version of trn made it."
        ) from error


def apply_state(plan: Plan, meta: CheckpointMeta, trainer: Trainer, state: Any, ctx: Context) -> None:
    """Give the trainer its state back, then every random stream. Raises ResumeRefused when a part is missing."""
    where = f"checkpoints/{meta.file}"
    try:
        payload = load_payload(Path(plan.run_dir), meta)
        missing = {"trainer", "progress", "rng"} - set(payload)
        if missing or payload["progress"] != meta.progress or not payload["rng"]:
            raise ResumeRefused("its parts and its meta do not fit together.", where=where)
        trainer.load_state_dict(state, payload["trainer"], ctx)
        if ctx.rank < len(payload["rng"]):
            rng.restore(payload["rng"][ctx.rank])
        else:  # a rank that the run did not have so far
            rng.seed_all(derived_seed(plan.seed, f"rank {ctx.rank}", meta.step))
    except TrnError:
        raise
    except Exception as error:  # whatever a file or a trainer may do to the loader
        first = (str(error).splitlines() or [""])[0]
        raise ResumeRefused(f"it cannot be loaded: {type(error).__name__}: {first}", where=where) from error


def is_announced(plan: Plan) -> bool:
    """Whether the journal tells of this revision of the plan."""
    try:
        found = [event.get("fingerprint") for event in read_lines(Path(plan.run_dir) / "reports/events.jsonl")]
    except JsonError:
        return False  # a damaged line hides what came after it: to say it twice does no harm
    return plan.fingerprint in found


def announced_steps(run_dir: Path) -> set[int]:
    """Steps whose commit the events tell of and that no later resume went back behind."""
    steps: set[int] = set()
    try:
        for event in read_lines(run_dir / "reports/events.jsonl"):
            if event.get("event") == "checkpoint":
                steps.add(int(event["step"]))
            elif event.get("event") == "checkpoint_rejected":
                steps -= {step for step in steps if checkpoint_name(step) == event.get("file")}
            elif event.get("event") == "resumed":
                steps = {step for step in steps if step <= int(event["from_step"])}
    except (JsonError, KeyError, TypeError, ValueError):
        return steps  # a damaged line hides what came after it; the metas still speak for themselves
    return steps
