"""Every case of seed 002's own tests, and its driver as an oracle over whole histories."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trn.errors import NumericalInstability
from trn.gates import (
    DIVERGENCE_RATIO,
    FINETUNE_CAP,
    EpochTally,
    GateRules,
    GateState,
    after_validation,
    bad_readings,
    build_epoch_metadata,
    epoch_problems,
    first_loss_cap,
    perplexity,
    record_problems,
    require_finite,
)
from trn.loop.lines import step_line

FINETUNE = GateRules(cross_entropy=True, regime="finetune")
FROM_SCRATCH = GateRules(vocab_size=50_257, regime="from_scratch")
DRIVER = GateRules(cross_entropy=True, regime="finetune", target_val_loss=2.2, patience=2, min_epochs=1)


def verdict_of(series: Sequence[float], rules: GateRules) -> tuple[int, str] | None:
    """(epoch, outcome) of the first verdict; None where every epoch passes."""
    state = GateState()
    for epoch, val_loss in enumerate(series):
        state, verdict = after_validation(state, rules, val_loss, epoch)
        if verdict is not None:
            return epoch, verdict.outcome
    return None


def test_gate_train_005_aborts_on_doubling_val_loss() -> None:
    assert verdict_of([3.5, 7.1], FINETUNE) == (1, "divergence")


def test_gate_train_005_aborts_on_epoch_zero_blowup() -> None:
    assert verdict_of([31.99], FINETUNE) == (0, "divergence_at_first_validation")
    assert verdict_of([11.0], FINETUNE) == (0, "divergence_at_first_validation")


def test_gate_train_005_allows_healthy_decrease() -> None:
    assert verdict_of([3.5, 3.0, 2.5, 2.2], FINETUNE) is None


def test_gate_train_005_allows_exactly_twice() -> None:
    assert verdict_of([2.0, 4.0], FINETUNE) is None
    assert verdict_of([2.0, math.nextafter(4.0, 5.0)], FINETUNE) == (1, "divergence")


def test_gate_train_005_from_scratch_permits_near_random_baseline() -> None:
    assert verdict_of([18.0], FROM_SCRATCH) is None
    assert verdict_of([18.0], FINETUNE) == (0, "divergence_at_first_validation")


def test_gate_train_005_from_scratch_aborts_above_2_ln_vocab() -> None:
    assert verdict_of([25.0], FROM_SCRATCH) == (0, "divergence_at_first_validation")


def test_training_regime_from_scratch_cap_matches_formula() -> None:
    assert first_loss_cap(FROM_SCRATCH) == 2.0 * math.log(50_257) == pytest.approx(21.6498, abs=5e-5)
    assert first_loss_cap(FINETUNE) == FINETUNE_CAP == 10.0
    assert DIVERGENCE_RATIO == 2.0
    for vocab_size in (-1, 0, 1, 2):
        assert first_loss_cap(GateRules(vocab_size=vocab_size)) == 2.0 * math.log(2)


def test_gate_train_007_aborts_on_nan_train_loss() -> None:
    with pytest.raises(NumericalInstability) as caught:
        require_finite(42, "train_loss", math.nan)
    assert (caught.value.step, caught.value.field, caught.value.value) == (42, "train_loss", "nan")


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("field", ["train_loss", "grad_norm", "lr"])
def test_gate_train_007_aborts_on_whatever_is_not_finite(field: str, value: float) -> None:
    with pytest.raises(NumericalInstability, match=f"step 7.*{field} is"):
        require_finite(7, field, value)


def test_gate_train_007_lets_every_finite_number_pass() -> None:
    for value in (-1.0, -0.0, 0.0, 5e-324, sys.float_info.max):
        assert require_finite(1, "train_loss", value) == value


HEALTHY = {"tokens_per_sec": 1000.0, "samples_per_sec": 10.0, "gpu_util_pct": 75.0, "wall_ms": 5.0}


def test_step_metrics_accepts_healthy_readings() -> None:
    assert bad_readings(HEALTHY) == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens_per_sec", -1.0),
        ("gpu_util_pct", 150.0),
        ("wall_ms", -1.0),
        ("wall_ms", math.nan),
        ("wall_ms", math.inf),
    ],
)
def test_step_metrics_rejects_the_impossible(key: str, value: float) -> None:
    assert bad_readings({**HEALTHY, key: value}) == (key,)


def test_step_metrics_wall_ms_is_consistent_with_tokens_per_sec() -> None:
    line = step_line(
        step=1,
        epoch=0,
        metrics={"train_loss": 3.2, "grad_norm": 0.5, "lr": 1e-4},
        tokens=1024,
        rows=4,
        wall_s=0.5,
        waited_s=0.0,
        tokens_seen=1024,
    )
    assert record_problems(line) == []
    assert line["tokens_per_sec"] * line["wall_ms"] / 1000.0 == 1024.0


def test_pretrain_loop_happy_path_ends_at_the_target() -> None:
    assert verdict_of([3.4, 3.0, 2.6, 2.2, 2.0], DRIVER) == (3, "target_reached")


def test_pretrain_loop_aborts_on_doubling_val_loss() -> None:
    assert verdict_of([3.5, 7.1, 2.0], DRIVER) == (1, "divergence")


def test_epoch_metadata_has_the_nine_fields_and_the_digest_that_was_given() -> None:
    tally = EpochTally().with_step(3.0, 1.5, 42.0)
    metadata = build_epoch_metadata(
        7, tally, val_loss=2.8, optimizer_state_sha="a" * 64, tokens_seen=1_000_000, cross_entropy=True
    )
    assert metadata == {
        "epoch": 7,
        "train_loss": 3.0,
        "val_loss": 2.8,
        "train_ppl": math.exp(3.0),
        "val_ppl": math.exp(2.8),
        "optimizer_state_sha": "a" * 64,
        "wall_seconds": 42.0,
        "tokens_seen": 1_000_000,
        "grad_norm_max": 1.5,
    }
    assert epoch_problems(metadata) == []
    assert perplexity(3.0) == pytest.approx(20.0855, abs=1e-4)


@pytest.mark.parametrize(("patience", "epochs"), [(2, 4), (5, 7)])
def test_a_flat_loss_stops_when_the_counter_is_above_patience(patience: int, epochs: int) -> None:
    rules = GateRules(cross_entropy=True, regime="finetune", patience=patience, min_epochs=3)
    assert verdict_of([2.5] * 20, rules) == (epochs - 1, "early_stopped")


def test_the_target_is_tested_before_patience() -> None:
    """The forerunner stopped early here, although the target was met at every epoch."""
    rules = GateRules(cross_entropy=True, regime="finetune", target_val_loss=2.2, patience=0, min_epochs=3)
    assert verdict_of([2.0, 2.1, 2.1], rules) == (2, "target_reached")


def test_growth_below_twice_an_epoch_passes_unless_a_factor_is_given() -> None:
    series = [3.0 * 1.99**epoch for epoch in range(10)]
    assert series[-1] > 1000.0
    assert verdict_of(series, FINETUNE) is None
    with_factor = GateRules(cross_entropy=True, regime="finetune", divergence_factor=3.0)
    assert verdict_of(series, with_factor) == (2, "divergence")


def driver(series: Sequence[float], rules: GateRules) -> tuple[int, str] | None:
    """Seed 002's `run`, from its text, over the whole history; the target is tested before patience."""
    cap = first_loss_cap(rules)
    best, patience_counter = math.inf, 0
    for epoch, curr in enumerate(series):
        if not math.isfinite(curr):
            return epoch, "numerical_instability"
        if epoch == 0:
            if cap is not None and curr > cap:
                return epoch, "divergence_at_first_validation"
        elif rules.is_cross_entropy and curr > 2.0 * series[epoch - 1]:
            return epoch, "divergence"
        if curr < best:
            best, patience_counter = curr, 0
        else:
            patience_counter += 1
        if epoch + 1 < rules.min_epochs:
            continue
        if rules.target_val_loss is not None and curr <= rules.target_val_loss:
            return epoch, "target_reached"
        if rules.patience is not None and patience_counter > rules.patience:
            return epoch, "early_stopped"
    return None


LOSSES = st.one_of(
    st.sampled_from([0.0, 1.0, 2.0, 2.2, 4.0, 8.0, 10.0, 2 * math.log(50_257), math.inf, -math.inf, math.nan]),
    st.floats(0.0, 30.0),
)


@given(
    st.lists(LOSSES, max_size=12),
    st.builds(
        GateRules,
        cross_entropy=st.booleans(),
        vocab_size=st.sampled_from([None, 2, 10, 50_257]),
        regime=st.sampled_from(["finetune", "from_scratch"]),
        target_val_loss=st.none() | st.floats(0.1, 10.0),
        patience=st.none() | st.integers(0, 3),
        min_epochs=st.integers(0, 5),
    ),
)
def test_any_series_ends_as_in_the_forerunners_driver(series: list[float], rules: GateRules) -> None:
    assert verdict_of(series, rules) == driver(series, rules)
