"""The scale of an fp16 loss as a value: when it grows, when it shrinks, and what a refusal leaves of it."""

from __future__ import annotations

from typing import Any

import pytest

from trn.errors import NumericalInstability, ResumeRefused
from trn.trainer.scaling import GREATEST, LossScale, ScaleOverflow


def test_it_doubles_after_as_many_good_steps_in_a_row_as_planned() -> None:
    scale = LossScale(8.0)
    seen = []
    for _ in range(7):
        scale = scale.after_update(3)
        seen.append((scale.scale, scale.good_steps))
    assert seen == [(8.0, 1), (8.0, 2), (16.0, 0), (16.0, 1), (16.0, 2), (32.0, 0), (32.0, 1)]


def test_an_overflow_halves_it_for_the_next_try_and_the_row_of_good_steps_begins_anew() -> None:
    scale = LossScale(64.0, good_steps=2)
    tried = scale.after_overflow().after_overflow()
    assert (tried.now, tried.scale, tried.good_steps) == (16.0, 64.0, 2)
    assert tried.after_update(3) == LossScale(16.0, good_steps=1)
    assert tried.after_refusal() == scale


def test_it_never_leaves_its_range() -> None:
    assert LossScale(1.5).after_overflow().now == 1.0
    assert not LossScale(1.5).after_overflow().can_shrink()
    assert LossScale(1.5).can_shrink()
    assert LossScale(GREATEST).after_update(1).scale == GREATEST
    scale, tries = LossScale(GREATEST), 0
    while scale.can_shrink():
        scale, tries = scale.after_overflow(), tries + 1
    assert tries == 64


def test_it_is_read_back_as_it_was_written() -> None:
    scale = LossScale(4096.0, good_steps=7)
    assert LossScale.from_json(scale.to_json()) == scale
    assert "tried" not in scale.to_json()


@pytest.mark.parametrize(
    "value",
    [None, {}, {"scale": 1.0}, {"scale": 1, "good_steps": 0}, {"scale": 0.0, "good_steps": 0},
     {"scale": 1.0, "good_steps": 0.5}, {"scale": 1.0, "good_steps": 0, "more": 1}],
)  # fmt: skip
def test_what_it_never_wrote_is_refused(value: Any) -> None:
    with pytest.raises(ResumeRefused, match="expected a scale"):
        LossScale.from_json(value)


def test_whoever_does_not_know_an_overflow_takes_it_for_a_step_that_is_not_finite() -> None:
    error = ScaleOverflow(step=3, value=float("inf"), scale=512.0)
    assert isinstance(error, NumericalInstability)
    assert (error.step, error.field, error.value, error.scale) == (3, "grad_norm", "inf", 512.0)
