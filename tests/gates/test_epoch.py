"""G2: the nine fields of an epoch, and the running value they come from."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trn.gates import EPOCH_KEYS, EpochTally, build_epoch_metadata, epoch_problems, perplexity
from trn.records import Json, canonical_json, from_json

SHA = "0123456789abcdef" * 4


def tally_of(losses: list[float]) -> EpochTally:
    tally = EpochTally()
    for loss in losses:
        tally = tally.with_step(loss, abs(loss), 0.5)
    return tally


def metadata(**changes: Any) -> Json:
    whole = build_epoch_metadata(
        2, tally_of([3.0, 2.0]), val_loss=2.25, optimizer_state_sha=SHA, tokens_seen=10, cross_entropy=True
    )
    return {**whole, **changes}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_the_mean_is_that_of_all_accepted_steps(losses: list[float]) -> None:
    tally = tally_of(losses)
    scale = max(abs(loss) for loss in losses)
    # each of n additions rounds once, at most by half an ulp of the largest value
    assert tally.mean_loss == pytest.approx(math.fsum(losses) / len(losses), abs=len(losses) * 4e-16 * scale)
    assert tally.grad_norm_max == max(abs(loss) for loss in losses)
    assert (tally.losses, tally.wall_s) == (len(losses), 0.5 * len(losses))


def test_the_mean_of_equal_losses_is_that_loss() -> None:
    assert tally_of([0.1] * 1000).mean_loss == 0.1


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=50))
def test_no_finite_losses_make_the_mean_overflow(losses: list[float]) -> None:
    tally = tally_of([sys.float_info.max, -sys.float_info.max, *losses])
    assert tally.mean_loss is not None
    assert math.isfinite(tally.mean_loss)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=30), st.integers(0, 30))
def test_a_tally_that_was_saved_anywhere_comes_to_the_same_end(losses: list[float], at: int) -> None:
    tally = tally_of(losses[:at])
    tally = EpochTally.from_json(from_json(canonical_json(tally.to_json())))
    for loss in losses[at:]:
        tally = tally.with_step(loss, abs(loss), 0.5)
    assert tally == tally_of(losses)


def test_what_a_trainer_does_not_report_is_not_in_the_mean() -> None:
    tally = EpochTally().with_step(None, None, 1.0).with_step(3, None, 1.0).with_step(None, 2, 1.0)
    assert tally == EpochTally(1, 3.0, 2.0, 3.0)
    assert type(tally.mean_loss) is float
    assert EpochTally().with_step(None, None, 1.0).mean_loss is None


def test_time_of_a_validation_counts_and_an_impossible_reading_does_not() -> None:
    tally = EpochTally().with_step(1.0, 1.0, 2.0).with_wall(0.5)
    assert tally == EpochTally(1, 1.0, 1.0, 2.5)
    for bad in (math.nan, math.inf, -math.inf, -1.0):
        assert tally.with_wall(bad) == tally
        assert tally.with_step(1.0, 1.0, bad).wall_s == 2.5


def test_perplexity_is_null_without_a_loss_and_where_it_overflows() -> None:
    assert perplexity(None) is None
    assert perplexity(0.0) == 1.0
    assert perplexity(709.0) == math.exp(709.0)
    assert perplexity(710.0) is None
    assert perplexity(-1e9) == 0.0


def test_a_built_epoch_is_complete_and_strict_json() -> None:
    whole = metadata()
    assert tuple(whole) == EPOCH_KEYS
    assert epoch_problems(from_json(canonical_json(whole))) == []


def test_an_epoch_without_validation_or_with_an_overflowing_loss_is_complete() -> None:
    for val_loss in (None, 1000.0):
        whole = build_epoch_metadata(0, tally_of([1e3]), val_loss=val_loss, optimizer_state_sha=SHA, tokens_seen=None)
        assert whole["val_ppl"] is None
        assert whole["train_ppl"] is None
        assert epoch_problems(whole) == []


def test_a_whole_number_as_validation_loss_is_recorded_as_a_float() -> None:
    whole = build_epoch_metadata(0, tally_of([1.0]), val_loss=2, optimizer_state_sha=SHA, tokens_seen=None)
    assert type(whole["val_loss"]) is float
    assert epoch_problems(whole) == []


def test_a_loss_that_is_no_cross_entropy_has_no_perplexity() -> None:
    whole = build_epoch_metadata(
        0, tally_of([0.5]), val_loss=0.5, optimizer_state_sha=SHA, tokens_seen=None, cross_entropy=False
    )
    assert (whole["train_ppl"], whole["val_ppl"]) == (None, None)
    assert epoch_problems(whole, cross_entropy=False) == []
    assert len(epoch_problems(whole)) == 2
    assert len(epoch_problems(metadata(), cross_entropy=False)) == 2


def test_only_a_trainer_that_makes_its_own_updates_may_leave_loss_norm_and_digest_null() -> None:
    whole = build_epoch_metadata(0, EpochTally(), val_loss=None, optimizer_state_sha=None, tokens_seen=None)
    assert epoch_problems(whole, makes_own_updates=True) == []
    named = [problem.split(":")[0] for problem in epoch_problems(whole)]
    assert named == ["train_loss", "optimizer_state_sha", "grad_norm_max"]


@pytest.mark.parametrize("key", EPOCH_KEYS)
def test_a_missing_field_is_named(key: str) -> None:
    whole = metadata()
    del whole[key]
    assert epoch_problems(whole) == [f"{key} is missing"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch", -1),
        ("epoch", 2.0),
        ("epoch", True),
        ("epoch", None),
        ("train_loss", None),
        ("train_loss", math.nan),
        ("train_loss", 10**400),
        ("val_loss", math.inf),
        ("val_loss", "2.25"),
        ("train_ppl", 1.0),
        ("val_ppl", None),
        ("val_ppl", math.exp(2.25) * (1 + 1e-9)),
        ("optimizer_state_sha", "A" * 64),
        ("optimizer_state_sha", "a" * 63),
        ("optimizer_state_sha", ""),
        ("wall_seconds", -0.5),
        ("wall_seconds", None),
        ("tokens_seen", -1),
        ("tokens_seen", 1.5),
        ("grad_norm_max", math.inf),
        ("grad_norm_max", None),
    ],
)
def test_what_a_field_cannot_hold_is_named(key: str, value: Any) -> None:
    problems = epoch_problems(metadata(**{key: value}))
    assert len(problems) == 1
    assert problems[0].startswith(f"{key}: ")


def test_an_unknown_field_is_named() -> None:
    assert epoch_problems(metadata(val_accuracy=0.5)) == ["val_accuracy is unknown"]
