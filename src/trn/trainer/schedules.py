"""Learning rates as functions of the step: nothing to save, and a resume cannot shift them.

Here: our own kinds, the warm-up before any kind, and `Rates`, which a training asks at each step. Not here: torch's
schedulers themselves (torch_schedules). The one kind with a memory is reduce_on_plateau, which follows the evaluations.
"""

from __future__ import annotations

import math
from typing import Any

from trn.errors import ResumeRefused
from trn.spec.plan_model import SchedulePlan
from trn.trainer.torch_schedules import PLATEAU, Curve, Plateau

__all__ = ["OWN_KINDS", "Rates", "lr_at"]

OWN_KINDS = frozenset({"constant", "linear", "warmup_cosine"})


class Rates:
    """The learning rate of each update of a run, before what skipped steps make of it."""

    def __init__(self, schedule: SchedulePlan) -> None:
        self._schedule = schedule
        self._plateau = Plateau(schedule) if schedule.kind == PLATEAU else None
        is_curve = self._plateau is None and schedule.kind not in OWN_KINDS
        self._curve = Curve(schedule) if is_curve else None
        self._first = schedule.lr_max if self._curve is None else self._curve.at(0)

    def at(self, index: int) -> float:
        """The rate of the update with this index, from 0: update n (from 1) uses `at(n - 1)`.

        All kinds warm up linearly from 0 over `warmup_steps` and reach their first rate, `lr_max` but for those that
        begin lower, exactly at index `warmup_steps`. A torch scheduler is asked in order; going back costs all its
        steps from the start.
        """
        schedule, warmup = self._schedule, self._schedule.warmup_steps
        if self._plateau is not None:
            return self._plateau.rate() * min(index / warmup, 1.0) if warmup else self._plateau.rate()
        if self._curve is None:
            return _own(schedule, index)
        return self._first * (index / warmup) if index < warmup else self._curve.at(index - warmup)

    @property
    def follows_evaluations(self) -> bool:
        """Whether `observe` has a meaning: whoever evaluates must then say what came out, each time once."""
        return self._plateau is not None

    def observe(self, value: float, step: int) -> None:
        """Take in the metric of the evaluation after a step; during the warm-up it does not count."""
        if self._plateau is not None and step >= self._schedule.warmup_steps:
            self._plateau.observe(value)

    def state_dict(self) -> dict[str, Any] | None:
        """What must survive a restart, None where the step says it all."""
        return None if self._plateau is None else self._plateau.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """The same, given back. Raises ResumeRefused for what this schedule does not save."""
        if (state is None) != (self._plateau is None):
            raise ResumeRefused(
                f"the state of a schedule {'is missing' if state is None else 'is there'}, and the plan has "
                f"{self._schedule.kind}.",
                where="schedule",
            )
        if self._plateau is not None:
            self._plateau.load_state_dict(state)


def lr_at(schedule: SchedulePlan, index: int) -> float:
    """The learning rate of the update with this index: what a new `Rates` gives, for who asks once.

    Of a plan with reduce_on_plateau it is that of a run without an evaluation.
    """
    return _own(schedule, index) if schedule.kind in OWN_KINDS else Rates(schedule).at(index)


def _own(schedule: SchedulePlan, index: int) -> float:
    """Stay (`constant`), fall in a straight line (`linear`) or along half a cosine (`warmup_cosine`) to `lr_min`.

    That is reached at index `total_steps`, where they rest. Source of the cosine and its edges: seed 002's pretraining
    driver, here in float64.
    """
    warmup, top, bottom = schedule.warmup_steps, schedule.lr_max, schedule.lr_min
    if index < warmup:
        return top * (index / warmup)
    if schedule.kind == "constant":
        return top
    span = max(schedule.total_steps - warmup, 0)
    if span == 0 or index - warmup >= span:
        return bottom
    progress = (index - warmup) / span
    if schedule.kind == "linear":
        return top + (bottom - top) * progress
    return bottom + (top - bottom) * (0.5 * (1.0 + math.cos(math.pi * progress)))
