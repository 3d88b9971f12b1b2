"""A kill anywhere and a resume from the saved state give the same verdict at the same step; healthy runs give none."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trn.gates import (
    EpochTally,
    GateRules,
    GateState,
    Verdict,
    after_skip,
    after_step,
    after_validation,
    at_budget_end,
    record_problems,
    regime_of,
    standing_verdict,
)
from trn.records import Json, canonical_json, from_json

Event = tuple[Any, ...]


def line_of(step: int, loss: float, gpu_util_pct: float | None = None) -> Json:
    return {
        "step": step,
        "epoch": 0,
        "train_loss": loss,
        "grad_norm": abs(loss),
        "lr": 1e-3,
        "tokens_per_sec": None,
        "samples_per_sec": 10.0,
        "gpu_util_pct": gpu_util_pct,
        "wall_ms": 1.0,
        "data_wait_ms": 0.0,
        "tokens_seen": None,
    }


def saved(state: GateState) -> GateState:
    return GateState.from_json(from_json(canonical_json(state.to_json())))


def run(events: list[Event], rules: GateRules, kills: frozenset[int] = frozenset()) -> tuple[int, Verdict, GateState]:
    """(index of the event, verdict, state); before each event in `kills` the process dies and resumes."""
    state = GateState()
    for index, (kind, *arguments) in enumerate(events):
        if index in kills:
            state = saved(state)
            assert standing_verdict(state, rules) is None, "it would have ended before"
        verdict: Verdict | None
        if kind == "validation":
            loss, epoch, ends_epoch = arguments
            state, verdict = after_validation(state, rules, loss, epoch, ends_epoch=ends_epoch)
        elif kind == "step":
            state, _, verdict = after_step(state, rules, line_of(index + 1, *arguments))
        else:
            state, verdict = after_skip(state, rules)
        if verdict is not None:
            return index, verdict, state
    return len(events), at_budget_end(state, rules), state


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Steps, skips and validations; an epoch's end is the validation that moves on to the next epoch."""
    losses = st.sampled_from([0.0, 0.9, 1.0, 1.5, 2.0, 2.1, 3.0, 4.0, 6.0, 9.9, 10.1, math.inf, math.nan])
    usual = st.floats(1.0, 2.0)
    events: list[Event] = []
    epoch = 0
    for kind in draw(st.lists(st.sampled_from(["step", "skip", "validation", "validation", "epoch"]), max_size=40)):
        loss = draw(usual if draw(st.integers(0, 4)) else losses)
        if kind == "step":
            events.append(("step", 1.0, draw(st.sampled_from([None, None, 50.0, 101.0]))))
        elif kind == "skip":
            events.append(("skip",))
        else:
            events.append(("validation", loss, epoch, kind == "epoch"))
            epoch += kind == "epoch"
    return events


RULES = st.builds(
    GateRules,
    cross_entropy=st.booleans(),
    vocab_size=st.sampled_from([None, 100]),
    regime=st.sampled_from(["finetune", "from_scratch"]),
    target_val_loss=st.none() | st.sampled_from([1.0, 1.1]),
    require_target=st.booleans(),
    patience=st.none() | st.integers(0, 3),
    min_epochs=st.integers(0, 5),
    min_delta=st.sampled_from([0.0, 0.1]),
    divergence_factor=st.none() | st.sampled_from([1.5, 3.0]),
    telemetry=st.sampled_from(["warn", "warn", "stop"]),
    policy=st.sampled_from(["skip", "skip", "stop"]),
    max_skips=st.integers(1, 3),
    lr_decay=st.sampled_from([0.1, 0.5, 1.0]),
)


@settings(max_examples=500)
@given(histories(), RULES, st.frozensets(st.integers(0, 40)))
def test_kills_anywhere_change_no_verdict_and_no_bit_of_the_state(
    events: list[Event], rules: GateRules, kills: frozenset[int]
) -> None:
    assert run(events, rules, kills) == run(events, rules)


@settings(max_examples=300)
@given(histories(), RULES)
def test_a_run_that_was_killed_after_its_verdict_ends_with_the_same(events: list[Event], rules: GateRules) -> None:
    index, verdict, state = run(events, rules)
    if index == len(events):
        assert at_budget_end(saved(state), rules) == verdict
    elif verdict.gate in ("target", "patience"):
        assert standing_verdict(saved(state), rules) == verdict
    elif verdict.gate != "telemetry":
        # damage is not remembered: what is played again from before is refused again
        kind, *arguments = events[index]
        again = saved(state)
        if kind == "skip":
            assert after_skip(again, rules) == (state, verdict)
        else:
            assert after_validation(again, rules, arguments[0], arguments[1], ends_epoch=arguments[2]) == (
                state,
                verdict,
            )


SCRIPTED: list[tuple[str, list[float], dict[str, Any], int, str]] = [
    ("doubling", [3.5, 3.0, 6.1], {}, 2, "divergence"),
    ("exactly twice, then more", [2.0, 4.0, 8.5], {}, 2, "divergence"),
    ("blow-up at first", [31.99], {}, 0, "divergence_at_first_validation"),
    ("nan", [3.0, 2.9, math.nan], {}, 2, "numerical_instability"),
    ("flat, patience 2", [2.5] * 9, {"patience": 2}, 3, "early_stopped"),
    ("flat, patience 5", [2.5] * 9, {"patience": 5}, 6, "early_stopped"),
    ("rising slowly", [2.5, 2.6, 2.7, 2.8, 2.9], {"patience": 2, "min_epochs": 5}, 4, "early_stopped"),
    ("target", [3.4, 3.0, 2.6, 2.2, 2.0], {"target_val_loss": 2.2}, 3, "target_reached"),
    ("target before patience", [2.0, 2.1, 2.1], {"target_val_loss": 2.2, "patience": 0}, 2, "target_reached"),
    ("required", [3.0, 3.0, 3.0], {"target_val_loss": 1.0, "patience": 0, "require_target": True}, 2, "target_missed"),
    ("factor", [2.0, 3.0, 3.9, 4.1], {"divergence_factor": 2.0}, 3, "divergence"),
]


@pytest.mark.parametrize(("name", "losses", "rules", "at", "outcome"), SCRIPTED, ids=[case[0] for case in SCRIPTED])
def test_each_gate_fires_at_its_epoch_wherever_the_run_was_killed(
    name: str, losses: list[float], rules: dict[str, Any], at: int, outcome: str
) -> None:
    chosen = GateRules(cross_entropy=True, regime="finetune", **rules)
    events: list[Event] = [("validation", loss, epoch, True) for epoch, loss in enumerate(losses)]
    for kill in range(len(events)):
        index, verdict, _ = run(events, chosen, frozenset({kill}))
        assert (index, verdict.outcome) == (at, outcome)


@pytest.mark.parametrize("seed", range(50))
def test_a_healthy_run_fires_no_gate(seed: int) -> None:
    """A noisy exponential decay from scratch or from weights, with every rule on and a sensor that comes and goes."""
    draw = random.Random(seed)
    pretrained = draw.random() < 0.5
    vocab = draw.choice([64, 4096, 50_257])
    rules = GateRules(
        vocab_size=vocab,
        regime=regime_of(pretrained),
        target_val_loss=0.01,
        patience=4,
        divergence_factor=3.0,
        telemetry="stop",
    )
    start = draw.uniform(2.0, 5.0) if pretrained else math.log(vocab) * draw.uniform(0.98, 1.1)
    floor, halving = start * draw.uniform(0.1, 0.4), draw.uniform(100.0, 300.0)
    state, tally = GateState(), EpochTally()
    for step in range(1, 1001):
        truth = floor + (start - floor) * 0.5 ** (step / halving)
        line = line_of(
            step, truth * draw.lognormvariate(0.0, 0.2), draw.choice([None, 0.0, draw.uniform(0, 100), 100.0])
        )
        state, line, verdict = after_step(state, rules, line)
        assert verdict is None
        assert record_problems(line) == []
        tally = tally.with_step(line["train_loss"], line["grad_norm"], line["wall_ms"] / 1000)
        if step % 40 == 0:
            ends_epoch = step % 80 == 0
            # the same validation set each time: its noise is small
            noisy = truth * draw.lognormvariate(0.0, 0.003)
            state, verdict = after_validation(state, rules, noisy, (step - 1) // 80, ends_epoch=ends_epoch)
            assert verdict is None, verdict
            tally = EpochTally() if ends_epoch else tally
    assert state.telemetry_warnings == state.skips == 0
    assert at_budget_end(state, rules).outcome == "completed"
