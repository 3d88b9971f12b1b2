"""Parameter groups: which parameters of a model are trained at another rate or decay than the plan's.

    plan.optimizer.groups    globs over names of parameters, with multipliers; several that match are multiplied
    plan.optimizer.no_decay  bias: parameters of that name; norm: those of normalising modules

Parameters with the same multipliers are one group, in the order of their first appearance. Here: who belongs where, and
the rate of each group at a step. Not here: the optimizer (optimizers).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from trn.errors import PlanRefused
from trn.spec.plan_model import OptimizerPlan
from trn.spec.words import found, nearest

__all__ = ["Group", "applied_rate", "group_parameters", "multipliers", "set_learning_rates"]

_SHOWN = 3
Multipliers = tuple[float, float]
"""Of the learning rate and of the weight decay."""


@dataclass(frozen=True)
class Group:
    """Parameters, by name, that are trained alike."""

    parameters: dict[str, nn.Parameter]
    lr_mult: float = 1.0
    weight_decay_mult: float = 1.0

    def arguments(self, plan: OptimizerPlan) -> dict[str, Any]:
        """What differs in it from the plan's arguments."""
        given = {"lr": self.lr_mult, "weight_decay": self.weight_decay_mult}
        return {key: plan.arguments[key] * factor for key, factor in given.items() if key in plan.arguments}


def group_parameters(plan: OptimizerPlan, model: nn.Module) -> list[Group]:
    """The groups of all parameters that learn.

    Raises PlanRefused for a pattern that matches none of them, naming those that are near.
    """
    names = _names(model)
    known = [name for aliases in names.values() for name in aliases]
    for index, group in enumerate(plan.groups):
        for pattern in group.match:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise _matches_nothing(pattern, known, f"optimizer.groups[{index}].match")
    factors = multipliers(plan, model)
    groups: dict[Multipliers, dict[str, nn.Parameter]] = {}
    for parameter, (name, *_) in names.items():
        groups.setdefault(factors[parameter], {})[name] = parameter
    return [Group(parameters, *factor) for factor, parameters in groups.items()]


def multipliers(plan: OptimizerPlan, model: nn.Module) -> dict[nn.Parameter, Multipliers]:
    """Those of each parameter that learns."""
    without_decay = set(_without_decay(plan.no_decay, model))
    factors: dict[nn.Parameter, Multipliers] = {}
    for parameter, names in _names(model).items():
        lr, decay = 1.0, 0.0 if parameter in without_decay else 1.0
        for group in plan.groups:
            if any(fnmatchcase(name, pattern) for name in names for pattern in group.match):
                lr, decay = lr * group.lr_mult, decay * group.weight_decay_mult
        factors[parameter] = (lr, decay)
    return factors


def set_learning_rates(optimizer: torch.optim.Optimizer, groups: Sequence[Group], lr: float) -> None:
    """Give each group of the optimizer its own part of `lr`."""
    if not groups:  # a state that was made by hand has none
        for one in optimizer.param_groups:
            one["lr"] = lr
        return
    for one, group in zip(optimizer.param_groups, groups, strict=True):
        one["lr"] = lr * group.lr_mult


def applied_rate(optimizer: torch.optim.Optimizer, groups: Sequence[Group], lr: float) -> float:
    """The rate before any multiplier, read back from a group that has none; `lr` where each has one."""
    for one, group in zip(optimizer.param_groups, groups or [Group({})], strict=False):
        if group.lr_mult == 1.0:
            return float(one["lr"])
    return lr


def _names(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """All names of each parameter that learns: one that is tied has several, and is trained once."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(parameter, []).append(name)
    return names


def _without_decay(kinds: Iterable[str], model: nn.Module) -> Iterator[nn.Parameter]:
    for kind in kinds:
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if name == "bias" if kind == "bias" else _is_norm(module):
                    yield parameter


def _is_norm(module: nn.Module) -> bool:
    """By the name of its class or of one that it is derived from: LayerNorm, _BatchNorm, LlamaRMSNorm."""
    return any(kind.__name__.endswith("Norm") for kind in type(module).__mro__)


def _matches_nothing(pattern: str, known: list[str], where: str) -> PlanRefused:
    near = nearest(pattern, known)
    named = [near] if near else known[:_SHOWN]
    more = "" if near or len(known) <= _SHOWN else f" and {len(known) - _SHOWN} more"
    return PlanRefused(
        f"{found(pattern)} matches no parameter that is trained.",
        where=where,
        hint=f"Near is {near}." if near else f"There are {', '.join(named)}{more}.",
    )
