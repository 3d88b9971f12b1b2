"""What the plan claims, compared with the objects that a trainer made: the runner refuses to start where they differ.

A plan decides the optimizer, its arguments, threads, determinism, seed and device. A trainer's code may do otherwise
(swap the optimizer, seed anew, set threads), and then the run's records would tell of a run that never was. So after
`configure`, before anything is restored or trained, what lives is read and held against what was planned.

    TorchTrainer       everything below
    a plain trainer    threads, determinism, seed, default type; the device and the optimizer where its state shows them

Here: reading and comparing. Nothing is set, nothing is drawn from a random stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from trn.errors import PlanRefused
from trn.spec.plan_model import OptimizerPlan, Plan
from trn.trainer import Trainer
from trn.trainer.groups import Multipliers, group_parameters, multipliers
from trn.trainer.optimizers import OPTIMIZERS
from trn.trainer.torch_trainer import TorchState

__all__ = ["check_live"]


class _Claim(NamedTuple):
    """One key of the plan, what it says, and what is there."""

    key: str
    planned: Any
    found: Any


def check_live(plan: Plan, trainer: Trainer, state: Any, device: torch.device) -> None:
    """Raise PlanRefused, naming each key with its planned and its found value, where plan and live objects differ.

    To be called right after `trainer.configure(ctx)` gave `state`, before it is restored: a restored optimizer has
    the learning rate of its step, a restored generator another past. `device` is that of the plan on this rank.
    """
    differing = [claim for claim in (*_settings(plan), *_objects(plan, state, device)) if claim.planned != claim.found]
    if not differing:
        return
    told = [f"planned {one.planned!r}, found {one.found!r}" for one in differing]
    if len(differing) == 1:
        message, where = told[0], differing[0].key
    else:
        message = "; ".join(f"{one.key}: {said}" for one, said in zip(differing, told, strict=True))
        where = f"{len(differing)} keys"
    raise PlanRefused(
        f"{message}.",
        where=where,
        hint=f"What {type(trainer).__name__} sets in its code, set in the spec instead.",
    )


def _settings(plan: Plan) -> Iterator[_Claim]:
    """What torch is set to for the whole process."""
    yield _Claim("threads", plan.threads, torch.get_num_threads())
    yield _Claim("deterministic", plan.deterministic, _determinism())
    if plan.deterministic is not False:
        yield _Claim("deterministic (cudnn.benchmark)", False, torch.backends.cudnn.benchmark)
        yield _Claim("deterministic (cudnn.deterministic)", True, torch.backends.cudnn.deterministic)
    yield _Claim("seed", plan.seed, torch.initial_seed())
    yield _Claim("precision (default type)", "torch.float32", str(torch.get_default_dtype()))
    device_type = plan.device.partition(":")[0]
    yield _Claim("precision (autocast around the steps)", False, torch.is_autocast_enabled(device_type))


def _determinism() -> bool | str:
    if not torch.are_deterministic_algorithms_enabled():
        return False
    return "warn" if torch.is_deterministic_algorithms_warn_only_enabled() else True


def _objects(plan: Plan, state: Any, device: torch.device) -> Iterator[_Claim]:
    """What `configure` made, as far as its state shows it."""
    parts = [state, *_parts(state)]
    modules = [part for part in parts if isinstance(part, nn.Module)]
    optimizers = [part for part in parts if isinstance(part, torch.optim.Optimizer)]
    yield from _devices(device, modules, must_be_all=isinstance(state, TorchState))
    if plan.optimizer is not None:
        factors = {one: two for module in modules for one, two in multipliers(plan.optimizer, module).items()}
        for optimizer in optimizers:
            yield from _optimizer(plan.optimizer, optimizer, factors)
    if isinstance(state, TorchState):
        yield from _coverage(plan, state)


def _parts(state: Any) -> list[Any]:
    """The values of a state that is a mapping, a sequence or an object with attributes; deeper nobody looks."""
    if isinstance(state, Mapping):
        return list(state.values())
    if isinstance(state, (list, tuple)):
        return list(state)
    return [] if isinstance(state, nn.Module) else list(getattr(state, "__dict__", {}).values())


def _devices(device: torch.device, modules: list[nn.Module], *, must_be_all: bool) -> Iterator[_Claim]:
    """A plain trainer may keep parts elsewhere, but not everything: that would be another device than recorded."""
    found = {_device(parameter.device) for module in modules for parameter in module.parameters()}
    planned = _device(device)
    if must_be_all or planned not in found:
        for elsewhere in sorted(found - {planned}):
            yield _Claim("device", planned, elsewhere)


def _device(device: torch.device) -> str:
    """The device by its full name: `cuda` alone is the first one."""
    return device.type if device.type in ("cpu", "mps", "meta") else f"{device.type}:{device.index or 0}"


def _optimizer(
    plan: OptimizerPlan, live: torch.optim.Optimizer, factors: Mapping[nn.Parameter, Multipliers]
) -> Iterator[_Claim]:
    """Its class, and each planned argument in each of its groups: lr and weight decay times those of its parameters."""
    kind = OPTIMIZERS[plan.name]
    yield _Claim("optimizer.name", _full_name(kind), _full_name(type(live)))
    if type(live) is not kind:
        return  # another class has other arguments
    for index, group in enumerate(live.param_groups):
        place = f" (group {index})" if len(live.param_groups) > 1 else ""
        known = {factors.get(parameter, (1.0, 1.0)) for parameter in group["params"]} or {(1.0, 1.0)}
        for name, argument in plan.arguments.items():
            wanted = [_multiplied(name, argument, factor) for factor in sorted(known)]
            found = _plain(group.get(name))
            yield _Claim(f"optimizer.{name}{place}", next((one for one in wanted if one != found), found), found)
        if plan.fused is not None:
            yield _Claim(f"optimizer.fused{place}", plan.fused, bool(group.get("fused")))


def _multiplied(name: str, argument: Any, factor: Multipliers) -> Any:
    if name not in ("lr", "weight_decay"):
        return _plain(argument)
    return argument * factor[0 if name == "lr" else 1]


def _full_name(kind: type) -> str:
    return kind.__name__ if kind.__module__.startswith("torch.optim") else f"{kind.__module__}.{kind.__qualname__}"


def _plain(value: Any) -> Any:
    """Lists and tuples are one; a tensor (a capturable learning rate) is its number."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def _coverage(plan: Plan, state: TorchState) -> Iterator[_Claim]:
    """A TorchTrainer trains each parameter that has a gradient, in the groups that the plan makes: nothing else."""
    trained = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    learnable = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
    if plan.optimizer is not None:
        planned = len(group_parameters(plan.optimizer, state.model))
        yield _Claim("optimizer (parameter groups)", planned, len(state.optimizer.param_groups))
    ids = {id(parameter) for parameter in trained}
    yield _Claim("optimizer (parameters)", len(learnable), sum(id(parameter) in ids for parameter in learnable))
    own = {id(parameter) for parameter in state.model.parameters()}
    yield _Claim("optimizer (parameters of another model)", 0, len(ids - own))
    seen = {id(parameter) for parameter in state.parameters}
    yield _Claim("optimizer (parameters that clipping does not see)", 0, len(ids - seen))
