"""Outputs whose order may differ where scores tie, brought into the order of what they are compared with.

The k best of scores that tie come out in another order from another runtime, and so do the boxes that go with them.
Such outputs are sets along an axis: row i of one is matched with the row of the other that is nearest, over all outputs
that are declared so and have the same rows, so that scores and boxes stay together. Each row is taken once.

A tie at the cut itself (which row is the k-th) is no matter of order, and is not excused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["aligned"]

Array = np.ndarray[Any, Any]


def aligned(expected: Mapping[str, Array], found: Mapping[str, Array], sets: Mapping[str, int]) -> dict[str, Array]:
    """`found` with the rows of its sets in the order of `expected`; other outputs, and misfits, as they are."""
    result = dict(found)
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, axis in sets.items():
        if expected[name].shape == found[name].shape and axis < expected[name].ndim:
            groups.setdefault(expected[name].shape[: axis + 1], []).append(name)
    for shape, names in groups.items():
        for where in np.ndindex(*shape[:-1]):
            order = _matching(
                *(_rows([side[name][where] for name in names], expected, names) for side in (expected, found))
            )
            for name in names:
                if result[name] is found[name]:
                    result[name] = found[name].copy()
                result[name][where] = found[name][where][order]
    return result


def _rows(parts: list[Array], expected: Mapping[str, Array], names: list[str]) -> Array:
    """One row of numbers for each member of the set, each output in its own scale."""
    flat = []
    for part, name in zip(parts, names, strict=True):
        whole = expected[name].astype(np.float64)
        largest = float(np.abs(whole[np.isfinite(whole)]).max(initial=0.0)) or 1.0
        flat.append(np.nan_to_num(part.reshape(len(part), -1).astype(np.float64) / largest))
    return np.concatenate(flat, axis=1)


def _matching(expected: Array, found: Array) -> Array:
    """For each row of `expected`, which row of `found` is its own: the nearest pair first, each row once."""
    size = len(expected)
    cost = np.stack([np.abs(found - row).max(axis=1, initial=0.0) for row in expected]) if size else np.zeros((0, 0))
    order = np.full(size, -1)
    taken = np.zeros(size, bool)
    left = size
    for place in np.argsort(cost, axis=None, kind="stable"):
        row, column = divmod(int(place), size)
        if order[row] < 0 and not taken[column]:
            order[row], taken[column] = column, True
            left -= 1
            if not left:
                break
    return order
