"""Evaluating a reopened run, as its own loop would at that step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trn.errors import NumericalInstability, PlanRefused, TrainerError, TrnError
from trn.evaluate.data import ValidationData
from trn.feed import read_sequential
from trn.loop.evaluation import call_evaluate, metrics_of
from trn.records import JsonError, read_lines
from trn.reopen import Reopened

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Evaluated", "evaluate", "refuse_without_evaluate"]


@dataclass(frozen=True)
class Evaluated:
    """The metrics, and what the run itself found at this step in the same rows cut the same way, where it did."""

    metrics: dict[str, float]
    run_metrics: dict[str, float] | None
    seconds: float

    @property
    def is_equal(self) -> bool | None:
        """Whether both are the same to the bit; None where there is nothing to compare with."""
        return None if self.run_metrics is None else self.metrics == self.run_metrics


def evaluate(run: Reopened, data: ValidationData) -> Evaluated:
    """Evaluate; changes neither the run's folder nor its state.

    For the run's own data, batch size and number of batches the metrics are those of the run to the bit, where it
    trained in one process, on such a machine, with such libraries. Raises PlanRefused for a trainer without `evaluate`,
    TrainerError for what its code raises, NumericalInstability for a metric that is not finite, DataError.
    """
    refuse_without_evaluate(run)
    began_s = time.perf_counter()
    given = call_evaluate(run.trainer, run.state, run.ctx, _batches(run, data), call=_call(run.meta.step))
    try:
        metrics = metrics_of(given, run.meta.step)
    except NumericalInstability as error:
        error.message = f"{error.field} is {error.value}, expected a finite number."
        error.hint = "Nothing was written. Look at the data, or evaluate another checkpoint."
        raise
    if not metrics:
        raise TrainerError("expected at least one metric, found none.", where=f"evaluate after step {run.meta.step}")
    return Evaluated(metrics, _run_metrics(run, data), time.perf_counter() - began_s)


def refuse_without_evaluate(run: Reopened) -> None:
    """Raise PlanRefused for a trainer that cannot."""
    if not callable(getattr(run.trainer, "evaluate", None)):
        raise PlanRefused(
            f"trainer {run.plan.trainer.name!r} has no `evaluate`.", where="trainer", hint="Add the hook."
        )


def _batches(run: Reopened, data: ValidationData) -> Iterator[pa.RecordBatch]:
    return read_sequential(data.dataset, data.columns, data.batch_size, data.max_batches, fills=run.plan.dataset.fills)


def _call(step: int) -> Callable[[str, Callable[[], Any]], Any]:
    def call(name: str, hook: Callable[[], Any]) -> Any:
        try:
            return hook()
        except (TrnError, MemoryError):
            raise
        except Exception as error:
            raise TrainerError(f"{type(error).__name__}: {error}", where=f"{name} at step {step}") from error

    return call


def _run_metrics(run: Reopened, data: ValidationData) -> dict[str, float] | None:
    """The line of val_metrics.jsonl of this step, if it is of the same rows in the same batches."""
    part = run.plan.validation
    if part is None or (data.dataset.fingerprint, data.batch_size, data.max_batches) != (
        part.data["fingerprint"],
        part.batch_size,
        part.max_batches,
    ):
        return None
    try:
        lines = list(read_lines(run.ctx.run_dir / "reports/val_metrics.jsonl"))
    except (JsonError, OSError):
        return None  # damaged, or not there: that is for `trn verify` to say
    found = next((line for line in lines if line.get("step") == run.meta.step), None)
    return None if found is None else {name: value for name, value in found.items() if name not in ("step", "epoch")}
