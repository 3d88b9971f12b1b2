"""What a step costs besides its arithmetic, counted and not timed: exact, and free of other programs' noise."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import mlp_loop
import torch
from rounds import Calls, by_trn

from trn.plan import make_plan
from trn.ranks import World
from trn.spec import load_spec
from trn.spec.plan_model import Plan

ROOT = Path(__file__).parents[2]
STEPS = 20
MOST = 300


def python_calls(contender: mlp_loop.Contender, plan: Plan, trainer: Any) -> float:
    """Calls of Python functions in a step, the median of a round; the round before it warms up."""
    calls = Calls()
    rounds = contender(plan, trainer, STEPS, calls)
    next(rounds)
    with calls:
        counted = next(rounds)
    assert len(counted.python_calls) == STEPS
    return statistics.median(counted.python_calls)


def test_a_step_makes_at_most_300_python_calls(tmp_path: Path) -> None:
    """Feed, forward, backward, norm, finite check, clip, fused update, journal line and stop check of a small MLP."""
    torch.set_num_threads(1)
    sets = ["dataset.end=cycle", "max_steps=1000000", "epochs=null", "checkpoint_every=0", "validation=null"]
    sets.append("checkpoint.every_epochs=0")
    loaded = load_spec(ROOT / "examples/table/spec.yaml", sets=sets)
    plan, trainer = make_plan(loaded, run_id="calls", runs_dir=tmp_path, world=World())
    assert 50 < python_calls(by_trn, plan, trainer) <= MOST


def test_a_step_makes_fewer_python_calls_than_one_by_hand_that_does_the_same(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    plan, trainer = mlp_loop.plan_in(tmp_path)
    by_hand = python_calls(mlp_loop.by_hand, plan, trainer)
    assert python_calls(by_trn, plan, trainer) < by_hand
    assert python_calls(mlp_loop.bare, plan, trainer) < by_hand
