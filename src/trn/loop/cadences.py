"""What is due after a step, besides the next one: evaluation, samples, checkpoints. How one is taken: see saving."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from trn.checkpoint import rng
from trn.errors import NumericalInstability, TrainerError
from trn.files import write_atomic
from trn.gates import Verdict, after_validation, build_epoch_metadata
from trn.loop.control import falls_due
from trn.loop.evaluation import call_evaluate, enter_settled, epoch_of, metrics_of
from trn.loop.hooks import call_hook
from trn.loop.seeds import derived_seed
from trn.loop.verdicts import is_used_up, report_refusal, rules_of, tell_reports
from trn.provenance.process import clean_name, clean_sample
from trn.records import Json
from trn.spec.plan_model import Plan

if TYPE_CHECKING:
    import pyarrow as pa

    from trn.loop.loop import Parts
    from trn.loop.progress import Progress

__all__ = [
    "epoch_metadata",
    "epoch_of",
    "every",
    "is_artifact_due",
    "is_checkpoint_due",
    "is_delayed",
    "is_evaluation_due",
    "is_settled",
    "settle",
]

_SAMPLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_evaluation_due(plan: Plan, progress: Progress) -> bool:
    """By steps, by epochs, and after the last step of the budget, unless it was done at this step."""
    step = progress.step
    if plan.validation is None or step == 0 or (progress.validation or {}).get("step") == step:
        return False
    return (
        every(plan.validation.every_steps, step)
        or every(plan.validation.every_epochs * plan.budget.steps_per_epoch, step)
        or is_used_up(plan, progress)
    )


def is_checkpoint_due(plan: Plan, progress: Progress) -> bool:
    """By cadence, for a new best, for an epoch's artifact, and after the last step of the budget.

    One that its cadence asks for can be held back by the step, see trn.loop.control.
    """
    step = progress.step
    if is_delayed(plan, step):
        return is_used_up(plan, progress)
    return (
        falls_due(plan.checkpoint.every_steps, progress, since=plan.checkpoint.save_delay_steps)
        or progress.best_step == step
        or every(plan.checkpoint.every_epochs * plan.budget.steps_per_epoch, step)
        or is_used_up(plan, progress)
    )


def is_delayed(plan: Plan, step: int) -> bool:
    """Whether the step lies before `checkpoint.save_delay_steps`: nothing is saved but a last one, none is the best."""
    return step < plan.checkpoint.save_delay_steps


def is_settled(plan: Plan, progress: Progress) -> bool:
    """Whether all that was due after the step is done: a stop in the middle of it leaves the rest to the resume."""
    return progress.settled == progress.step and not is_evaluation_due(plan, progress)


def every(cadence: int, step: int) -> bool:
    """Whether something with this cadence is due after the step; a cadence of 0 is never due."""
    return cadence > 0 and step % cadence == 0


def settle(parts: Parts, progress: Progress) -> Verdict | None:
    """Evaluate and sample where the current step asks for it; the verdict if a gate ends the run at it.

    A stop leaves the step unsettled, for the resume. So does a loss that is refused: nothing of it is kept.
    """
    plan, step = parts.plan, progress.step
    if is_settled(plan, progress):
        return None
    verdict, ends_epoch = None, every(plan.budget.steps_per_epoch, step)
    enter_settled(parts.ctx, plan, progress)
    if is_evaluation_due(plan, progress):
        try:
            with parts.pulse.during("evaluate"):
                metrics = _evaluate(parts, progress)
        except NumericalInstability as error:
            report_refusal(parts.events, error, [])
            return Verdict("numerical_instability", str(error), "numerical_stability")
        if metrics is None:
            return None
        verdict = _judge(parts, progress, metrics, ends_epoch)
        if verdict is not None and verdict.is_damage:
            return verdict
        _record(parts, progress, metrics)
        evaluated: Any = getattr(parts.trainer, "evaluated", None)
        if evaluated is not None:
            call_hook(parts, "evaluated", lambda: evaluated(metrics, parts.state, parts.ctx))
        tell_reports(parts.events, step, parts.ctx._reported())
    if progress.settled != step:
        if plan.sample_every and (
            falls_due(plan.sample_every, progress, is_last=verdict is not None) or is_used_up(plan, progress)
        ):
            _sample(parts, step)
            parts.watchdog.step_ended()
        if ends_epoch:
            metadata = epoch_metadata(parts, progress)
            told = ("epoch", "train_loss", "val_loss", "tokens_seen", "grad_norm_max")
            parts.events.emit("epoch", step=step, **{key: metadata[key] for key in told})
        progress.settled = step
    return verdict


def epoch_metadata(parts: Parts, progress: Progress) -> Json:
    """What epoch-NNN.metadata.json says of the epoch that ends with the current step; the saver adds the digest."""
    validation = progress.validation or {}
    return build_epoch_metadata(
        epoch_of(parts.plan, progress.step),
        progress.tally,
        val_loss=validation.get("val_loss") if validation.get("step") == progress.step else None,
        optimizer_state_sha=None,
        tokens_seen=progress.tokens_seen,
        cross_entropy=rules_of(parts.plan).is_cross_entropy,
    )


def is_artifact_due(plan: Plan, progress: Progress) -> bool:
    """Whether the current step is settled and ends an epoch that has an artifact."""
    ends = every(plan.checkpoint.every_epochs * plan.budget.steps_per_epoch, progress.step)
    return ends and is_settled(plan, progress) and not is_delayed(plan, progress.step)


class _Interrupted(Exception):
    """A stop was requested between two validation batches."""


class _UntilStopped:
    """This rank's rows of the validation batches, until a stop is requested.

    `interrupted` says so, whatever the hook makes of the exception. A batch of which this rank has no row is not given.
    """

    def __init__(self, parts: Parts) -> None:
        assert parts.validation is not None, "an evaluation is due only where the plan has validation data"
        self._batches = iter(parts.validation())
        self._parts = parts
        self.interrupted = False

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            if self._parts.agreement.stop_requested():
                self.interrupted = True
                raise _Interrupted
            self._parts.watchdog.step_ended()
            if batch.num_rows:
                yield batch

    def pass_over_rest(self) -> None:
        """Where a hook did not want them all: the other ranks go through them too."""
        if self._parts.ctx.world_size > 1 and not self.interrupted:
            with contextlib.suppress(_Interrupted):
                for _ in self:
                    pass


def _evaluate(parts: Parts, progress: Progress) -> dict[str, float] | None:
    """What the trainer's evaluation gives; None where a stop came before its end. Raises NumericalInstability."""
    step = progress.step
    began_s = time.perf_counter()
    batches = _UntilStopped(parts)
    try:
        given = call_evaluate(parts.trainer, parts.state, parts.ctx, batches, call=partial(call_hook, parts))
        batches.pass_over_rest()
    except TrainerError:
        if not batches.interrupted:
            raise
        given = {}
    if batches.interrupted:
        return None
    try:
        metrics = metrics_of(given, step)
    except NumericalInstability:
        parts.agreement.require_same(f"evaluate after step {step}", {})
        raise
    parts.agreement.require_same(f"evaluate after step {step}", metrics)
    progress.tally = progress.tally.with_wall(time.perf_counter() - began_s)
    return metrics


def _judge(parts: Parts, progress: Progress, metrics: dict[str, float], ends_epoch: bool) -> Verdict | None:
    """What the gates say of a validation; they remember it unless it ends the run as damaged."""
    plan = parts.plan
    wanted = {plan.checkpoint.best_metric: "checkpoint.best.metric"}
    rules = rules_of(plan)
    if (rules.target_val_loss, rules.patience, rules.divergence_factor) != (None, None, None):
        wanted["val_loss"] = "gates"
    for name, key in wanted.items():
        if name not in metrics:
            raise TrainerError(
                f"expected {name!r} among the metrics, found {', '.join(sorted(metrics)) or 'none'}.",
                where=f"evaluate after step {progress.step}",
                hint=f"Return it: {key} asks for it.",
            )
    if "val_loss" not in metrics:
        return None
    progress.gates, verdict = after_validation(
        progress.gates, rules, metrics["val_loss"], parts.ctx.epoch, ends_epoch=ends_epoch
    )
    return verdict


def _record(parts: Parts, progress: Progress, metrics: dict[str, float]) -> None:
    """Its line, its event, and the best."""
    step, plan = progress.step, parts.plan
    parts.val_metrics.append({"step": step, "epoch": parts.ctx.epoch, **metrics})
    parts.events.emit("evaluated", step=step, metrics=metrics)
    progress.validation = {"step": step, **metrics}
    parts.pulse.mark("evaluated", metrics=sorted(metrics))
    if is_delayed(plan, step):
        return
    wanted = plan.checkpoint.best_metric
    assert wanted is not None, "a plan with validation has a best"
    value = metrics[wanted]
    if progress.best is None or _better(value, progress.best["value"], plan.checkpoint.best_mode):
        progress.best = {"step": step, "metric": wanted, "value": value}


def _better(value: float, best: float, mode: str) -> bool:
    return value < best if mode == "min" else value > best


def _sample(parts: Parts, step: int) -> None:
    sample: Any = getattr(parts.trainer, "sample", None)
    if sample is None or parts.ctx.rank:
        return
    with rng.isolated(derived_seed(parts.plan.seed, "sample", step)):
        given = call_hook(parts, "sample", lambda: sample(parts.state, parts.ctx))
    if not isinstance(given, Mapping) or not all(isinstance(one, (str, bytes)) for one in given.values()):
        raise TrainerError("expected text or bytes by file name.", where=f"sample after step {step}")
    paths = []
    for name, content in given.items():
        if not _SAMPLE_NAME.fullmatch(name) or clean_name(name) != name:
            raise TrainerError(f"{name!r} is no plain file name.", where=f"sample after step {step}")
        path = parts.ctx.samples_dir / f"step-{step:08d}-{name}"
        write_atomic(path, clean_sample(content))
        paths.append(f"samples/{path.name}")
    parts.events.emit("sample", step=step, paths=paths)
