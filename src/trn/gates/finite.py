"""G7, numerical stability: a number that is not finite never reaches the weights, the log or a checkpoint."""

from __future__ import annotations

import math

from trn.errors import NumericalInstability

__all__ = ["require_finite"]


def require_finite(step: int, field: str, value: float) -> float:
    """`value`, if it is finite. Raises NumericalInstability naming the step (from 1) and the field."""
    if not math.isfinite(value):
        raise NumericalInstability(step=step, field=field, value=value)
    return value
