"""What the gates are told: numbers of the plan, and the two limits that no spec can raise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["DIVERGENCE_RATIO", "FINETUNE_CAP", "GateRules", "Regime", "first_loss_cap", "regime_of"]

Regime = Literal["finetune", "from_scratch"]

DIVERGENCE_RATIO = 2.0
"""A cross-entropy above this many times the one before has diverged. Source: seed 002, GATE-TRAIN-005."""

FINETUNE_CAP = 10.0
"""The highest first cross-entropy of a model that starts from given weights. Source: seed 002, GATE-TRAIN-005."""


@dataclass(frozen=True, slots=True)
class GateRules:
    """The keys of `gates` and `guard` in a spec, and what the trainer says of its loss.

    `cross_entropy`, or a `vocab_size`, declares that val_loss is a mean cross-entropy in nats; only then is its size
    judged. `vocab_size` is the number of classes, for the cap from scratch.
    """

    cross_entropy: bool = False
    vocab_size: int | None = None
    regime: Regime = "from_scratch"
    target_val_loss: float | None = None
    require_target: bool = False
    patience: int | None = None
    min_epochs: int = 3
    min_delta: float = 0.0
    divergence_factor: float | None = None
    telemetry: Literal["warn", "stop"] = "warn"
    policy: Literal["stop", "skip"] = "stop"
    max_skips: int = 3
    lr_decay: float = 0.5

    @property
    def is_cross_entropy(self) -> bool:
        return self.cross_entropy or self.vocab_size is not None


def regime_of(initial_weights: bool, given: Regime | None = None) -> Regime:
    """The regime that was given, else what follows from whether the run starts from given weights."""
    return given or ("finetune" if initial_weights else "from_scratch")


def first_loss_cap(rules: GateRules) -> float | None:
    """The highest val_loss of a run without a validated epoch; None where the loss has no known scale.

    10.0 when fine-tuning; from scratch 2 ln(max(V, 2)), twice the loss of a model that knows nothing.
    Source: seed 002, TrainingRegime::epoch_zero_val_loss_limit, here in float64.
    """
    if not rules.is_cross_entropy:
        return None
    if rules.regime == "finetune":
        return FINETUNE_CAP
    return None if rules.vocab_size is None else DIVERGENCE_RATIO * math.log(max(rules.vocab_size, 2))
