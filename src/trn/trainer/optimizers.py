"""Optimizers of torch.optim by name, with only the arguments they take, fused where it can be; and their state."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from trn.errors import PlanRefused, ResumeRefused
from trn.spec.plan_model import OptimizerPlan
from trn.trainer.groups import Group

__all__ = [
    "OPTIMIZERS",
    "SETS_OWN_RATES",
    "build_optimizer",
    "cloned",
    "is_fusable",
    "load_optimizer",
    "optimizer_arguments",
]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name.lower(): kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}
# these two need a closure or sparse gradients, which the step of TorchTrainer does not give
del OPTIMIZERS["lbfgs"], OPTIMIZERS["sparseadam"]

SETS_OWN_RATES = frozenset({"rprop"})
"""Those that look at `lr` in their first update only, and move the weights by steps of their own."""
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


def build_optimizer(
    plan: OptimizerPlan, parameters: Sequence[torch.nn.Parameter] | Sequence[Group]
) -> torch.optim.Optimizer:
    """The planned optimizer over `parameters`; fused when the plan says so, or leaves it open and it can be.

    Of groups, it keeps the names too, so that a saved state says whose it is.
    """
    kind = OPTIMIZERS[plan.name]
    given: list[Any] = [_group(plan, one) if isinstance(one, Group) else one for one in parameters]
    parameters = [
        one for part in parameters for one in (part.parameters.values() if isinstance(part, Group) else [part])
    ]
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
    optimizer: torch.optim.Optimizer = make(given, **arguments)
    return optimizer


def _group(plan: OptimizerPlan, group: Group) -> dict[str, Any]:
    return {"params": list(group.parameters.items()), **group.arguments(plan)}


def load_optimizer(optimizer: torch.optim.Optimizer, payload: dict[str, Any]) -> None:
    """Give an optimizer its state back to the bit. Raises ResumeRefused where it is that of other groups.

    torch casts every state tensor to its parameter's type; where that was another one (nadam, asgd), the saved tensor
    is put back. Clones: the optimizer keeps what it is given, and must not stay tied to a mapped checkpoint file.
    """
    saved = cloned(payload)
    _require_same_groups(saved["param_groups"], optimizer.state_dict()["param_groups"])
    optimizer.load_state_dict(saved)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    for index, parameter in zip(indices, parameters, strict=True):
        for name, value in saved["state"].get(index, {}).items():
            live = optimizer.state[parameter][name]
            if isinstance(value, torch.Tensor) and live.dtype != value.dtype:
                optimizer.state[parameter][name] = value.to(live.device)


def _require_same_groups(saved: list[dict[str, Any]], own: list[dict[str, Any]]) -> None:
    """Refuse a state that would go to other parameters than those it was made of."""
    sizes = [[len(group["params"]) for group in groups] for groups in (own, saved)]
    if sizes[0] != sizes[1]:
        raise ResumeRefused(f"expected groups of {sizes[0]} parameters, found {sizes[1]}.", where="optimizer")
    for index, (mine, theirs) in enumerate(zip(own, saved, strict=True)):
        expected_names, names = mine.get("param_names"), theirs.get("param_names")
        if expected_names is None or names is None:  # made by hand, without names
            continue
        for expected, name in zip(expected_names, names, strict=True):
            if expected != name:
                raise ResumeRefused(f"expected {expected!r}, found {name!r}.", where=f"optimizer group {index}")


def cloned(tree: Any) -> Any:
    """The same containers with tensors of their own."""
    if isinstance(tree, torch.Tensor):
        return tree.clone()
    if isinstance(tree, dict):
        return {key: cloned(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(cloned(value) for value in tree)
    return tree
