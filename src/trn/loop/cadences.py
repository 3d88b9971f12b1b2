"""What is due after a step, besides the next one: evaluation, samples, checkpoints."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trn.checkpoint import rng
from trn.checkpoint.saver import Moment
from trn.errors import NumericalInstability, TrainerError, TrnError
from trn.files import write_atomic
from trn.journal import EventLog
from trn.loop.lines import finite_metrics
from trn.records import Json, deterministic_part
from trn.spec.plan_model import Plan

if TYPE_CHECKING:
    import pyarrow as pa

    from trn.loop.loop import Parts
    from trn.loop.progress import Progress
    from trn.loop.stop import StopRequest

__all__ = ["call_hook", "checkpoint", "every", "is_checkpoint_due", "is_evaluation_due", "report_refusal", "settle"]

_NO_ROWS, _NO_PASSES = np.empty(0, np.int64), np.empty(0, np.int32)
_SAMPLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_evaluation_due(plan: Plan, step: int) -> bool:
    """By steps, by epochs, and after the last step of the budget."""
    if plan.validation is None:
        return False
    return (
        every(plan.validation.every_steps, step)
        or every(plan.validation.every_epochs * plan.budget.steps_per_epoch, step)
        or step == plan.budget.max_steps
    )


def is_checkpoint_due(plan: Plan, progress: Progress) -> bool:
    """By cadence, for a new best, and after the last step of the budget."""
    step = progress.step
    return every(plan.checkpoint.every_steps, step) or progress.best_step == step or step == plan.budget.max_steps


def every(cadence: int, step: int) -> bool:
    """Whether something with this cadence is due after the step; a cadence of 0 is never due."""
    return cadence > 0 and step % cadence == 0


def report_refusal(events: EventLog, error: NumericalInstability, row_ids: list[int]) -> None:
    """The event that says which gate refused which value, and the rows it came from."""
    events.emit(
        "gate",
        gate="numerical_stability",
        step=error.step,
        field=error.field,
        value=error.value,
        row_ids=row_ids,
    )


def call_hook(parts: Parts, name: str, hook: Callable[[], Any]) -> Any:
    """What the hook gives. Raises TrainerError for whatever its code raises, Stopped at a second SIGINT."""
    try:
        with parts.stop.breaking_off():
            return hook()
    except (TrnError, MemoryError):
        raise
    except BaseException as error:
        raise TrainerError(f"{type(error).__name__}: {error}", where=f"{name} at step {parts.ctx.step}") from error


def settle(parts: Parts, progress: Progress) -> None:
    """Evaluate and sample where the current step asks for it; a stop leaves the step unsettled, for the resume."""
    if progress.settled == progress.step:
        return
    plan, step = parts.plan, progress.step
    # what is evaluated are no training rows: the hooks see the same, whether the step was just made or restored
    parts.ctx._enter_step(step, (step - 1) // plan.budget.steps_per_epoch, _NO_ROWS, _NO_PASSES)
    if (
        is_evaluation_due(plan, step)
        and (progress.validation or {}).get("step") != step
        and not _evaluate(parts, progress)
    ):
        return
    if every(plan.sample_every, step) or (plan.sample_every and step == plan.budget.max_steps):
        _sample(parts, step)
    if every(plan.budget.steps_per_epoch, step):
        parts.events.emit("epoch", epoch=parts.ctx.epoch, step=step)
    progress.settled = step


def checkpoint(parts: Parts, progress: Progress, last_line: Json) -> None:
    """Take the whole state now; it is committed beside the loop."""
    streams = rng.capture()
    state = call_hook(parts, "state_dict", lambda: parts.trainer.state_dict(parts.state))
    rng.restore(streams)  # a hook that draws must not make a run depend on how often it is saved
    if not isinstance(state, dict):
        raise TrainerError(
            f"expected a dict, found {type(state).__name__}.", where=f"state_dict at step {progress.step}"
        )
    parts.saver.save(
        state,
        Moment(
            step=progress.step,
            epoch=parts.ctx.epoch,
            metrics=deterministic_part(last_line),
            journal={log.path.name: log.position for log in (parts.metrics, parts.val_metrics)},
            progress=progress.to_json(),
            rng=[streams],
            best_step=progress.best_step,
        ),
    )


class _Interrupted(Exception):
    """A stop was requested between two validation batches."""


class _UntilStopped:
    """Validation batches until a stop is requested; `interrupted` says so, whatever the hook makes of the exception."""

    def __init__(self, batches: Iterable[pa.RecordBatch], stop: StopRequest) -> None:
        self._batches, self._stop = batches, stop
        self.interrupted = False

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            if self._stop.requested():
                self.interrupted = True
                raise _Interrupted
            yield batch


def _evaluate(parts: Parts, progress: Progress) -> bool:
    """Whether the evaluation came to its end; its line is then in the journal and the best is up to date."""
    step, plan = progress.step, parts.plan
    assert parts.validation is not None, "an evaluation is due only where the plan has validation data"
    batches = _UntilStopped(parts.validation(), parts.stop)
    evaluate: Any = parts.trainer.evaluate  # type: ignore[attr-defined]  # the plan refuses validation without it
    try:
        with rng.isolated(derived_seed(plan.seed, "evaluate", step)):
            given = call_hook(parts, "evaluate", lambda: evaluate(batches, parts.state, parts.ctx))
    except TrainerError:
        if not batches.interrupted:
            raise
        given = {}
    if batches.interrupted:
        return False
    if not isinstance(given, Mapping):
        raise TrainerError(
            f"expected metrics by name, found {type(given).__name__}.", where=f"evaluate after step {step}"
        )
    try:
        metrics = finite_metrics(step, given)
    except NumericalInstability as error:
        report_refusal(parts.events, error, [])
        raise
    wanted = plan.checkpoint.best_metric
    if wanted not in metrics:
        raise TrainerError(
            f"expected {wanted!r} among the metrics, found {', '.join(sorted(metrics)) or 'none'}.",
            where=f"evaluate after step {step}",
            hint="Return it, or set checkpoint.best.metric to one of these.",
        )
    parts.val_metrics.append({"step": step, "epoch": parts.ctx.epoch, **metrics})
    parts.events.emit("evaluated", step=step, metrics=metrics)
    progress.validation = {"step": step, **metrics}
    value = metrics[wanted]
    if progress.best is None or _better(value, progress.best["value"], plan.checkpoint.best_mode):
        progress.best = {"step": step, "metric": wanted, "value": value}
    return True


def _better(value: float, best: float, mode: str) -> bool:
    return value < best if mode == "min" else value > best


def _sample(parts: Parts, step: int) -> None:
    sample: Any = getattr(parts.trainer, "sample", None)
    if sample is None:
        return
    with rng.isolated(derived_seed(parts.plan.seed, "sample", step)):
        given = call_hook(parts, "sample", lambda: sample(parts.state, parts.ctx))
    if not isinstance(given, Mapping) or not all(isinstance(one, (str, bytes)) for one in given.values()):
        raise TrainerError("expected text or bytes by file name.", where=f"sample after step {step}")
    paths = []
    for name, content in given.items():
        if not _SAMPLE_NAME.fullmatch(name):
            raise TrainerError(f"{name!r} is no plain file name.", where=f"sample after step {step}")
        path = parts.ctx.samples_dir / f"step-{step:08d}-{name}"
        write_atomic(path, content.encode() if isinstance(content, str) else content)
        paths.append(f"samples/{path.name}")
    parts.events.emit("sample", step=step, paths=paths)


def derived_seed(seed: int, purpose: str, step: int) -> int:
    """A seed of its own for what is done at a step: 63 bits of a sha256."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()[:8]) >> 1
