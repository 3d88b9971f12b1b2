"""The numbers of an update: optimizer and schedule."""

from __future__ import annotations

from trn.errors import PlanRefused
from trn.spec import Spec
from trn.spec.plan_model import BudgetPlan, GroupPlan, OptimizerPlan, SchedulePlan
from trn.trainer import Trainer
from trn.trainer.optimizers import is_fusable, optimizer_arguments

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
        SchedulePlan(
            kind=schedule.kind,
            warmup_steps=schedule.warmup_steps,
            total_steps=budget.max_steps,
            lr_max=lr_max,
            lr_min=schedule.lr_min,
            arguments=schedule.arguments,
        )
        if "schedule" in honours
        else None,
    )


def _fused(spec: Spec) -> bool:
    """The fused implementation, where the spec leaves it open wherever there is one."""
    able = is_fusable(spec.optimizer.name, spec.device.partition(":")[0])
    if spec.optimizer.fused and not able:
        raise PlanRefused(f"{spec.optimizer.name} cannot be fused on {spec.device}.", where="optimizer.fused")
    return able if spec.optimizer.fused is None else spec.optimizer.fused
