"""Learning rates as pure functions of the step: no state, so nothing to save, and a resume cannot shift them."""

from __future__ import annotations

import math

from trn.spec.plan_model import SchedulePlan

__all__ = ["lr_at"]


def lr_at(schedule: SchedulePlan, index: int) -> float:
    """The learning rate of the update with this index, from 0: update n (from 1) uses `lr_at(schedule, n - 1)`.

    All kinds warm up linearly from 0 over `warmup_steps`, reach `lr_max` exactly at index `warmup_steps`, and then
    stay (`constant`), fall in a straight line (`linear`) or along half a cosine (`warmup_cosine`) to `lr_min` at
    index `total_steps`, where they rest. Source of the cosine and its edges: seed 002's pretraining driver,
    here in float64.
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
