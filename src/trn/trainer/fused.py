"""The update of a fused Adam or AdamW on the CPU: the same kernel on the same tensors, without what wraps it.

`Optimizer.step` goes through a profiler's range, hooks, a grouping of tensors and `torch._dynamo`: about 100 us around
a kernel of 40, a quarter of the step of a small model. Where an optimizer is exactly torch's and nobody listens to its
steps, the kernel is called directly; in all other cases, and in a release of torch that is built otherwise, the
optimizer does it all itself. The bits are the same either way: a test compares them.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.optim import Adam, AdamW, Optimizer

__all__ = ["update"]

_KERNELS: dict[type, Any] = {Adam: getattr(torch, "_fused_adam_", None), AdamW: getattr(torch, "_fused_adamw_", None)}
_HOME = sys.modules[Optimizer.__module__]
_GLOBAL_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
_SPECIAL = frozenset({"step", "grad_scale", "found_inf"})
"""Attributes that schedulers and gradient scalers put on an optimizer."""


def update(optimizer: Optimizer) -> None:
    """`optimizer.step()`."""
    if not _is_plain(optimizer):
        optimizer.step()
        return
    with torch.no_grad():
        for group in optimizer.param_groups:
            _update_group(optimizer, group)


def _is_plain(optimizer: Optimizer) -> bool:
    """Whether `step` would do nothing but call the kernel: nobody subclassed, patched, hooked or profiles it."""
    kind, own = type(optimizer), vars(optimizer)
    if _KERNELS.get(kind) is None or torch._C._autograd._profiler_enabled() or not own.keys().isdisjoint(_SPECIAL):
        return False
    if any(getattr(_HOME, name, True) for name in _GLOBAL_HOOKS):
        return False
    if own.get("_optimizer_step_pre_hooks", True) or own.get("_optimizer_step_post_hooks", True):
        return False
    return all(map(_is_plain_group, optimizer.param_groups))


def _is_plain_group(group: dict[str, Any]) -> bool:
    return (
        group.get("fused") is True
        and not (group["capturable"] or group["differentiable"])
        and group.get("decoupled_weight_decay") is not None
        and isinstance(group["lr"], float)
        and all(parameter.is_cpu for parameter in group["params"])
    )


def _update_group(optimizer: Optimizer, group: dict[str, Any]) -> None:
    parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
    if not parameters:  # a branch of the model that this batch did not take
        return
    states = [optimizer.state[parameter] for parameter in parameters]
    if not all(states):
        optimizer._init_group(group, [], [], [], [], [], [])  # type: ignore[attr-defined]  # of both kinds of Adam
    steps = [state["step"] for state in states]
    torch._foreach_add_(steps, 1)
    kernel = _KERNELS[AdamW if group["decoupled_weight_decay"] else Adam]
    kernel(
        parameters,
        [parameter.grad for parameter in parameters],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else [],
        steps,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=group["amsgrad"],
        maximize=group["maximize"],
        grad_scale=None,
        found_inf=None,
    )
