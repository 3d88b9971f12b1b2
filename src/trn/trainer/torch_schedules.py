"""The schedulers of torch.optim.lr_scheduler by name, run as they are: none of their formulas is written down again.

Here: which scheduler a name means, which arguments it takes, and the rates that it gives. Not here: the warm-up before
it and our own kinds (schedules).

A scheduler moves the rate of an optimizer over one parameter that nobody trains. Its n-th rate is that after n steps
from the start, also on a resume: the steps are made again, 100,000 of them in a quarter of a second.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import lr_scheduler

from trn.errors import PlanRefused, ResumeRefused
from trn.spec.plan_model import SchedulePlan
from trn.spec.words import found, nearest

__all__ = [
    "PLATEAU",
    "SCHEDULERS",
    "Curve",
    "Plateau",
    "lr_min_argument",
    "scheduler_arguments",
    "scheduler_name",
    "try_curve",
]

PLATEAU = "ReduceLROnPlateau"
"""The one that follows the evaluations instead of the steps."""

_CLASSES: dict[str, Any] = {
    name: kind
    for name, kind in vars(lr_scheduler).items()
    if inspect.isclass(kind) and issubclass(kind, lr_scheduler.LRScheduler) and not name.startswith("_")
}
del _CLASSES["LRScheduler"]

_UNFIT = {
    "LambdaLR": "takes functions, which a spec cannot say",
    "MultiplicativeLR": "takes functions, which a spec cannot say",
    "SequentialLR": "is made of other schedulers, which a spec cannot say",
    "ChainedScheduler": "is made of other schedulers, which a spec cannot say",
}
SCHEDULERS = {name: kind for name, kind in _CLASSES.items() if name not in _UNFIT}

_LENGTHS = {
    "ConstantLR": "total_iters",
    "CosineAnnealingLR": "T_max",
    "CosineAnnealingWarmRestarts": "T_0",
    "LinearLR": "total_iters",
    "OneCycleLR": "total_steps",
    "PolynomialLR": "total_iters",
}
"""The argument that is a length: what is not given is the budget after the warm-up."""
_OVER_AT_THE_END = frozenset({"ConstantLR", "CosineAnnealingWarmRestarts", "OneCycleLR"})
"""After their length these begin anew, jump, or raise: they rest one step before it, at the last rate they are for."""

_LOWEST = {
    "CosineAnnealingLR": "eta_min",
    "CosineAnnealingWarmRestarts": "eta_min",
    "CyclicLR": "base_lr",
    PLATEAU: "min_lr",
}
"""The argument that `schedule.lr_min` is."""
_HIGHEST = {"CyclicLR": "max_lr", "OneCycleLR": "max_lr"}
"""The argument that `schedule.lr_max` is; elsewhere it is the rate of the optimizer."""
_NOT_TAKEN = {
    "optimizer": "it is the run's own",
    "last_epoch": "the step is the run's own",
    "scale_fn": "it is a function, which a spec cannot say",
    "base_momentum": "the momentum stays that of the optimizer",
    "max_momentum": "the momentum stays that of the optimizer",
    "epochs": "its length is a number of steps: write total_steps, or nothing for that of the budget",
    "steps_per_epoch": "its length is a number of steps: write total_steps, or nothing for that of the budget",
}
_TRIED_STEPS = 1000


def scheduler_name(kind: str) -> str:
    """The class that `kind` means: CosineAnnealingLR, cosine_annealing_lr or cosine_annealing. Raises PlanRefused."""
    known = {_folded(name): name for name in _CLASSES}
    name = known.get(_folded(kind))
    if name in _UNFIT:
        raise PlanRefused(f"{name} {_UNFIT[name]}.", where="schedule.kind")
    if name is None:
        names = list(dict.fromkeys(["constant", "linear", "warmup_cosine", *map(_snake, SCHEDULERS)]))
        near = nearest(kind, [*names, *SCHEDULERS])
        near = near or next((name for name in names if name.startswith(kind.lower())), None)
        hint = f"Did you mean {near}?" if near else f"Known: {', '.join(names)}."
        raise PlanRefused(f"unknown name {found(kind)}.", where="schedule.kind", hint=hint)
    return name


def lr_min_argument(name: str) -> str | None:
    """Which argument of the scheduler its lowest rate is, None where it has none."""
    return _LOWEST.get(name)


def scheduler_arguments(name: str, given: Mapping[str, Any], *, lr_max: float) -> dict[str, Any]:
    """All that the scheduler is given but its rates, and a length that is that of the budget; null is as not given.

    Raises PlanRefused for what it does not take, and for what it needs and did not get.
    """
    takes, parameters = _takes(name), inspect.signature(SCHEDULERS[name]).parameters
    given = {key: value for key, value in given.items() if value is not None or key not in parameters}
    for key, value in given.items():
        if key not in parameters:
            near = nearest(key, takes)
            hint = f"Did you mean {near}?" if near else f"It takes {', '.join(takes)}."
            raise PlanRefused(f"{name} does not take it.", where=_where(key), hint=hint)
        if key in _NOT_TAKEN:
            raise PlanRefused(f"{_NOT_TAKEN[key]}.", where=_where(key), hint="Remove it.")
        _require_type(key, value, parameters[key].default)
    if given.get("cycle_momentum"):
        raise PlanRefused(
            "the momentum stays that of the optimizer.", where=_where("cycle_momentum"), hint="Remove it."
        )
    highest = _HIGHEST.get(name)
    if highest is not None and given.get(highest, lr_max) != lr_max:
        raise PlanRefused(
            f"expected schedule.lr_max ({found(lr_max)}), found {found(given[highest])}.",
            where=_where(highest),
            hint="Write it as schedule.lr_max alone.",
        )
    rates = {highest, _LOWEST.get(name)}
    defaults = {key: one.default for key, one in takes.items() if key != _LENGTHS.get(name) and key not in rates}
    if missing := [key for key, value in defaults.items() if value is inspect.Parameter.empty and key not in given]:
        raise PlanRefused(f"{name} needs it.", where=_where(missing[0]))
    chosen = {key: value for key, value in given.items() if key not in rates and key != "cycle_momentum"}
    return {**defaults, **chosen}


def _require_type(key: str, value: Any, default: Any) -> None:
    """Refuse what torch would take and make nothing of, such as milestones that are text."""
    if key == "milestones":
        expected, fits = "whole numbers", isinstance(value, (list, tuple)) and all(type(one) is int for one in value)
    elif isinstance(default, bool):
        expected, fits = "true or false", isinstance(value, bool)
    elif isinstance(default, str):
        expected, fits = "text", isinstance(value, str)
    else:
        expected, fits = "a number", isinstance(value, (int, float)) and not isinstance(value, bool)
    if not fits:
        raise PlanRefused(f"expected {expected}, found {found(value)}.", where=_where(key))


def _takes(name: str) -> dict[str, inspect.Parameter]:
    """What a spec may say of a scheduler."""
    parameters = inspect.signature(SCHEDULERS[name]).parameters
    return {key: one for key, one in parameters.items() if key not in _NOT_TAKEN and key != "cycle_momentum"}


class Curve:
    """The rates of a torch scheduler from index 0, the first update after the warm-up."""

    def __init__(self, plan: SchedulePlan) -> None:
        self._plan = plan
        name, arguments = plan.kind, dict(plan.arguments)
        length = _LENGTHS.get(name)
        of_budget = length is not None and length not in arguments
        if length is not None and of_budget:
            arguments[length] = plan.total_steps - plan.warmup_steps
        self._rests_at: int | None = None
        if length is not None and (of_budget or name == "OneCycleLR"):
            self._rests_at = arguments[length] - (1 if name in _OVER_AT_THE_END else 0)
        self._arguments = arguments
        self._begin()

    def at(self, index: int) -> float:
        """The rate of an index; of the next one, or of any before it, which costs all steps from the start.

        A curve whose length came from the budget rests at its end: a longer budget does not make it climb again.
        """
        if self._rests_at is not None:
            index = min(index, self._rests_at)
        if index < self._index:
            self._begin()
        while self._index < index:
            self._scheduler.step()
            self._index += 1
        return float(self._optimizer.param_groups[0]["lr"])

    def _begin(self) -> None:
        self._optimizer, self._scheduler = _made(self._plan, self._arguments)
        self._index = 0


class Plateau:
    """The rate that ReduceLROnPlateau has come to. What it remembers must survive a restart: `state_dict`."""

    _REMEMBERED = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")

    def __init__(self, plan: SchedulePlan) -> None:
        self._lr_max = plan.lr_max
        self._optimizer, self._scheduler = _made(plan, plan.arguments)

    def rate(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def observe(self, value: float) -> None:
        """Take in the metric of one evaluation."""
        self._scheduler.step(value)

    def state_dict(self) -> dict[str, Any]:
        return {
            "lr": self.rate(),
            "lr_max": self._lr_max,
            **{key: getattr(self._scheduler, key) for key in self._REMEMBERED},
        }

    def load_state_dict(self, state: Any) -> None:
        """The same, given back; under another `lr_max`, the rate in proportion. Raises ResumeRefused."""
        expected = {"lr", "lr_max", *self._REMEMBERED}
        if not isinstance(state, Mapping) or set(state) != expected:
            raise ResumeRefused(f"expected {', '.join(sorted(expected))}; found {found(state)}.", where="schedule")
        lr, lr_max = state["lr"], state["lr_max"]
        self._optimizer.param_groups[0]["lr"] = lr if lr_max == self._lr_max else lr / lr_max * self._lr_max
        for key in self._REMEMBERED:
            setattr(self._scheduler, key, state[key])


def try_curve(plan: SchedulePlan) -> None:
    """Raise PlanRefused where torch does not take the arguments, or gives a rate that is none."""
    try:
        curve = Plateau(plan) if plan.kind == PLATEAU else Curve(plan)
        steps = 1 if isinstance(curve, Plateau) else min(plan.total_steps - plan.warmup_steps, _TRIED_STEPS)
        rates = [curve.rate() if isinstance(curve, Plateau) else curve.at(index) for index in range(steps)]
    except Exception as error:  # whatever torch makes of values that it did not expect
        first = (str(error).splitlines() or [""])[0]
        raise PlanRefused(
            f"{plan.kind} does not work with them: {type(error).__name__}: {first}", where="schedule.arguments"
        ) from error
    for index, rate in enumerate(rates):
        if not 0 <= rate < float("inf"):
            raise PlanRefused(
                f"the learning rate of update {plan.warmup_steps + index + 1} would be {rate!r}.",
                where="schedule.arguments",
            )


def _made(plan: SchedulePlan, arguments: Mapping[str, Any]) -> tuple[torch.optim.Optimizer, Any]:
    kind, own = SCHEDULERS[plan.kind], dict(arguments)
    if lowest := _LOWEST.get(plan.kind):
        own[lowest] = plan.lr_min
    if highest := _HIGHEST.get(plan.kind):
        own[highest] = plan.lr_max
        own["cycle_momentum"] = False
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=plan.lr_max)
    scheduler = kind(optimizer, **own)
    optimizer.step()  # there is no gradient: it only tells torch, which else warns, that an update came first
    return optimizer, scheduler


def _where(key: str | None) -> str:
    return f"schedule.arguments.{key}"


def _folded(name: str) -> str:
    return re.sub("[_-]|lr", "", name.lower())


def _snake(name: str) -> str:
    """The short name: cosine_annealing for CosineAnnealingLR."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower().replace("_lr", "")
