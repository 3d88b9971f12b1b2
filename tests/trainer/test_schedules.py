"""Learning rates at their edges; update n uses index n - 1."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trn.spec.plan_model import SchedulePlan
from trn.trainer import lr_at


def schedule(kind: str = "warmup_cosine", warmup: int = 10, total: int = 100) -> SchedulePlan:
    return SchedulePlan.model_validate(
        {"kind": kind, "warmup_steps": warmup, "total_steps": total, "lr_max": 1e-3, "lr_min": 1e-5}
    )


def forerunner_lr_at(step: int, warmup: int, total: int, lr_max: float, lr_min: float) -> np.float32:
    """Seed 002's formula in its own arithmetic, float32."""
    f = np.float32
    top, bottom = f(lr_max), f(lr_min)
    if step < warmup:
        return f(top * (f(step) / f(warmup)))
    span = max(total - warmup, 0)
    if span == 0 or step - warmup >= span:
        return bottom
    progress = f(step - warmup) / f(span)
    return f(bottom + (top - bottom) * f(0.5) * (f(1.0) + f(math.cos(f(math.pi) * progress))))


def test_warm_up_begins_at_zero_and_the_peak_and_the_floor_are_exact() -> None:
    plan = schedule()
    assert lr_at(plan, 0) == 0.0
    assert lr_at(plan, 5) == pytest.approx(5e-4, rel=1e-15)
    assert lr_at(plan, 10) == 1e-3
    assert lr_at(plan, 55) == pytest.approx((1e-3 + 1e-5) / 2, rel=1e-12)
    assert lr_at(plan, 100) == lr_at(plan, 1000) == 1e-5


@pytest.mark.parametrize(("warmup", "total"), [(0, 50), (2, 25), (10, 100), (100, 1000), (7, 8)])
def test_warmup_cosine_has_the_values_of_seed_002(warmup: int, total: int) -> None:
    plan = schedule(warmup=warmup, total=total)
    for step in range(total + 3):
        expected = forerunner_lr_at(step, warmup, total, 1e-3, 1e-5)
        # float32 carries 24 bits; the forerunner rounds after each of five operations
        assert lr_at(plan, step) == pytest.approx(float(expected), rel=4e-6, abs=1e-9)


def test_a_warm_up_as_long_as_the_budget_ends_at_the_floor() -> None:
    assert lr_at(schedule(warmup=100), 99) == pytest.approx(9.9e-4)
    assert lr_at(schedule(warmup=100), 100) == 1e-5


def test_linear_falls_in_a_straight_line() -> None:
    plan = schedule("linear", warmup=0)
    assert lr_at(plan, 0) == 1e-3
    assert lr_at(plan, 50) == pytest.approx((1e-3 + 1e-5) / 2)
    assert lr_at(plan, 100) == 1e-5


def test_constant_stays_at_its_peak_after_the_warm_up() -> None:
    plan = schedule("constant", warmup=4)
    assert [lr_at(plan, index) for index in (0, 2, 4, 99, 1000)] == [0.0, 5e-4, 1e-3, 1e-3, 1e-3]
