"""Evaluating at a step: one way for the loop's cadence and for `trn eval`, so that both come to the same numbers.

    the step is entered -> streams at a seed of (plan, step) -> trainer.evaluate(batches) -> finite metrics

Not here: which batches, when, and what follows from the metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trn.checkpoint import rng
from trn.errors import TrainerError
from trn.loop.lines import finite_metrics
from trn.loop.progress import Progress
from trn.loop.seeds import derived_seed
from trn.spec.plan_model import Plan
from trn.trainer import Context, Trainer

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["call_evaluate", "enter_settled", "epoch_of", "metrics_of"]

_NO_ROWS, _NO_PASSES = np.empty(0, np.int64), np.empty(0, np.int32)


def epoch_of(plan: Plan, step: int) -> int:
    """The epoch, from 0, that the step belongs to; 0 before the first step."""
    return max(step - 1, 0) // plan.budget.steps_per_epoch


def enter_settled(ctx: Context, plan: Plan, progress: Progress) -> None:
    """Let the hooks that follow belong to a step that is made: the same, whether it was just made or restored.

    What is evaluated are no training rows.
    """
    step = progress.step
    ctx._enter_step(step, epoch_of(plan, step), _NO_ROWS, _NO_PASSES, progress.gates.lr_factor)


def call_evaluate(
    trainer: Trainer,
    state: Any,
    ctx: Context,
    batches: Iterable[pa.RecordBatch],
    *,
    call: Callable[[str, Callable[[], Any]], Any],
) -> Any:
    """What the trainer's `evaluate` returns; its draws are those of the step, and change no stream.

    `call(name, hook)` calls the hook and says what becomes of what it raises.
    """
    evaluate: Any = trainer.evaluate  # type: ignore[attr-defined]  # without it there is no validation
    with rng.isolated(derived_seed(ctx.plan.seed, "evaluate", ctx.step)):
        return call("evaluate", lambda: evaluate(batches, state, ctx))


def metrics_of(given: Any, step: int) -> dict[str, float]:
    """The metrics as plain finite numbers. Raises TrainerError for what is none, NumericalInstability."""
    if not isinstance(given, Mapping):
        raise TrainerError(
            f"expected metrics by name, found {type(given).__name__}.", where=f"evaluate after step {step}"
        )
    return finite_metrics(step, given)
