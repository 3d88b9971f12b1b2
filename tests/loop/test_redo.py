"""A step that is made again because the scale of its fp16 loss was too large: with the same rows and random numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support.plans import context_of, plan_of
from trn.checkpoint import rng
from trn.errors import NumericalInstability, TrainerError
from trn.loop.loop import make_step
from trn.loop.stop import StopRequest
from trn.trainer import Context, StepResult
from trn.trainer.scaling import ScaleOverflow


class Scaled:
    """Overflows with each of `scales`, then makes the step, or refuses it."""

    def __init__(self, scales: Sequence[float], *, refuses: bool = False) -> None:
        self.scales, self.refuses = list(scales), refuses
        self.drawn: list[Any] = []

    def prepare_batch(self, raw_batch: Any, state: Any, ctx: Context) -> Any:
        self.drawn.append((raw_batch, random.random(), torch.rand(2).tolist()))
        return raw_batch

    def train_step(self, batch: Any, state: Any, ctx: Context) -> StepResult:
        if self.scales:
            raise ScaleOverflow(step=ctx.step, value=math.inf, scale=self.scales.pop(0))
        if self.refuses:
            raise NumericalInstability(step=ctx.step, field="grad_norm", value=math.inf)
        return StepResult({"train_loss": 1.0})


def parts_of(folder: Path, trainer: Scaled) -> Any:
    ctx = context_of(plan_of(folder / "run"))
    ctx._step = 3
    return SimpleNamespace(trainer=trainer, state=None, ctx=ctx, stop=StopRequest())


def test_every_try_has_the_same_rows_and_random_numbers_and_the_last_scale_is_told_once(tmp_path: Path) -> None:
    trainer = Scaled([512.0, 256.0])
    parts = parts_of(tmp_path, trainer)
    result = make_step(parts, "rows", rng.held())
    assert result.metrics == {"train_loss": 1.0}
    assert len(trainer.drawn) == 3
    assert trainer.drawn[0] == trainer.drawn[1] == trainer.drawn[2]
    assert parts.ctx._reported() == [("loss_scale", {"scale": 256.0})]


def test_a_step_that_is_refused_in_the_end_tells_of_no_scale(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, Scaled([2.0, 1.0], refuses=True))
    with pytest.raises(NumericalInstability) as caught:
        make_step(parts, "rows", rng.held())
    assert not isinstance(caught.value, ScaleOverflow)
    assert parts.ctx._reported() == []


@pytest.mark.parametrize("scales", [[512.0] * 9, [512.0, 1024.0], [math.nan] * 9])
def test_a_scale_that_does_not_fall_ends_the_run_instead_of_going_on_forever(
    tmp_path: Path, scales: list[float]
) -> None:
    trainer = Scaled(scales)
    with pytest.raises(TrainerError, match=r"at step 3: ScaleOverflow asks for the step again with a smaller scale"):
        make_step(parts_of(tmp_path, trainer), "rows", rng.held())
    assert len(trainer.drawn) == 2


def test_without_fp16_no_step_is_made_again(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="precision is not fp16"):
        make_step(parts_of(tmp_path, Scaled([512.0])), "rows", None)
