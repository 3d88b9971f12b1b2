"""How far a run is, folded line by line from its journal: what status, progress and the summary show."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["STEPS_LOOKED_AT", "DataWait", "Standing", "after_event", "after_metrics", "data_wait", "eta_s"]

STEPS_LOOKED_AT = 100
"""How many of the last steps say whether a run waits for its data."""

_FEWEST_STEPS = 10  # with fewer, nothing is said
_STEP_WEIGHT = 0.1  # of the newest step in the running mean of step times: about the last ten steps count


class Standing(NamedTuple):
    """Where a run stands; None where nothing was said yet. `rate` is in `rate_unit`, `step_s` a running mean."""

    step: int = 0
    max_steps: int | None = None
    loss: float | None = None
    lr: float | None = None
    rate: float | None = None
    rate_unit: str = ""
    val_loss: float | None = None
    step_s: float | None = None
    waits: tuple[tuple[float, float], ...] = ()
    """Of each of the last steps: how long it waited for its data, and how long it was."""


class DataWait(NamedTuple):
    """Which part of the time of the last so many steps went by waiting for data, from 0 to 1."""

    share: float
    steps: int


def after_metrics(standing: Standing, line: Mapping[str, Any]) -> Standing:
    """The standing after a line of train_metrics.jsonl."""
    tokens, samples = _number(line.get("tokens_per_sec")), _number(line.get("samples_per_sec"))
    wall_ms = _number(line.get("wall_ms"))
    waited_ms = _number(line.get("data_wait_ms"))
    pair = (waited_ms, wall_ms) if waited_ms is not None and wall_ms is not None else None
    step_s = standing.step_s
    if wall_ms is not None:
        step_s = wall_ms / 1000 if step_s is None else step_s + _STEP_WEIGHT * (wall_ms / 1000 - step_s)
    return standing._replace(
        step=_step(line.get("step"), standing.step),
        loss=_number(line.get("train_loss")),
        lr=_number(line.get("lr")),
        rate=samples if tokens is None else tokens,
        rate_unit="tokens/s" if tokens is not None else "samples/s",
        step_s=step_s,
        waits=standing.waits if pair is None else (*standing.waits, pair)[-STEPS_LOOKED_AT:],
    )


def after_event(standing: Standing, event: Mapping[str, Any]) -> Standing:
    """The standing after a line of events.jsonl."""
    kind = event.get("event")
    if kind == "started":
        max_steps = event.get("max_steps")
        step = _step(event.get("step"), standing.step)
        return standing._replace(step=step, max_steps=_step(max_steps, 0) or standing.max_steps)
    if kind == "resumed":
        return standing._replace(step=_step(event.get("from_step"), standing.step))
    if kind == "evaluated" and isinstance(metrics := event.get("metrics"), dict):
        val_loss = _number(metrics.get("val_loss"))
        return standing if val_loss is None else standing._replace(val_loss=val_loss)
    return standing


def eta_s(standing: Standing) -> float | None:
    """Seconds until the budget is reached at the pace of the last steps; None while that is unknown."""
    if standing.step_s is None or standing.max_steps is None:
        return None
    return max(0, standing.max_steps - standing.step) * standing.step_s


def data_wait(standing: Standing) -> DataWait | None:
    """How much the last steps waited for data; None where too few are known.

    The longest wait is left out: it is that of the first batch after a start, for files and workers to be there.
    """
    if len(standing.waits) < _FEWEST_STEPS:
        return None
    counted = sorted(standing.waits)[:-1]
    total = sum(step for _, step in counted)
    return DataWait(sum(wait for wait, _ in counted) / total if total > 0 else 0.0, len(standing.waits))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > sys.float_info.max:
        return None  # the last: a whole number that no float can hold
    return float(value)


def _step(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise
