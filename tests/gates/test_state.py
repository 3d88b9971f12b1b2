"""What the gates remember survives being saved, and nothing else is read back."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest

from trn.errors import STATUS
from trn.gates import CLOCKED_KEYS, EpochTally, GateState
from trn.gates.verdict import Ends, Verdict
from trn.records import JsonError, canonical_json, from_json

FULL = GateState(
    validations=5,
    last_loss=2.5,
    lowest_loss=2.0,
    epochs=3,
    epoch_loss=2.25,
    best_loss=2.125,
    counter=1,
    skips_in_row=1,
    skips=2,
    lr_factor=0.25,
    telemetry_warnings=7,
)


@pytest.mark.parametrize("state", [GateState(), FULL])
def test_a_state_comes_back_from_strict_json_as_it_was(state: GateState) -> None:
    assert GateState.from_json(from_json(canonical_json(state.to_json()))) == state


@pytest.mark.parametrize("tally", [EpochTally(), EpochTally(3, 0.1 + 0.2, 1e-300, 2.5)])
def test_a_tally_comes_back_from_strict_json_as_it_was(tally: EpochTally) -> None:
    assert EpochTally.from_json(from_json(canonical_json(tally.to_json()))) == tally


@pytest.mark.parametrize(
    "change",
    [
        {"validations": -1},
        {"validations": 5.0},
        {"validations": True},
        {"validations": None},
        {"validations": 0},
        {"validations": 1},
        {"last_loss": math.nan},
        {"last_loss": math.inf},
        {"last_loss": 2},
        {"last_loss": "2.5"},
        {"last_loss": None},
        {"last_loss": 1.0},
        {"lowest_loss": None},
        {"lowest_loss": 3.0},
        {"epochs": 0},
        {"epoch_loss": None},
        {"best_loss": None},
        {"best_loss": 1.0},
        {"counter": 3},
        {"skips_in_row": 3},
        {"skips": 0},
        {"skips": 0, "skips_in_row": 0},
        {"lr_factor": 0.0},
        {"lr_factor": -0.5},
        {"lr_factor": 1.5},
        {"lr_factor": None},
        {"telemetry_warnings": -1},
        {"history": [1.0]},
    ],
)
def test_a_state_that_cannot_have_been_saved_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(JsonError, match="GateState"):
        GateState.from_json({**FULL.to_json(), **change})


@pytest.mark.parametrize("key", list(FULL.to_json()))
def test_a_state_that_lacks_a_key_is_refused(key: str) -> None:
    value = FULL.to_json()
    del value[key]
    with pytest.raises(JsonError, match=f"missing {key}"):
        GateState.from_json(value)


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        None,
        {"losses": 0, "mean_loss": 1.0, "grad_norm_max": None, "wall_s": 0.0},
        {"losses": 1, "mean_loss": None, "grad_norm_max": None, "wall_s": 0.0},
        {"losses": 0, "mean_loss": None, "grad_norm_max": None, "wall_s": -1.0},
        {"losses": 0, "mean_loss": None, "grad_norm_max": math.inf, "wall_s": 0.0},
    ],
)
def test_a_tally_that_cannot_have_been_saved_is_refused(value: Any) -> None:
    with pytest.raises(JsonError, match="EpochTally"):
        EpochTally.from_json(value)


def test_what_clocks_and_sensors_gave_is_named() -> None:
    assert {*GateState().to_json(), *EpochTally().to_json()} >= CLOCKED_KEYS


def test_every_word_of_a_verdict_is_an_outcome() -> None:
    assert set(get_args(Ends)) <= STATUS.keys()
    damage = {word for word in get_args(Ends) if Verdict(word, "", "budget").is_damage}
    assert damage == {"divergence", "divergence_at_first_validation", "numerical_instability"}
