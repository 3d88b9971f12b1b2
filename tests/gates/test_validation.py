"""G3 to G5 at their edges, and what a run ends with when its budget is used up."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from trn.errors import STATUS
from trn.gates import (
    GateRules,
    GateState,
    Verdict,
    after_validation,
    at_budget_end,
    first_loss_cap,
    regime_of,
    standing_verdict,
)

FINETUNE = GateRules(cross_entropy=True, regime="finetune")
BOTH = replace(FINETUNE, target_val_loss=2.0, patience=0, min_epochs=0)
Series = list[tuple[float, int, bool]]
"""(val_loss, epoch, whether it ends the epoch)."""


def play(series: Series, rules: GateRules) -> tuple[GateState, Verdict | None]:
    state = GateState()
    for val_loss, epoch, ends_epoch in series:
        state, verdict = after_validation(state, rules, val_loss, epoch, ends_epoch=ends_epoch)
        if verdict is not None:
            return state, verdict
    return state, None


def by_epochs(*losses: float) -> Series:
    return [(loss, epoch, True) for epoch, loss in enumerate(losses)]


def outcome(series: Series, rules: GateRules) -> str | None:
    verdict = play(series, rules)[1]
    return None if verdict is None else verdict.outcome


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rules", [FINETUNE, GateRules()])
@pytest.mark.parametrize("before", [by_epochs(), by_epochs(3.0), by_epochs(3.0, 2.0)])
def test_a_loss_that_is_not_finite_is_numerical_instability_wherever_it_is(
    loss: float, rules: GateRules, before: Series
) -> None:
    state, _ = play(before, rules)
    same, verdict = after_validation(state, rules, loss, len(before))
    assert verdict is not None
    assert (verdict.outcome, verdict.gate) == ("numerical_instability", "numerical_stability")
    assert verdict.is_damage
    assert same is state


@pytest.mark.parametrize(
    ("rules", "cap"),
    [(FINETUNE, 10.0), (GateRules(vocab_size=10), 2 * math.log(10)), (GateRules(vocab_size=1), 2 * math.log(2))],
)
def test_the_cap_itself_passes_and_the_next_number_does_not(rules: GateRules, cap: float) -> None:
    assert first_loss_cap(rules) == cap
    assert outcome(by_epochs(cap), rules) is None
    assert outcome(by_epochs(math.nextafter(cap, math.inf)), rules) == "divergence_at_first_validation"


def test_a_loss_of_unknown_scale_may_have_any_size_and_grow() -> None:
    assert first_loss_cap(GateRules()) is None
    assert outcome(by_epochs(1e6, 1e9, 1e300), GateRules()) is None
    assert outcome(by_epochs(1e6, 1e9), GateRules(regime="finetune")) is None


def test_a_cross_entropy_of_unknown_classes_has_no_cap_from_scratch_but_may_not_double() -> None:
    rules = GateRules(cross_entropy=True, regime="from_scratch")
    assert first_loss_cap(rules) is None
    assert outcome(by_epochs(50.0, 100.0), rules) is None
    assert outcome(by_epochs(50.0, 100.1), rules) == "divergence"


def test_after_a_loss_of_zero_only_zero_has_not_doubled() -> None:
    assert outcome(by_epochs(1.0, 0.0, 0.0), FINETUNE) is None
    assert outcome(by_epochs(1.0, 0.0, 5e-324), FINETUNE) == "divergence"


def test_twice_a_loss_beyond_any_float_is_no_limit() -> None:
    rules = GateRules(cross_entropy=True)
    assert outcome(by_epochs(1.7e308, 1.79e308), rules) is None


def test_only_validations_that_passed_are_compared_with() -> None:
    state, verdict = play(by_epochs(3.0, 6.5), FINETUNE)
    assert verdict is not None
    assert (state.last_loss, state.epochs, state.counter, state.validations) == (3.0, 1, 0, 1)
    assert after_validation(state, FINETUNE, 6.0, 1)[1] is None


def test_the_factor_is_of_the_lowest_loss_and_adds_to_the_fixed_rules() -> None:
    rules = replace(FINETUNE, divergence_factor=1.5)
    assert outcome(by_epochs(2.0, 1.0, 1.5), rules) is None
    assert outcome(by_epochs(2.0, 1.0, 1.4, 1.51), rules) == "divergence"
    lax = replace(FINETUNE, divergence_factor=1000.0)
    assert outcome(by_epochs(2.0, 4.1), lax) == "divergence"
    assert outcome(by_epochs(10.1), lax) == "divergence_at_first_validation"


def test_the_factor_holds_for_any_loss_but_a_negative_one() -> None:
    rules = GateRules(divergence_factor=3.0)
    assert outcome(by_epochs(1.0, 3.0), rules) is None
    assert outcome(by_epochs(1.0, 3.1), rules) == "divergence"
    assert outcome(by_epochs(-5.0, -4.9, 100.0), rules) is None
    assert outcome(by_epochs(0.0, 0.1), rules) == "divergence"


def test_a_validation_within_an_epoch_is_judged_and_moves_neither_target_nor_patience() -> None:
    rules = replace(BOTH, patience=1, min_epochs=1)
    series = [(1.5, 0, False), (1.9, 0, False), (3.0, 0, True), (1.0, 1, False), (1.9, 1, False)]
    state, verdict = play(series, rules)
    assert verdict is None
    assert (state.epochs, state.best_loss, state.counter, state.last_loss, state.lowest_loss) == (1, 3.0, 0, 1.9, 1.0)


def test_within_the_first_epoch_the_cap_holds_at_every_validation() -> None:
    assert outcome([(10.5, 0, False)], FINETUNE) == "divergence_at_first_validation"
    assert outcome([(9.0, 0, False), (10.5, 0, True)], FINETUNE) == "divergence"
    assert outcome([(9.0, 0, True), (10.5, 1, True)], FINETUNE) is None


def test_validating_more_often_lifts_no_limit() -> None:
    """1.4 x 1.4 x 1.4 between two epochs' ends is more than twice, though no two neighbours are."""
    ends = by_epochs(2.0, 2.0 * 1.4**3)
    between = [ends[0], (2.0 * 1.4, 1, False), (2.0 * 1.4**2, 1, False), ends[1]]
    assert all(b[0] <= 2 * a[0] for a, b in pairwise(between))
    assert outcome(ends, FINETUNE) == outcome(between, FINETUNE) == "divergence"


def test_a_loss_that_doubles_between_two_validations_of_an_epoch_has_diverged() -> None:
    assert outcome([(9.0, 0, False), (3.0, 0, False), (6.1, 0, False)], FINETUNE) == "divergence"


@pytest.mark.parametrize(("min_epochs", "ends_at"), [(0, 0), (1, 0), (2, 1), (3, 2)])
def test_the_target_ends_a_run_from_min_epochs_on(min_epochs: int, ends_at: int) -> None:
    rules = replace(FINETUNE, target_val_loss=2.0, min_epochs=min_epochs)
    state, verdict = play(by_epochs(2.0, 2.0, 2.0, 2.0), rules)
    assert verdict is not None
    assert (verdict.outcome, verdict.gate, state.epochs) == ("target_reached", "target", ends_at + 1)


def test_a_target_that_was_met_before_min_epochs_must_still_be_met_then() -> None:
    rules = replace(FINETUNE, target_val_loss=2.0, min_epochs=3)
    assert outcome(by_epochs(1.9, 1.9, 2.1), rules) is None
    assert outcome(by_epochs(1.9, 1.9, math.nextafter(2.0, 3.0)), rules) is None
    assert outcome(by_epochs(3.0, 3.0, 2.0), rules) == "target_reached"


def test_the_counter_counts_before_min_epochs_and_stops_only_from_there_on() -> None:
    rules = replace(FINETUNE, patience=1, min_epochs=5)
    state, verdict = play(by_epochs(3.0, 3.0, 3.0, 3.0), rules)
    assert verdict is None
    assert state.counter == 3
    assert outcome(by_epochs(3.0, 3.0, 3.0, 3.0, 3.0), rules) == "early_stopped"
    assert outcome(by_epochs(3.0, 3.0, 3.0, 3.0, 2.9), rules) is None


def test_with_patience_zero_the_first_epoch_that_is_not_better_ends_the_run() -> None:
    rules = replace(FINETUNE, patience=0, min_epochs=0)
    assert outcome(by_epochs(3.0), rules) is None
    assert outcome(by_epochs(3.0, 2.9, 2.8), rules) is None
    assert outcome(by_epochs(3.0, 3.0), rules) == "early_stopped"


def test_target_and_patience_at_once_is_the_target() -> None:
    assert outcome(by_epochs(1.9), BOTH) == "target_reached"
    rules = replace(BOTH, min_epochs=2)
    assert outcome(by_epochs(1.9, 2.0), rules) == "target_reached"
    assert outcome(by_epochs(1.9, 2.1), rules) == "early_stopped"


def test_better_is_lower_by_more_than_min_delta() -> None:
    rules = replace(FINETUNE, patience=0, min_epochs=0, min_delta=0.5)
    assert outcome(by_epochs(3.0, 2.5), rules) == "early_stopped"
    assert outcome(by_epochs(3.0, math.nextafter(2.5, 0.0)), rules) is None


def test_small_gains_add_up_against_the_last_better_loss() -> None:
    rules = replace(FINETUNE, patience=2, min_epochs=0, min_delta=0.5)
    state, verdict = play(by_epochs(3.0, 2.75, 2.5, 2.25), rules)
    assert verdict is None
    assert (state.best_loss, state.counter) == (2.25, 0)


def test_patience_above_a_required_target_is_a_missed_target() -> None:
    rules = replace(BOTH, require_target=True)
    state, verdict = play(by_epochs(3.0, 3.0), rules)
    assert verdict is not None
    assert (verdict.outcome, verdict.gate) == ("target_missed", "patience")
    assert standing_verdict(state, rules) == verdict == at_budget_end(state, rules)


def test_a_verdict_of_target_or_patience_stands_in_the_state_that_it_was_made_of() -> None:
    for series in (by_epochs(1.9), by_epochs(3.0, 3.0)):
        state, verdict = play(series, BOTH)
        assert verdict is not None
        assert not verdict.is_damage
        assert standing_verdict(GateState.from_json(state.to_json()), BOTH) == verdict
    assert standing_verdict(GateState(), BOTH) is None


@pytest.mark.parametrize(
    ("last", "target", "required", "expected"),
    [
        (3.0, None, False, "completed"),
        (3.0, 2.0, False, "completed"),
        (3.0, 2.0, True, "target_missed"),
        (2.0, 2.0, False, "target_reached"),
        (2.0, 2.0, True, "target_reached"),
        (None, None, False, "completed"),
        (None, 2.0, False, "completed"),
        (None, 2.0, True, "target_missed"),
    ],
)
def test_the_end_of_the_budget_tells_target_and_budget_apart(
    last: float | None, target: float | None, required: bool, expected: str
) -> None:
    rules = replace(FINETUNE, target_val_loss=target, require_target=required, min_epochs=100)
    state = GateState() if last is None else play(by_epochs(last), rules)[0]
    assert at_budget_end(state, rules).outcome == expected


def test_the_last_validation_decides_at_the_end_of_the_budget_also_within_an_epoch() -> None:
    rules = replace(FINETUNE, target_val_loss=2.0)
    state, verdict = play([(1.5, 0, True), (2.5, 1, True), (1.9, 2, False)], rules)
    assert verdict is None
    assert at_budget_end(state, rules).outcome == "target_reached"
    state, _ = play([(1.5, 0, True), (2.5, 1, True)], rules)
    verdict = at_budget_end(state, rules)
    assert verdict.outcome == "completed"
    assert verdict.reason == "every step of the budget is made; val_loss is 2.5, the target 2 is not reached"


def test_an_epoch_cannot_be_validated_after_a_later_one() -> None:
    state, _ = play([(3.0, 4, True)], FINETUNE)
    assert state.epochs == 5
    with pytest.raises(AssertionError):
        after_validation(state, FINETUNE, 3.0, 4)


def test_the_reason_names_the_value_the_limit_and_where_it_comes_from() -> None:
    verdict = play(by_epochs(3.5, 7.1), FINETUNE)[1]
    assert verdict is not None
    assert verdict.reason.startswith("val_loss is 7.1 after epoch 1, above 7, twice the 3.5 of the validation before;")
    assert "\n" not in verdict.reason
    assert STATUS[verdict.outcome].exit == 81


def test_the_regime_follows_from_the_weights_unless_it_is_given() -> None:
    assert regime_of(True) == "finetune"
    assert regime_of(False) == "from_scratch"
    assert regime_of(True, "from_scratch") == "from_scratch"
    assert regime_of(False, "finetune") == "finetune"
