"""What a gate says when it ends a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Ends", "Gate", "Verdict"]

Ends = Literal[
    "completed",
    "target_reached",
    "early_stopped",
    "target_missed",
    "divergence",
    "divergence_at_first_validation",
    "numerical_instability",
    "telemetry_out_of_range",
]
"""The words of `trn.errors.STATUS` that a gate can end a run with."""

Gate = Literal["budget", "target", "patience", "divergence", "numerical_stability", "telemetry"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of a run: its outcome, one line that says why, and the gate that says so."""

    outcome: Ends
    reason: str
    gate: Gate

    @property
    def is_damage(self) -> bool:
        """Whether the weights of this step must not become a checkpoint."""
        return self.outcome in _DAMAGE


_DAMAGE = frozenset({"divergence", "divergence_at_first_validation", "numerical_instability"})
