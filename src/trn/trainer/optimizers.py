"""Optimizers of torch.optim by name, with only the arguments they take, fused where that is possible."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from trn.errors import PlanRefused
from trn.spec.plan_model import OptimizerPlan

__all__ = ["OPTIMIZERS", "build_optimizer", "is_fusable", "optimizer_arguments"]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name.lower(): kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}
# these two need a closure or sparse gradients, which the step of TorchTrainer does not give
del OPTIMIZERS["lbfgs"], OPTIMIZERS["sparseadam"]

_FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def optimizer_arguments(name: str, given: dict[str, Any], explicit: set[str]) -> dict[str, Any]:
    """Those of `given` that the optimizer takes. Raises PlanRefused for an `explicit` one that it does not take."""
    if name not in OPTIMIZERS:
        raise PlanRefused(f"unknown name {name!r}; known: {', '.join(sorted(OPTIMIZERS))}.", where="optimizer.name")
    # adafactor's eps is a pair, which the spec cannot say: its own default stays
    taken = set(inspect.signature(OPTIMIZERS[name]).parameters) - ({"eps"} if name == "adafactor" else set())
    if extra := sorted(explicit - taken):
        raise PlanRefused(
            f"{name} does not take {', '.join(extra)}; it takes {', '.join(sorted(taken & set(given)))}.",
            where=f"optimizer.{extra[0]}",
        )
    return {key: value for key, value in given.items() if key in taken}


def is_fusable(name: str, device_type: str) -> bool:
    """Whether the optimizer has a fused implementation for parameters on such a device."""
    return "fused" in inspect.signature(OPTIMIZERS[name]).parameters and device_type in _FUSED_DEVICES


def build_optimizer(plan: OptimizerPlan, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The planned optimizer over `parameters`; fused when the plan says so, or leaves it open and it can be."""
    kind = OPTIMIZERS[plan.name]
    able = all(p.is_floating_point() and is_fusable(plan.name, p.device.type) for p in parameters)
    if plan.fused and not able:
        raise PlanRefused(
            f"{plan.name} cannot be fused for these parameters.", where="optimizer.fused", hint="Set it to false."
        )
    arguments: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in plan.arguments.items()
    }
    if able and plan.fused is not False:
        arguments["fused"] = True
    make: Any = kind  # each class has its own keyword arguments
    optimizer: torch.optim.Optimizer = make(parameters, **arguments)
    return optimizer
