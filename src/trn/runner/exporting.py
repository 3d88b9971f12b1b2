"""The export at the end of a run: made of a checkpoint on the disk, as `trn export` would make it, before the outcome.

    keep_export_rows    before the first batch: the rows that an export is held against, kept in the folder for good
    export_at_end       after a good end: exports/ and the parity report; what does not pass changes the ending

A run whose weights cannot be exported, or compute something else there, has not met its goal: `parity_failed`, or, with
`export.parity_policy: warn`, an event that says so. Its checkpoints stand, and a resume only exports again.
"""

from __future__ import annotations

from pathlib import Path

from trn.errors import STATUS, Stopped, StorageError, TrnError
from trn.export import ROWS_NAME, Exported, export_checkpoint, fail_parity, keep_rows, skip_parity
from trn.journal import EventLog
from trn.loop.loop import Ending
from trn.loop.stop import StopRequest
from trn.records import JsonError, read_json
from trn.reopen import reopen
from trn.runner.company import is_out_of_memory
from trn.runner.console import say
from trn.spec.plan_model import Plan
from trn.trainer import Trainer
from trn.trainer.exporting import has_export

__all__ = ["export_at_end", "keep_export_rows"]

_WAIT_S = 600.0
"""For a `trn export` of this run that somebody began before its end."""


def keep_export_rows(plan: Plan, trainer: Trainer) -> None:
    """Keep some rows where the trainer can export, now or ever. Raises DataError, StorageError."""
    run_dir = Path(plan.run_dir)
    if has_export(trainer) and not (run_dir / ROWS_NAME).exists():
        keep_rows(plan, run_dir)


def export_at_end(plan: Plan, events: EventLog, ending: Ending, stop: StopRequest) -> Ending:
    """The ending of the run, once its best checkpoint is exported as planned.

    Raises StorageError; Stopped where a signal comes meanwhile: a resume then only exports.
    """
    if STATUS[ending.status].exit != 0:
        return ending
    run_dir = Path(plan.run_dir)
    if not plan.export.onnx:
        reason = plan.export.reason or "not asked for"
        if skip_parity(run_dir, plan, reason, _WAIT_S) is not None:
            events.emit("parity", status="skipped", reason=reason, max_abs=None)
        return ending
    try:
        with stop.giving_way("the export"):
            exported = _export(run_dir)
    except TrnError as error:
        if isinstance(error, (StorageError, Stopped)) or is_out_of_memory(error.__cause__):
            raise
        return _not_exported(plan, events, ending, error.message)
    except Exception as error:  # whatever an exporter makes of a model is no fault of the training
        if is_out_of_memory(error):
            raise
        first = (str(error).splitlines() or [""])[0]
        return _not_exported(plan, events, ending, f"{type(error).__name__}: {first}")
    if exported.is_published:
        events.emit("exported", files=sorted(exported.files), checkpoint=_checkpoint_of(run_dir, exported))
    parity = exported.parity or {}
    largest = max(parity.get("max_abs", {}).values(), default=None)
    if parity.get("status") == "passed":
        events.emit("parity", status="passed", reason=None, max_abs=largest)
        return ending
    return _judged(plan, events, ending, f"the export differs from the model: {parity.get('reason')}", largest)


def _export(run_dir: Path) -> Exported:
    # the code was compared when the job began, and what it has imported since is part of its digest now
    run = reopen(run_dir, checkpoint="best", allow_change=["code"])
    subject = (run.plan, run.trainer, run.state, run.ctx, run.meta)
    return export_checkpoint(*subject, payload=run.payload, wait_s=_WAIT_S)[0]


def _not_exported(plan: Plan, events: EventLog, ending: Ending, why: str) -> Ending:
    reason = f"the weights cannot be exported: {why}"
    fail_parity(Path(plan.run_dir), plan, reason)
    return _judged(plan, events, ending, reason, None)


def _judged(plan: Plan, events: EventLog, ending: Ending, reason: str, largest: float | None) -> Ending:
    """What a failed export makes of the run, by its policy."""
    events.emit("parity", status="failed", reason=reason, max_abs=largest)
    if plan.export.parity_policy == "fail":
        return Ending("parity_failed", f"{reason}; the training itself: {ending.status}, {ending.reason}")
    say(f"warning: {reason}")
    return ending


def _checkpoint_of(run_dir: Path, exported: Exported) -> str | None:
    try:
        return str(read_json(run_dir / exported.sidecar)["checkpoint"]["file"])
    except (OSError, JsonError, KeyError, TypeError):
        return None
