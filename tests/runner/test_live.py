"""The plan against live objects: what a trainer's code makes otherwise is refused, key by key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from support.plans import plan_of
from trn.errors import PlanRefused
from trn.runner.live import check_live
from trn.spec.plan_model import GroupPlan, OptimizerPlan, Plan
from trn.trainer import TorchState
from trn.trainer.groups import group_parameters
from trn.trainer.optimizers import OPTIMIZERS, build_optimizer, is_fusable, optimizer_arguments

CPU = torch.device("cpu")
GIVEN = {"lr": 0.1, "weight_decay": 0.01, "betas": [0.9, 0.99], "eps": 1e-8, "momentum": 0.5, "nesterov": True}


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """torch as the runner sets it before it configures a trainer; and as it was, afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    cudnn = torch.backends.cudnn
    flags = cudnn.benchmark, cudnn.deterministic
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark, cudnn.deterministic = False, True
    torch.manual_seed(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    cudnn.benchmark, cudnn.deterministic = flags
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    arguments = {"lr": 0.1, "weight_decay": 0.01, "betas": [0.9, 0.99], "eps": 1e-8}
    adamw = OptimizerPlan(name="adamw", arguments=arguments, fused=True, accumulate=1)
    return plan_of(tmp_path / "run", optimizer=adamw)


@pytest.fixture
def state(plan: Plan) -> TorchState:
    assert plan.optimizer is not None
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    parameters = list(model.parameters())
    return TorchState(model, build_optimizer(plan.optimizer, parameters), parameters)


class Someone:
    """Stands for a trainer: only its name is asked for."""


def refusal(plan: Plan, state: Any) -> str:
    with pytest.raises(PlanRefused) as caught:
        check_live(plan, Someone(), state, CPU)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_planned_is_found(plan: Plan, state: TorchState) -> None:
    before = torch.get_rng_state()
    check_live(plan, Someone(), state, CPU)  # type: ignore[arg-type]
    assert torch.equal(before, torch.get_rng_state()), "nothing was drawn"


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_shows_what_was_planned_for_it(tmp_path: Path, state: TorchState, name: str) -> None:
    arguments = optimizer_arguments(name, GIVEN, set())
    planned = OptimizerPlan(name=name, arguments=arguments, fused=is_fusable(name, "cpu"), accumulate=1)
    matrices = nn.Sequential(nn.Linear(3, 3, bias=False))  # muon takes nothing else
    parameters = list(matrices.parameters())
    live = TorchState(matrices, build_optimizer(planned, parameters), parameters)
    check_live(plan_of(tmp_path / "run", optimizer=planned), Someone(), live, CPU)  # type: ignore[arg-type]
    other = planned.model_copy(update={"arguments": {**arguments, "lr": 0.2}})
    said = refusal(plan_of(tmp_path / "run", optimizer=other), live)
    assert "at optimizer.lr: planned 0.2, found 0.1." in said


def _group(**values: Any) -> Callable[[TorchState], object]:
    return lambda state: state.optimizer.param_groups[0].update(values)


def _swap(make: Callable[[TorchState], torch.optim.Optimizer]) -> Callable[[TorchState], object]:
    return lambda state: setattr(state, "optimizer", make(state))


def _same(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01, fused=True)


class MyAdamW(torch.optim.AdamW):
    """Another class of the same name's end."""


# what a trainer's code does, and what is said of it
DEEDS: dict[str, tuple[Callable[[TorchState], object], str]] = {
    "another learning rate": (_group(lr=0.2), "at optimizer.lr: planned 0.1, found 0.2."),
    "a tensor for a learning rate": (_group(lr=torch.tensor(0.25)), "at optimizer.lr: planned 0.1, found 0.25."),
    "no weight decay": (_group(weight_decay=0.0), "at optimizer.weight_decay: planned 0.01, found 0.0."),
    "other betas": (_group(betas=(0.9, 0.999)), "at optimizer.betas: planned [0.9, 0.99], found [0.9, 0.999]."),
    "another eps": (_group(eps=1e-6), "at optimizer.eps: planned 1e-08, found 1e-06."),
    "not fused": (_group(fused=None), "at optimizer.fused: planned True, found False."),
    "another optimizer": (
        _swap(lambda state: torch.optim.SGD(state.parameters, lr=0.1)),
        "at optimizer.name: planned 'AdamW', found 'SGD'.",
    ),
    "a subclass": (
        _swap(lambda state: MyAdamW(state.parameters, lr=0.1)),
        "test_live.MyAdamW'.",
    ),
    "two groups": (
        _swap(lambda state: _same([{"params": state.parameters[:1]}, {"params": state.parameters[1:]}])),
        "at optimizer (parameter groups): planned 1, found 2.",
    ),
    "a parameter left out": (
        _swap(lambda state: _same(state.parameters[1:])),
        "at optimizer (parameters): planned 4, found 3.",
    ),
    "parameters of another model": (
        _swap(lambda state: _same([*state.parameters, nn.Parameter(torch.zeros(1))])),
        "optimizer (parameters of another model): planned 0, found 1; ",
    ),
    "a parameter that is not clipped": (
        lambda state: state.parameters.pop(),
        "at optimizer (parameters that clipping does not see): planned 0, found 1.",
    ),
    "another device": (
        lambda state: setattr(state, "model", nn.Linear(1, 1, device="meta")),
        "device: planned 'cpu', found 'meta'; ",
    ),
    "more threads": (lambda state: torch.set_num_threads(2), "at threads: planned 1, found 2."),
    "no determinism": (
        lambda state: torch.use_deterministic_algorithms(False),
        "at deterministic: planned True, found False.",
    ),
    "determinism with warnings": (
        lambda state: torch.use_deterministic_algorithms(True, warn_only=True),
        "at deterministic: planned True, found 'warn'.",
    ),
    "cudnn may choose": (
        lambda state: setattr(torch.backends.cudnn, "benchmark", True),
        "at deterministic (cudnn.benchmark): planned False, found True.",
    ),
    "another seed": (lambda state: torch.manual_seed(7), "at seed: planned 1, found 7."),
    "another default type": (
        lambda state: torch.set_default_dtype(torch.float64),
        "at precision (default type): planned 'torch.float32', found 'torch.float64'.",
    ),
}


@pytest.mark.parametrize("name", DEEDS)
def test_what_differs_is_refused_with_its_key_and_both_values(plan: Plan, state: TorchState, name: str) -> None:
    deed, says = DEEDS[name]
    deed(state)
    assert says in refusal(plan, state)


def test_an_open_autocast_is_refused(plan: Plan, state: TorchState) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert "at precision (autocast around the steps): planned False, found True." in refusal(plan, state)


def test_all_that_differs_is_told_at_once(plan: Plan, state: TorchState) -> None:
    state.optimizer.param_groups[0].update(lr=0.2, eps=1e-6)
    torch.manual_seed(7)
    assert refusal(plan, state) == (
        "plan error [plan_refused] at 3 keys: seed: planned 1, found 7; optimizer.lr: planned 0.1, found 0.2; "
        "optimizer.eps: planned 1e-08, found 1e-06. What Someone sets in its code, set in the spec instead."
    )


@pytest.mark.parametrize("shape", [dict, list, SimpleNamespace])
def test_of_a_plain_trainer_only_what_its_state_shows_is_compared(
    tmp_path: Path, state: TorchState, shape: type
) -> None:
    plan = plan_of(tmp_path / "run", optimizer=None, schedule=None)
    parts = {"model": state.model, "optimizer": torch.optim.SGD(state.parameters, lr=3.0), "note": object()}
    plain: Any = list(parts.values()) if shape is list else shape(**parts)
    check_live(plan, Someone(), plain, CPU)  # type: ignore[arg-type]
    check_live(plan, Someone(), object(), CPU)  # type: ignore[arg-type]
    check_live(plan, Someone(), state.model, CPU)  # type: ignore[arg-type]
    torch.manual_seed(3)
    assert "at seed: planned 1, found 3." in refusal(plan, plain)


def test_a_plain_trainer_may_keep_a_part_elsewhere_but_not_everything(tmp_path: Path, state: TorchState) -> None:
    plan, away = plan_of(tmp_path / "run", optimizer=None, schedule=None), nn.Linear(2, 2, device="meta")
    check_live(plan, Someone(), [state.model, away], CPU)  # type: ignore[arg-type]
    assert "at device: planned 'cpu', found 'meta'." in refusal(plan, [away])


def test_a_plain_trainer_that_honours_the_optimizer_is_held_to_it(plan: Plan, state: TorchState) -> None:
    plain = {"model": state.model, "optimizer": state.optimizer}
    check_live(plan, Someone(), plain, CPU)  # type: ignore[arg-type]
    state.optimizer.param_groups[0]["lr"] = 1.0
    assert "at optimizer.lr: planned 0.1, found 1.0." in refusal(plan, plain)


@pytest.fixture
def grouped(tmp_path: Path) -> tuple[Plan, TorchState]:
    """A plan with two groups, and what TorchTrainer makes of it."""
    arguments = {"lr": 0.1, "weight_decay": 0.01}
    group = GroupPlan(match=["0.*"], lr_mult=0.5, weight_decay_mult=0.0)
    planned = OptimizerPlan(name="adamw", arguments=arguments, fused=True, accumulate=1, groups=[group])
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = build_optimizer(planned, group_parameters(planned, model))
    return plan_of(tmp_path / "run", optimizer=planned), TorchState(model, optimizer, list(model.parameters()))


def test_each_group_has_the_arguments_that_its_multipliers_make(grouped: tuple[Plan, TorchState]) -> None:
    plan, state = grouped
    check_live(plan, Someone(), state, CPU)  # type: ignore[arg-type]
    assert [group["lr"] for group in state.optimizer.param_groups] == [0.05, 0.1]
    state.optimizer.param_groups[0]["lr"] = 0.1
    assert "at optimizer.lr (group 0): planned 0.05, found 0.1." in refusal(plan, state)


def test_a_parameter_in_another_group_than_planned_is_refused(grouped: tuple[Plan, TorchState]) -> None:
    plan, state = grouped
    first, second = state.optimizer.param_groups
    first["params"].append(second["params"].pop())
    assert "at optimizer.lr (group 0): planned 0.1, found 0.05; " in refusal(plan, state).replace("2 keys: ", "")


def test_groups_that_were_planned_and_not_made_are_refused(grouped: tuple[Plan, TorchState]) -> None:
    plan, state = grouped
    state.optimizer = torch.optim.AdamW(state.parameters, lr=0.1, weight_decay=0.01, fused=True)
    said = refusal(plan, state)
    assert "optimizer.lr: planned 0.05, found 0.1; " in said
    assert "optimizer (parameter groups): planned 2, found 1." in said
