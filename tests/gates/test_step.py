"""G1, G8 and the skip policy: what a step leaves behind."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import pytest

from trn.gates import (
    READING_RANGES,
    GateRules,
    GateState,
    after_skip,
    after_step,
    bad_readings,
    record_problems,
)
from trn.records import STEP_KEYS, TIMING_KEYS, Json

LINE: Json = {
    "step": 1,
    "epoch": 0,
    "train_loss": 3.2,
    "grad_norm": 0.5,
    "lr": 0.0,
    "tokens_per_sec": 1000.0,
    "samples_per_sec": 10.0,
    "gpu_util_pct": None,
    "wall_ms": 5.0,
    "data_wait_ms": 0.0,
    "tokens_seen": 5,
}
RULES = GateRules()
SKIP = GateRules(policy="skip", max_skips=3, lr_decay=0.5)


def test_ranges_are_given_for_exactly_what_clocks_and_sensors_read() -> None:
    assert READING_RANGES.keys() == TIMING_KEYS


def test_a_whole_line_is_complete_and_may_have_metrics_of_its_own() -> None:
    assert record_problems(LINE) == []
    assert record_problems({**LINE, "val_accuracy": 0.5, "count": 3, "tokens_seen": None}) == []
    assert record_problems({**LINE, "train_loss": -1.0, "grad_norm": -1.0, "lr": -1.0}) == []


@pytest.mark.parametrize("key", STEP_KEYS)
def test_a_missing_key_is_named(key: str) -> None:
    assert record_problems({name: value for name, value in LINE.items() if name != key}) == [f"{key} is missing"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", 0),
        ("step", 1.0),
        ("step", True),
        ("step", None),
        ("epoch", -1),
        ("epoch", None),
        ("tokens_seen", -1),
        ("tokens_seen", 5.0),
        ("train_loss", math.nan),
        ("train_loss", "3.2"),
        ("train_loss", True),
        ("grad_norm", math.inf),
        ("lr", -math.inf),
        ("wall_ms", -1.0),
        ("gpu_util_pct", 101),
        ("tokens_per_sec", "fast"),
        ("accuracy", None),
        ("accuracy", math.nan),
        ("accuracy", [0.5]),
    ],
)
def test_what_a_key_cannot_mean_is_named(key: str, value: Any) -> None:
    for makes_own_updates in (False, True):
        problems = record_problems({**LINE, key: value}, makes_own_updates=makes_own_updates)
        assert len(problems) == 1
        assert problems[0].startswith(f"{key}: ")


@pytest.mark.parametrize("key", ["train_loss", "grad_norm", "lr"])
def test_only_a_trainer_that_makes_its_own_updates_may_leave_its_metrics_null(key: str) -> None:
    line = {**LINE, key: None}
    assert record_problems(line) == [f"{key}: expected a finite number, found None"]
    assert record_problems(line, makes_own_updates=True) == []


@pytest.mark.parametrize("key", list(READING_RANGES))
def test_the_edges_of_a_range_are_legal_and_beyond_is_not(key: str) -> None:
    low, high = READING_RANGES[key]
    for value in (None, low, int(low), min(high, sys.float_info.max), -0.0):
        assert bad_readings({**LINE, key: value}) == (), value
    for value in (math.nextafter(low, -1.0), math.nextafter(high, math.inf), math.inf, -math.inf, math.nan):
        assert bad_readings({**LINE, key: value}) == (key,), value
    for value in (True, "7", [1.0]):
        assert bad_readings({**LINE, key: value}) == (key,), value


def test_a_good_step_changes_nothing() -> None:
    state = GateState(telemetry_warnings=3)
    same, line, verdict = after_step(state, RULES, LINE)
    assert same is state
    assert line is LINE
    assert verdict is None


def test_a_bad_reading_is_null_and_counted_and_does_not_end_the_run() -> None:
    given = {**LINE, "gpu_util_pct": 150.0, "wall_ms": math.nan}
    state, line, verdict = after_step(GateState(), RULES, given)
    assert verdict is None
    assert state.telemetry_warnings == 2
    assert line == {**LINE, "gpu_util_pct": None, "wall_ms": None}
    assert list(line) == list(given)
    assert record_problems(line) == []


def test_a_bad_reading_ends_the_run_where_the_spec_says_so_and_its_line_is_still_whole() -> None:
    state, line, verdict = after_step(
        GateState(), GateRules(telemetry="stop"), {**LINE, "gpu_util_pct": -0.1, "wall_ms": -1.0}
    )
    assert verdict is not None
    assert (verdict.outcome, verdict.gate) == ("telemetry_out_of_range", "telemetry")
    assert not verdict.is_damage
    assert verdict.reason == "gpu_util_pct is -0.1 at step 1, expected 0 to 100"
    assert line == {**LINE, "gpu_util_pct": None, "wall_ms": None}
    assert state.telemetry_warnings == 2


def test_with_stop_the_first_refused_step_ends_the_run() -> None:
    state, verdict = after_skip(GateState(), RULES)
    assert state == GateState()
    assert verdict is not None
    assert verdict.outcome == "numerical_instability"


def test_max_skips_in_a_row_pass_and_one_more_ends_the_run() -> None:
    state = GateState()
    for number in range(1, 4):
        state, verdict = after_skip(state, SKIP)
        assert verdict is None
        assert (state.skips_in_row, state.skips, state.lr_factor) == (number, number, 0.5**number)
    same, verdict = after_skip(state, SKIP)
    assert same is state
    assert verdict is not None
    assert verdict.outcome == "numerical_instability"
    assert "4 steps in a row" in verdict.reason


def test_an_accepted_step_ends_the_row_and_keeps_the_lower_learning_rate() -> None:
    state, _ = after_skip(GateState(), SKIP)
    state, line, verdict = after_step(state, SKIP, LINE)
    assert line == LINE
    assert verdict is None
    assert (state.skips_in_row, state.skips, state.lr_factor) == (0, 1, 0.5)
    for number in range(2, 5):
        state, verdict = after_skip(state, SKIP)
        assert verdict is None
        assert state.skips == number


def test_a_decay_of_one_leaves_the_learning_rate_as_it_is() -> None:
    assert after_skip(GateState(), replace(SKIP, lr_decay=1.0))[0].lr_factor == 1.0


def test_thousands_of_skips_never_make_the_factor_zero() -> None:
    state = GateState()
    for _ in range(3000):
        state, verdict = after_skip(replace(state, skips_in_row=0), SKIP)
        assert verdict is None
    assert state.lr_factor > 0.0
    assert GateState.from_json(state.to_json()) == state
