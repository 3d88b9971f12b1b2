"""G1, the record of a step is complete: every key is there, and what stands under it is what the key means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trn.gates.telemetry import READING_RANGES, bad_readings
from trn.records import STEP_KEYS

__all__ = ["record_problems"]

_TRAINERS_OWN = frozenset({"train_loss", "grad_norm", "lr"})
_LEAST = {"step": 1, "epoch": 0, "tokens_seen": 0}


def record_problems(line: Mapping[str, Any], *, makes_own_updates: bool = False) -> list[str]:
    """What keeps a metrics line from being complete, one line each; empty for a complete one.

    `step` counts from 1, `epoch` and `tokens_seen` from 0; `tokens_seen` and the readings of clocks and sensors may be
    null. `train_loss`, `grad_norm` and `lr` are finite numbers, null only for a trainer that makes its own updates.
    Whatever else the line has is a finite number. The order of the keys does not matter.
    """
    nullable = _TRAINERS_OWN if makes_own_updates else ()
    problems = [f"{key} is missing" for key in STEP_KEYS if key not in line]
    for key, value in line.items():
        if key in _LEAST:
            fits = type(value) is int and value >= _LEAST[key]
            if not fits and not (value is None and key == "tokens_seen"):
                problems.append(f"{key}: expected a whole number from {_LEAST[key]} on, found {value!r:.60}")
        elif key not in READING_RANGES and not _is_finite(value):
            if value is None and key in nullable:
                continue
            problems.append(f"{key}: expected a finite number, found {value!r:.60}")
    return problems + [f"{key}: {line[key]!r:.60} is out of range" for key in bad_readings(line)]


def _is_finite(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))
