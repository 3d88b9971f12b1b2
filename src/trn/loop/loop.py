"""The loop."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trn.checkpoint.saver import Saver
from trn.errors import DataExhausted, NumericalInstability, Stopped, TrainerError
from trn.feed import Feed, RawBatch
from trn.journal import EventLog, MetricsLog
from trn.loop.cadences import call_hook, checkpoint, every, is_checkpoint_due, report_refusal, settle
from trn.loop.lines import finite_metrics, step_line
from trn.loop.progress import Progress
from trn.loop.stop import AT_ONCE, StopRequest
from trn.records import Json, deterministic_part
from trn.spec.plan_model import Plan
from trn.trainer import Context, Control, StepResult, Trainer

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Ending", "Parts", "announce", "train"]


@dataclass(frozen=True)
class Parts:
    """All that the loop works with; none of it is replaced while it runs."""

    plan: Plan
    trainer: Trainer
    state: Any
    ctx: Context
    feed: Feed
    validation: Callable[[], Iterable[pa.RecordBatch]] | None
    metrics: MetricsLog
    val_metrics: MetricsLog
    events: EventLog
    saver: Saver
    stop: StopRequest


@dataclass(frozen=True)
class Ending:
    """How the loop ended by itself: a word of the outcome table, and why."""

    status: str
    reason: str


def train(parts: Parts, progress: Progress, last_line: Json) -> Ending:
    """Bring the run from `progress` to the end of its budget, or to where it is asked to stop.

        settle what a stop left undone at the restored step
        until the budget is used up:
            stop requested? -> checkpoint, end
            batch  = feed.next()                      none left -> data_exhausted
            result = train_step(prepare_batch(batch)) not finite -> numerical_instability, nothing of the step is kept
            one line to the journal                   the step is made
            evaluate, sample, checkpoint              where due
        wait for the last checkpoint

    `last_line` is the last line of train_metrics.jsonl, `{}` before the first step. Raises what the gates, the
    trainer and the disk raise; then the last committed checkpoint is what stands.
    """
    plan, ctx, events = parts.plan, parts.ctx, parts.events
    max_steps, steps_per_epoch = plan.budget.max_steps, plan.budget.steps_per_epoch
    saved = progress.step
    if progress.step:
        settle(parts, progress)
        if progress.best_step == progress.step:
            parts.saver.mark_best(progress.step)
    while True:
        announce(parts.saver, events)
        if parts.stop.requested() or progress.step >= max_steps:
            break

        began_s = time.perf_counter()
        raw = parts.feed.next()
        got_s = time.perf_counter()
        step = progress.step + 1
        if raw is None:
            raise DataExhausted(
                f"the data ended after {progress.step} of {max_steps} steps.", where="dataset", hint="Set end: cycle."
            )
        epoch = (step - 1) // steps_per_epoch
        ctx._enter_step(step, epoch, raw.row_ids, raw.row_passes)
        try:
            result = make_step(parts, raw)
            metrics = finite_metrics(step, result.metrics)
        except NumericalInstability as error:
            report_refusal(events, error, raw.row_ids.tolist())
            raise
        tokens_seen = progress.tokens_seen if result.tokens is None else (progress.tokens_seen or 0) + result.tokens
        last_line = step_line(
            step=step,
            epoch=epoch,
            metrics=metrics,
            tokens=result.tokens,
            rows=len(raw.row_ids),
            wall_s=time.perf_counter() - began_s,
            waited_s=got_s - began_s,
            tokens_seen=tokens_seen,
        )
        parts.metrics.append(last_line)
        progress.step, progress.cursor, progress.tokens_seen = step, raw.next_cursor.to_json(), tokens_seen

        if raw.wrapped:
            events.emit("data_wrapped", step=step, pass_index=raw.pass_index)
        if every(plan.metric_every, step) and not (result.control and result.control.skip_cadence_emit):
            events.emit("metric", **deterministic_part(last_line))
        settle(parts, progress)
        if is_checkpoint_due(plan, progress):
            checkpoint(parts, progress, last_line)
            saved = step
        if result.control and result.control.backoff_seconds:
            parts.stop.wait(result.control.backoff_seconds)

    if parts.stop.outcome is not None:
        events.emit("stop_requested", reason=parts.stop.reason)
    if parts.stop.at_once:
        raise Stopped("cancelled", AT_ONCE)
    if saved != progress.step:
        checkpoint(parts, progress, last_line)
    parts.saver.wait()
    announce(parts.saver, events)
    if progress.step >= max_steps and progress.settled == progress.step:
        return Ending("completed", f"all {max_steps} steps of the budget are made")
    assert parts.stop.outcome is not None, "the loop ends with its budget or with a request"
    return Ending(parts.stop.outcome, parts.stop.reason)


def make_step(parts: Parts, raw: RawBatch) -> StepResult:
    """The trainer's part of a step. Raises TrainerError for whatever its code raises, or returns that is no result."""
    trainer, state, ctx = parts.trainer, parts.state, parts.ctx
    result: Any = call_hook(
        parts, "train_step", lambda: trainer.train_step(trainer.prepare_batch(raw.record_batch, state, ctx), state, ctx)
    )
    where = f"step {ctx.step}"
    metrics, control = getattr(result, "metrics", None), getattr(result, "control", None)
    if not isinstance(metrics, Mapping):
        raise TrainerError(f"train_step returned {type(result).__name__}; expected a StepResult.", where=where)
    if not (control is None or isinstance(control, Control)):
        raise TrainerError(f"control is a {type(control).__name__}; expected a Control.", where=where)
    return StepResult(metrics, control=control, tokens=_whole(getattr(result, "tokens", None), where))


def _whole(tokens: Any, where: str) -> int | None:
    try:
        number = None if tokens is None else operator.index(tokens.item() if hasattr(tokens, "item") else tokens)
    except (TypeError, RuntimeError, ValueError):
        number = -1
    if number is not None and number < 0:
        raise TrainerError(f"tokens is {tokens!r}; expected a whole number, or None.", where=where)
    return number


def announce(saver: Saver, events: EventLog) -> None:
    """An event for each checkpoint that was committed meanwhile. Raises the error of a save that failed."""
    for meta in saver.committed():
        events.emit("checkpoint", step=meta.step, file=meta.file, sha256=meta.sha256, size_bytes=meta.size_bytes)
