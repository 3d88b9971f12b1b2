"""The numbers of an update: optimizer and schedule."""

from __future__ import annotations

from typing import Any

from trn.errors import PlanRefused
from trn.spec import Spec
from trn.spec.plan_model import BudgetPlan, GroupPlan, OptimizerPlan, SchedulePlan
from trn.spec.words import found
from trn.trainer import Trainer
from trn.trainer.optimizers import SETS_OWN_RATES, is_fusable, optimizer_arguments
from trn.trainer.schedules import OWN_KINDS
from trn.trainer.torch_schedules import PLATEAU, lr_min_argument, scheduler_arguments, scheduler_name, try_curve

__all__ = ["plan_optimization"]


def plan_optimization(
    spec: Spec, trainer: Trainer, budget: BudgetPlan
) -> tuple[OptimizerPlan | None, SchedulePlan | None]:
    """Null for a trainer that makes its own updates. Raises PlanRefused: unknown names, a warm-up beyond the budget."""
    honours: frozenset[str] = getattr(trainer, "honours", frozenset())
    optimizer, schedule = spec.optimizer, spec.schedule
    lr_max = optimizer.lr if schedule.lr_max is None else schedule.lr_max
    if schedule.warmup_steps >= budget.max_steps:
        raise PlanRefused(
            f"{schedule.warmup_steps} steps, not shorter than the budget of {budget.max_steps}.",
            where="schedule.warmup_steps",
        )
    given = {
        "lr": lr_max,
        "weight_decay": optimizer.weight_decay,
        "betas": list(optimizer.betas),
        "eps": optimizer.eps,
        "momentum": optimizer.momentum,
        "nesterov": optimizer.nesterov,
    }
    explicit = optimizer.model_fields_set & set(given)
    if "optimizer" in honours:
        _refuse_idle_groups(spec, optimizer_arguments(optimizer.name, given, explicit))
        _refuse_idle_rates(spec)
    return (
        OptimizerPlan(
            name=optimizer.name,
            arguments=optimizer_arguments(optimizer.name, given, explicit),
            fused=_fused(spec),
            accumulate=optimizer.accumulate,
            groups=[
                GroupPlan(match=list(one.match), lr_mult=one.lr_mult, weight_decay_mult=one.weight_decay_mult)
                for one in optimizer.groups
            ],
            no_decay=sorted(set(optimizer.no_decay)),
        )
        if "optimizer" in honours
        else None,
        _plan_schedule(spec, budget, lr_max) if "schedule" in honours else None,
    )


def _refuse_idle_groups(spec: Spec, arguments: dict[str, Any]) -> None:
    """Refuse what would change the weight decay of an optimizer that has none."""
    optimizer = spec.optimizer
    asked = {"optimizer.no_decay": bool(optimizer.no_decay)} | {
        f"optimizer.groups[{index}].weight_decay_mult": one.weight_decay_mult != 1.0
        for index, one in enumerate(optimizer.groups)
    }
    for key, is_asked in asked.items():
        if is_asked and "weight_decay" not in arguments:
            raise PlanRefused(f"{optimizer.name} has no weight decay.", where=key, hint="Remove it.")


def _refuse_idle_rates(spec: Spec) -> None:
    """Refuse what would change the learning rate of an optimizer that asks for it once."""
    if spec.optimizer.name not in SETS_OWN_RATES:
        return
    asked = {
        "schedule.kind": spec.schedule.kind != "constant",
        "schedule.warmup_steps": spec.schedule.warmup_steps > 0,
        "guard.lr_decay": spec.guard.policy == "skip" and spec.guard.lr_decay != 1.0,
    } | {f"optimizer.groups[{index}].lr_mult": one.lr_mult != 1.0 for index, one in enumerate(spec.optimizer.groups)}
    for key, is_asked in asked.items():
        if is_asked:
            raise PlanRefused(
                f"{spec.optimizer.name} finds the rate of each weight by itself, and lr is that of its first update.",
                where=key,
                hint="Set it to 1.0." if key.startswith("guard") else "Remove it, or take another optimizer.",
            )


def _plan_schedule(spec: Spec, budget: BudgetPlan, lr_max: float) -> SchedulePlan:
    """Raises PlanRefused for a kind that is unknown, and for arguments that it does not take."""
    schedule = spec.schedule
    plan = SchedulePlan(
        kind=schedule.kind,
        warmup_steps=schedule.warmup_steps,
        total_steps=budget.max_steps,
        lr_max=lr_max,
        lr_min=schedule.lr_min,
    )
    given = dict(schedule.arguments)
    if schedule.kind in OWN_KINDS:
        if given:
            raise PlanRefused(f"{schedule.kind} takes none.", where="schedule.arguments", hint="Remove them.")
        return plan
    name = scheduler_name(schedule.kind)
    if name == PLATEAU:
        given["mode"] = _mode(spec, given)
    arguments = scheduler_arguments(name, given, lr_max=lr_max)
    lr_min = _lr_min(spec, name, lr_max)
    plan = plan.model_copy(update={"kind": name, "arguments": arguments, "lr_min": lr_min})
    try_curve(plan)
    return plan


def _mode(spec: Spec, given: dict[str, Any]) -> str:
    """Of reduce_on_plateau, which follows the metric of the best checkpoint."""
    if spec.validation is None:
        raise PlanRefused(
            "it follows the evaluations, and there is no validation.", where="schedule.kind", hint="Add `validation`."
        )
    mode = spec.checkpoint.best.mode
    if given.get("mode", mode) != mode:
        raise PlanRefused(
            f"it follows checkpoint.best, whose mode is {mode}; found {found(given['mode'])}.",
            where="schedule.arguments.mode",
            hint="Remove it, or set checkpoint.best.",
        )
    return mode


def _lr_min(spec: Spec, name: str, lr_max: float) -> float:
    """`schedule.lr_min`, or the argument of torch's scheduler that means the same."""
    schedule, argument = spec.schedule, lr_min_argument(name)
    is_set = "lr_min" in schedule.model_fields_set
    if argument is None:
        if is_set:
            raise PlanRefused(f"{name} has no lowest rate.", where="schedule.lr_min", hint="Remove it.")
        return 0.0
    if argument not in schedule.arguments:
        return schedule.lr_min
    value, where = schedule.arguments[argument], f"schedule.arguments.{argument}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= lr_max:
        raise PlanRefused(f"expected a number from 0 to lr_max ({found(lr_max)}), found {found(value)}.", where=where)
    if is_set and value != schedule.lr_min:
        raise PlanRefused(
            f"expected schedule.lr_min ({found(schedule.lr_min)}), found {found(value)}; keep one of them.", where=where
        )
    return float(value)


def _fused(spec: Spec) -> bool:
    """The fused implementation, where the spec leaves it open wherever there is one."""
    able = is_fusable(spec.optimizer.name, spec.device.partition(":")[0])
    if spec.optimizer.fused and not able:
        raise PlanRefused(f"{spec.optimizer.name} cannot be fused on {spec.device}.", where="optimizer.fused")
    return able if spec.optimizer.fused is None else spec.optimizer.fused
