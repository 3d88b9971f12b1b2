"""The loop."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trn.checkpoint import rng
from trn.checkpoint.meta import checkpoint_name
from trn.checkpoint.saver import Saver
from trn.errors import DataExhausted, NumericalInstability, Stopped, TrainerError
from trn.feed import RawBatch
from trn.gates import EpochTally, Verdict, after_step, standing_verdict
from trn.journal import EventLog, MetricsLog
from trn.loop.agreement import Agreement
from trn.loop.batches import Batches
from trn.loop.beats import Beats
from trn.loop.cadences import (
    epoch_metadata,
    epoch_of,
    every,
    is_artifact_due,
    is_checkpoint_due,
    is_settled,
    settle,
)
from trn.loop.control import asked_of, checked_control, pause
from trn.loop.debug import debug_fields
from trn.loop.hooks import call_hook
from trn.loop.lines import finite_metrics, step_line
from trn.loop.progress import Progress
from trn.loop.pulse import Pulse
from trn.loop.saving import checkpoint
from trn.loop.stop import StopRequest
from trn.loop.verdicts import (
    announce_verdict,
    is_used_up,
    leave_out,
    report_readings,
    report_refusal,
    rules_of,
    tell_reports,
    verdict_at_end,
)
from trn.ranks.watchdog import Watchdog
from trn.records import Json, deterministic_part
from trn.spec.plan_model import Plan
from trn.trainer import Context, StepResult, Trainer
from trn.trainer.scaling import ScaleOverflow

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Ending", "Parts", "announce", "end", "take_up", "train"]


@dataclass(frozen=True)
class Parts:
    """All that the loop works with; none of it is replaced while it runs."""

    plan: Plan
    trainer: Trainer
    state: Any
    ctx: Context
    feed: Batches
    validation: Callable[[], Iterable[pa.RecordBatch]] | None
    metrics: MetricsLog
    val_metrics: MetricsLog
    events: EventLog
    saver: Saver
    stop: StopRequest
    agreement: Agreement
    watchdog: Watchdog
    pulse: Pulse = field(default_factory=Pulse)


@dataclass(frozen=True)
class Ending:
    """How the loop ended by itself: a word of the outcome table, and why."""

    status: str
    reason: str


def train(parts: Parts, progress: Progress, last_line: Json) -> Ending:
    """Bring the run from `progress` to the end of its budget, or to where a gate or a request ends it.

        settle what a stop left undone at the restored step
        until a gate ends the run, or the budget is used up:
            stop requested? -> checkpoint, end
            batch  = transform(feed.next())           none left -> data_exhausted
            result = train_step(prepare_batch(batch)) not finite -> the batch is left out, or numerical_instability
            one line to the journal                   the step is made
            evaluate, sample, checkpoint              where due, and not held back by the step
            wait                                      where the step asks for it
        checkpoint, unless a gate found damage; wait for it

    `last_line` is the last line of train_metrics.jsonl, `{}` before the first step. Raises what the gates, the
    trainer and the disk raise; then the last committed checkpoint is what stands.
    """
    plan, ctx, events, rules = parts.plan, parts.ctx, parts.events, rules_of(parts.plan)
    is_alone = ctx.world_size == 1
    can_go_back = rules.policy == "skip" or plan.loss_scale is not None
    saved = begun = progress.step
    pulse = parts.pulse
    pulse.progress, pulse.doing = progress, "train"
    pulse.mark("train_begin")
    beats = Beats(plan, events, pulse)
    tell_reports(events, progress.step, ctx._reported())
    verdict = take_up(parts, progress) if progress.step else None
    while verdict is None:
        announce(parts.saver, events)
        if parts.agreement.stop_requested() or is_used_up(plan, progress):
            break

        began_s = time.perf_counter()
        raw = parts.feed.next()
        step = progress.step + 1
        if raw is None:
            if is_alone and parts.stop.requested():
                continue  # it came while the batch was waited for
            budget = f"{progress.step} of {plan.budget.max_steps} steps"
            raise DataExhausted(f"the data ended after {budget}.", where="dataset", hint="Set end: cycle.")
        epoch = epoch_of(plan, step)
        if progress.step == begun:
            pulse.mark("first_batch")
        if raw.wrapped:
            events.emit("data_wrapped", step=step, pass_index=raw.pass_index)
        ctx._enter_step(step, epoch, raw.row_ids, raw.row_passes, progress.gates.lr_factor)
        streams = rng.held() if can_go_back else None
        try:
            batch = raw.record_batch if parts.feed.is_raw else parts.feed.ready(raw, ctx)
            got_s = time.perf_counter()
            if progress.step == begun:
                pulse.mark("first_step_begin")
            result = make_step(parts, batch, streams)
        except NumericalInstability as error:
            parts.agreement.step_refused(step)
            leave_out(parts, progress, raw, error, streams)
            verdict = settle(parts, progress)
            continue
        metrics, control = _finite(parts, step, result, raw), result.control
        tokens_seen = progress.tokens_seen if result.tokens is None else (progress.tokens_seen or 0) + result.tokens
        ended_s = time.perf_counter()
        busy = None if pulse.gpu is None else pulse.gpu_util_pct(ended_s)
        wall_s, waited_s, busy = parts.agreement.step_made(
            step,
            metrics if control is None else metrics | asked_of(control),
            result.tokens,
            ended_s - began_s,
            got_s - began_s,
            busy,
        )
        line = step_line(
            *(step, epoch, metrics, result.tokens, raw.batch_rows),
            wall_s=wall_s,
            waited_s=waited_s,
            tokens_seen=tokens_seen,
            gpu_util_pct=busy,
        )
        gates, last_line, verdict = after_step(progress.gates, rules, line)
        if gates.telemetry_warnings and not progress.gates.telemetry_warnings:
            report_readings(events, line)
        parts.metrics.append(last_line)
        if reports := ctx._reported():
            tell_reports(events, step, reports)
        progress.gates = gates
        tally = EpochTally() if every(plan.budget.steps_per_epoch, step - 1) else progress.tally
        progress.tally = tally.with_step(last_line["train_loss"], last_line["grad_norm"], wall_s)
        progress.step, progress.cursor, progress.tokens_seen = step, raw.next_cursor, tokens_seen
        progress.held_back = progress.held_back + 1 if progress.holds_back else 0
        progress.holds_back = control is not None and control.skip_cadence_emit
        parts.watchdog.step_ended()
        pulse.ended_s, pulse.waited_s = ended_s, waited_s
        pulse.waited_total_s += waited_s
        if step == begun + 1:
            pulse.mark("first_step_end")

        if every(plan.metric_every, step) and not progress.holds_back:
            told = deterministic_part(last_line)
            events.emit("metric", **(told if result.debug is None else told | _debug(parts, step, result, last_line)))
        if ended_s >= beats.due_s:
            beats.beat(step, ended_s)
        verdict = settle(parts, progress) or verdict
        if is_checkpoint_due(plan, progress) and not (verdict and verdict.is_damage):
            checkpoint(parts, progress, last_line)
            parts.watchdog.step_ended()  # it may have waited for the one before
            saved = step
        if control is not None and control.backoff_seconds and verdict is None and not is_used_up(plan, progress):
            pause(parts, control.backoff_seconds)

    if verdict is None and is_used_up(plan, progress) and is_settled(plan, progress):
        verdict = verdict_at_end(plan, progress)
    parts.watchdog.steps_are_over()
    pulse.begin("train_end")
    return end(parts, progress, last_line, verdict, is_saved=saved == progress.step)


def take_up(parts: Parts, progress: Progress) -> Verdict | None:
    """Make good at a restored step what a stop or a kill left undone; the verdict if the run ends there."""
    verdict = settle(parts, progress) or standing_verdict(progress.gates, rules_of(parts.plan))
    if verdict is not None and verdict.is_damage:
        return verdict
    if progress.best_step == progress.step:
        parts.saver.mark_best(progress.step)
    if is_artifact_due(parts.plan, progress):
        parts.saver.complete_epoch(progress.step, epoch_metadata(parts, progress))
    return verdict


def end(parts: Parts, progress: Progress, last_line: Json, verdict: Verdict | None, *, is_saved: bool) -> Ending:
    """The last checkpoint, unless the weights are damaged or it is there; then what ended the loop."""
    events, stop = parts.events, parts.stop
    if verdict is None and stop.outcome is not None:
        events.emit("stop_requested", reason=stop.reason)
    if stop.at_once:
        raise Stopped("cancelled", stop.at_once_reason)
    is_damaged = verdict is not None and verdict.is_damage
    if not is_saved and not is_damaged:
        checkpoint(parts, progress, last_line)
    parts.saver.wait()
    if is_saved and is_damaged:
        _retract(parts, progress)
    # the last batch of the data was left out: its step was judged after it was saved
    if progress.gates.skips_in_row and not is_damaged and progress.best_step == progress.step:
        parts.saver.mark_best(progress.step)
    announce(parts.saver, events)
    if verdict is not None:
        announce_verdict(events, progress.step, verdict)
        return Ending(verdict.outcome, verdict.reason)
    assert stop.outcome is not None, "the loop ends with a verdict or with a request"
    return Ending(stop.outcome, stop.reason)


def _retract(parts: Parts, progress: Progress) -> None:
    """Take back a checkpoint that a stop made before its step was judged: no damage stays behind as the newest."""
    step = progress.step
    announce(parts.saver, parts.events)
    # told first: a kill in between must not leave a checkpoint that is missed
    reason = "its validation came later, and found damage"
    parts.events.emit("checkpoint_rejected", file=checkpoint_name(step), reason=reason)
    epochs_over = (step - 1) // parts.plan.budget.steps_per_epoch
    parts.saver.retract(step, epochs_over=epochs_over, best_step=progress.best_step)


def _finite(parts: Parts, step: int, result: StepResult, raw: RawBatch) -> dict[str, float]:
    """The step's metrics. What is not finite here was found after the update: the run cannot go on without it."""
    try:
        return finite_metrics(step, result.metrics)
    except NumericalInstability as error:
        parts.agreement.step_refused(step)
        report_refusal(parts.events, error, parts.agreement.row_ids(raw.row_ids.tolist()))
        raise


def make_step(parts: Parts, batch: Any, streams: Any) -> StepResult:
    """The trainer's part of a step, from rows or from what `transform` made of them.

    Where the scale of an fp16 loss was too large, the step is made again with the same rows and, from `streams`, the
    same random numbers. Raises TrainerError for whatever its code raises, or returns that is no result.
    """
    trainer, state, ctx = parts.trainer, parts.state, parts.ctx
    scale: float | None = None
    while True:
        try:
            result: Any = call_hook(
                parts, "train_step", lambda: trainer.train_step(trainer.prepare_batch(batch, state, ctx), state, ctx)
            )
            break
        except ScaleOverflow as overflow:
            if streams is None or not (scale is None or overflow.scale < scale):
                why = "precision is not fp16" if streams is None else f"it is {overflow.scale!r} after {scale!r}"
                raise TrainerError(
                    f"ScaleOverflow asks for the step again with a smaller scale, and {why}.", where=f"step {ctx.step}"
                ) from overflow
            scale = overflow.scale
            rng.put_back(streams)
    if scale is not None:
        ctx.report("loss_scale", scale=scale)
    where = f"step {ctx.step}"
    metrics, control = getattr(result, "metrics", None), getattr(result, "control", None)
    debug = getattr(result, "debug", None)
    if metrics is not None and not isinstance(metrics, Mapping):
        found = type(metrics).__name__
        raise TrainerError(f"the metrics of a StepResult are numbers by name; found {found}.", where=where)
    if metrics is None:
        raise TrainerError(f"train_step returned {type(result).__name__}; expected a StepResult.", where=where)
    if not (debug is None or isinstance(debug, Mapping)):
        raise TrainerError(f"debug is a {type(debug).__name__}; expected a mapping of JSON values.", where=where)
    control = None if control is None else checked_control(control, where)
    return StepResult(metrics, debug, control, _whole(getattr(result, "tokens", None), where))


def _whole(tokens: Any, where: str) -> int | None:
    try:
        number = None if tokens is None else operator.index(tokens.item() if hasattr(tokens, "item") else tokens)
    except (TypeError, RuntimeError, ValueError):
        number = -1
    if number is not None and number < 0:
        raise TrainerError(f"tokens is {tokens!r}; expected a whole number, or None.", where=where)
    return number


def _debug(parts: Parts, step: int, result: StepResult, line: Json) -> Json:
    """What the event of the step has besides its line: as JSON, where the trainer said something. Rank 0's."""
    debug = result.debug
    if debug is None or parts.ctx.rank:
        return {}
    fields: Json = call_hook(parts, "debug", lambda: debug_fields(step, debug, line))
    return fields


def announce(saver: Saver, events: EventLog) -> int:
    """An event for each checkpoint that was committed meanwhile; how many. Raises the error of a save that failed."""
    committed = saver.committed()
    for meta in committed:
        events.emit("checkpoint", step=meta.step, file=meta.file, sha256=meta.sha256, size_bytes=meta.size_bytes)
    return len(committed)
