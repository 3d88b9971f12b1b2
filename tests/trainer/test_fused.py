"""The short way to a fused update: the same bits as torch's own, and torch's own wherever somebody would notice."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from trn.trainer.fused import update

Optimizer = torch.optim.Optimizer


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3), nn.Linear(3, 3))


def backward(model: nn.Sequential, step: int, optimizer: Optimizer) -> None:
    """Gradients of a step; at each third one, the first too, the last layer gets none."""
    optimizer.zero_grad(set_to_none=True)
    x_BF = torch.randn(5, 8, generator=torch.Generator().manual_seed(step))
    (model[:3] if step % 3 == 0 else model)(x_BF).square().mean().backward()
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 / (step + 1)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"maximize": True, "weight_decay": 0.3}])
def test_weights_and_state_are_bitwise_those_of_torch(kind: Any, options: dict[str, Any]) -> None:
    trained = []
    for short in (True, False):
        model = model_of()
        all_ = list(model.parameters())
        # the last group is the last layer: some steps have no gradient for any of it
        groups = [{"params": all_[:2]}, {"params": all_[2:4], "betas": (0.8, 0.9)}, {"params": all_[4:]}]
        optimizer = kind(groups, fused=True, **options)
        for step in range(20):
            backward(model, step, optimizer)
            update(optimizer) if short else optimizer.step()
        trained.append((list(model.parameters()), optimizer.state_dict()))
    (mine, my_state), (theirs, their_state) = trained
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert my_state["param_groups"] == their_state["param_groups"]
    assert my_state["state"].keys() == their_state["state"].keys()
    for index, state in their_state["state"].items():
        assert my_state["state"][index].keys() == state.keys()
        assert all(torch.equal(my_state["state"][index][name], value) for name, value in state.items())


class Counted(torch.optim.AdamW):
    steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        return super().step(closure)


def test_what_is_not_exactly_torchs_makes_its_own_step() -> None:
    model = model_of()
    optimizer = Counted(model.parameters(), fused=True)
    backward(model, 1, optimizer)
    update(optimizer)
    assert optimizer.steps == 1


def test_hooks_schedulers_and_profilers_get_their_step() -> None:
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    seen: list[str] = []
    hook = optimizer.register_step_post_hook(lambda *_: seen.append("own"))
    backward(model, 1, optimizer)
    update(optimizer)
    hook.remove()
    hooks = sys.modules["torch.optim.optimizer"]  # torch.optim hides its module of this name
    for_all = hooks.register_optimizer_step_pre_hook(lambda *_: seen.append("global"))
    update(optimizer)
    for_all.remove()
    update(optimizer)
    assert seen == ["own", "global"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        update(optimizer)
    assert "Optimizer.step#AdamW.step" in {event.key for event in profile.key_averages()}
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    backward(model, 2, optimizer)
    update(optimizer)
    scheduler.step()  # warns where it was not told of the step before
    assert optimizer.state[next(iter(model.parameters()))]["step"].item() == 5


@pytest.mark.parametrize("options", [{"fused": False}, {"fused": None}, {"lr": torch.tensor(1e-3), "fused": False}])
def test_what_is_not_fused_is_left_to_torch(options: dict[str, Any]) -> None:
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    x = model(torch.ones(1, 8)).sum()
    x.backward()
    before = [parameter.clone() for parameter in model.parameters()]
    update(optimizer)
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
