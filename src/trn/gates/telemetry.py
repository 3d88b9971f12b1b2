"""G8, telemetry: a sensor or a clock that says the impossible is not believed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["READING_RANGES", "bad_readings"]

READING_RANGES: dict[str, tuple[float, float]] = {
    "tokens_per_sec": (0.0, math.inf),
    "samples_per_sec": (0.0, math.inf),
    "gpu_util_pct": (0.0, 100.0),
    "wall_ms": (0.0, math.inf),
    "data_wait_ms": (0.0, math.inf),
}
"""Key of a metrics line -> lowest and highest reading, both legal. Infinity itself is never legal."""


def bad_readings(line: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys whose reading is no number, not finite or out of range, in the order of READING_RANGES.

    Null is a good reading: nobody measured.
    """
    bad = []
    for key, (low, high) in READING_RANGES.items():
        value = line.get(key)
        if value is None:
            continue
        # NaN fails the comparison
        if type(value) not in (float, int) or not low <= value <= high or value == math.inf:
            bad.append(key)
    return tuple(bad)
