"""The rules of the gates, settled: what the spec asks, what the trainer says of its loss, and what they need."""

from __future__ import annotations

from typing import Any

from trn.errors import PlanRefused
from trn.gates import regime_of
from trn.spec import Spec
from trn.spec.plan_model import GatesPlan, GuardPlan
from trn.trainer import Trainer

__all__ = ["plan_gates", "plan_guard"]

_NEED_A_LOSS = ("target_val_loss", "patience", "divergence_factor")


def plan_gates(spec: Spec, trainer: Trainer, params: Any) -> GatesPlan:
    """Raises PlanRefused for a rule about val_loss where none is ever measured, and for a vocab_size that is none."""
    gates = spec.gates
    for key in _NEED_A_LOSS:
        if getattr(gates, key) is not None and spec.validation is None:
            raise PlanRefused(
                "it is about val_loss, and there is no validation.",
                where=f"gates.{key}",
                hint="Add `validation`, or remove the key.",
            )
    if gates.patience is not None and spec.validation is not None and spec.validation.every_epochs == 0:
        raise PlanRefused(
            "it counts validations at the end of an epoch, and validation.every_epochs is 0.",
            where="gates.patience",
            hint="Set validation.every_epochs to 1.",
        )
    return GatesPlan(
        cross_entropy=bool(getattr(trainer, "cross_entropy", False)),
        vocab_size=_vocab_size(trainer, params),
        regime=regime_of(initial_weights=spec.weights is not None, given=gates.regime),
        target_val_loss=gates.target_val_loss,
        require_target=gates.require_target,
        patience=gates.patience,
        min_epochs=gates.min_epochs,
        min_delta=gates.min_delta,
        divergence_factor=gates.divergence_factor,
        telemetry=gates.telemetry,
    )


def plan_guard(spec: Spec) -> GuardPlan:
    return GuardPlan(policy=spec.guard.policy, max_skips=spec.guard.max_skips, lr_decay=spec.guard.lr_decay)


def _vocab_size(trainer: Trainer, params: Any) -> int | None:
    """What the trainer gives as `vocab_size`: a number, or a method that takes its Params."""
    given = getattr(trainer, "vocab_size", None)
    size = given(params) if callable(given) else given
    if size is not None and (type(size) is not int or size < 1):
        raise PlanRefused(
            f"expected a whole number from 1 on, or None, found {size!r}.", where="the trainer's vocab_size"
        )
    return size
