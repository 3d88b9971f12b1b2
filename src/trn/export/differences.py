"""How far two arrays lie apart, and how far they may.

The tolerance of an output follows from the model itself. What PyTorch computes in float32 differs from what it gives
in float64 on the same inputs: that gap is the rounding of this very model. Another runtime, which adds up in another
order, rounds as much, in another way. So

    tolerance = max(16 eps x scale, 10 x gap)      at most 1e-3 x scale

with eps of the output's type (1.2e-7 for float32) and scale the largest absolute value that PyTorch gave; for types
with few digits (float16) the limit is 64 eps of the scale. 10 gaps, since a gap is the largest of some thousand
roundings, seldom twice of what another draw of them gives, and never ten times; 16 eps where an output has so few
numbers that their gap may be small by luck. The upper limit keeps a model that jumps (the k best of scores that tie)
from excusing everything. Integers and booleans must be equal, but where float64 itself decides otherwise.

A mask is filled with -1e9, or with the least number there is. Against such a value every other one would be nothing,
and any difference allowed. So values of 1e4 or more that are a thousand times larger than all others are a class of
their own, with a scale, a gap and a tolerance of their own; what is said above holds for the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from trn.records import Json

__all__ = ["Gap", "Tolerance", "gap_of", "statistics_of", "tolerance_of"]

Array = np.ndarray[Any, Any]

_PERCENTILES = (50, 90, 95, 99)
_EPS_FACTOR = 16.0
_GAP_FACTOR = 10.0
_CAP = 1e-3
_FAR_FROM = 1e4
_FAR_FACTOR = 1e3
_WITHOUT_GAP: Mapping[str, float] = {"float16": 1e-2, "float32": 1e-4, "float64": 1e-9}
"""Of the scale, by type, where a model cannot be run in float64."""


@dataclass(frozen=True)
class Gap:
    """Absolute and relative differences, all numbers of an output in one row; or why there are none.

    Relative to the larger of the two absolute values; 0 where both are 0.
    """

    absolute: Array
    relative: Array
    problem: str | None = None


_NONE = np.zeros(0)


def gap_of(expected: Array, found: Array, ignore: Array | None = None) -> Gap:
    """What lies between two arrays; `problem` is shape_mismatch, dtype_mismatch or non_finite.

    Infinities of one sign at one place are equal. Where `ignore` is true nothing is compared.
    """
    if expected.shape != found.shape:
        return Gap(_NONE, _NONE, f"shape_mismatch: expected {list(expected.shape)}, found {list(found.shape)}")
    if expected.dtype != found.dtype:
        return Gap(_NONE, _NONE, f"dtype_mismatch: expected {expected.dtype}, found {found.dtype}")
    keep = np.ones(expected.shape, bool) if ignore is None else ~ignore
    a, b = expected[keep].astype(np.float64), found[keep].astype(np.float64)
    same = a == b
    with np.errstate(invalid="ignore"):
        absolute = np.where(same, 0.0, np.abs(a - b))
    if not np.isfinite(absolute).all():
        return Gap(_NONE, _NONE, "non_finite: NaN, or infinite in one of the two only")
    if not np.issubdtype(expected.dtype, np.floating):  # of integers beyond 2^53 the difference may round to 0
        absolute = np.where(expected[keep] == found[keep], 0.0, np.maximum(absolute, 1.0))
    larger = np.maximum(np.abs(a), np.abs(b))
    relative = np.divide(absolute, larger, out=np.zeros_like(absolute), where=absolute > 0)
    return Gap(absolute, relative)


def statistics_of(values: Array) -> Json:
    """max, mean, p50, p90, p95, p99; all 0 of nothing."""
    if not values.size:
        return {"max": 0.0, "mean": 0.0, **{f"p{one}": 0.0 for one in _PERCENTILES}}
    ranks = np.percentile(values, _PERCENTILES)
    named = {f"p{one}": float(value) for one, value in zip(_PERCENTILES, ranks, strict=True)}
    return {"max": float(values.max()), "mean": float(values.mean()), **named}


@dataclass(frozen=True)
class Tolerance:
    """How far an output may be off, and where that comes from."""

    atol: float
    scale: float
    own_gap: float | None
    rule: str
    note: str | None = None
    far_from: float | None = None
    """Values of this size or more are far from the others, as in a mask; None: there are none."""
    far_atol: float | None = None
    """How far those may be off."""

    def allowed(self, expected: Array) -> Array:
        """How far each number may be off, in one row."""
        atol = np.full(expected.size, self.atol)
        if self.far_from is not None:
            with np.errstate(invalid="ignore"):
                atol[np.abs(expected.reshape(-1)) >= self.far_from] = self.far_atol
        return atol

    def to_json(self) -> Json:
        return asdict(self)


def tolerance_of(
    outputs: Sequence[Array], exact: Sequence[Array] | None, given: float | None, note: str | None = None
) -> Tolerance:
    """The tolerance of one output, from what PyTorch gave for all inputs, as it is and in float64 (None: it cannot)."""
    kind = outputs[0].dtype
    ours = np.concatenate([one.reshape(-1) for one in outputs])
    if not np.issubdtype(kind, np.floating):
        return Tolerance(0.0, _scale(ours), None, "equal")
    wide = None if exact is None else np.concatenate([one.reshape(-1) for one in exact]).astype(np.float64)
    if wide is not None and wide.shape != ours.shape:
        wide, note = None, "float64 gives another number of values"
    far_from = _far_from(ours)
    is_far = np.abs(ours) >= (np.inf if far_from is None else far_from)
    tolerance = _of_class(ours, wide, ~is_far, given, note)
    if far_from is None:
        return tolerance
    far = _of_class(ours, wide, is_far & np.isfinite(ours), given, None)
    return replace(tolerance, far_from=far_from, far_atol=far.atol)


def _far_from(ours: Array) -> float | None:
    """The least of the values that dwarf all others, as a mask does."""
    sizes = np.unique(np.abs(ours[np.isfinite(ours)]).astype(np.float64))
    sizes = sizes[sizes > 0]
    dwarf = (sizes[1:] >= _FAR_FROM) & (sizes[1:] / _FAR_FACTOR >= sizes[:-1])
    return float(sizes[1:][dwarf][0]) if dwarf.any() else None


def _of_class(ours: Array, wide: Array | None, members: Array, given: float | None, note: str | None) -> Tolerance:
    """The rule, for some of the numbers of an output."""
    kind, ours = ours.dtype, ours[members]
    scale, own = _scale(ours), None
    if wide is not None:
        gap = gap_of(ours.astype(np.float64), wide[members])
        if gap.problem is not None:
            note = f"float64 gives something else: {gap.problem}"
        else:
            own = float(gap.absolute.max(initial=0.0))
    if given is not None:
        return Tolerance(given, scale, own, "given", note)
    if own is None:
        return Tolerance(_WITHOUT_GAP.get(str(kind), 1e-4) * scale, scale, None, "type", note)
    eps = float(np.finfo(kind).eps)
    floor, cap = _EPS_FACTOR * eps * scale, max(_CAP, 4 * _EPS_FACTOR * eps) * scale
    if own > cap / _GAP_FACTOR:
        note = f"float32 and float64 differ by {own:.3g} in PyTorch itself: where scores tie, see Export.sets"
    return Tolerance(min(max(floor, _GAP_FACTOR * min(own, cap)), cap), scale, own, "own_gap", note)


def _scale(values: Array) -> float:
    """The largest absolute value; 1 where there is none but 0."""
    finite = values[np.isfinite(values)] if np.issubdtype(values.dtype, np.floating) else values
    return float(np.abs(finite.astype(np.float64)).max(initial=0.0)) or 1.0
