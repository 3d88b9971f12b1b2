"""What a step costs besides its arithmetic, counted and not timed: exact, and free of other programs' noise."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import lm_loop
import torch

from trn.plan import make_plan
from trn.ranks import World
from trn.spec import load_spec

ROOT = Path(__file__).parents[2]
STEPS = 20
MOST = 300


def test_a_step_makes_at_most_300_python_calls(tmp_path: Path) -> None:
    """Feed, forward, backward, norm, finite check, clip, fused update, journal line and stop check of a small MLP."""
    torch.set_num_threads(1)
    sets = ["dataset.end=cycle", "max_steps=1000000", "epochs=null", "checkpoint_every=0", "validation=null"]
    loaded = load_spec(ROOT / "examples/table/spec.yaml", sets=sets)
    plan, trainer = make_plan(loaded, run_id="calls", runs_dir=tmp_path, world=World())
    rounds = lm_loop.by_trn(plan, trainer, STEPS)
    next(rounds)
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        next(rounds)
    finally:
        sys.setprofile(None)
    assert calls / (STEPS + 1) <= MOST
