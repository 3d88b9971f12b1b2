"""What a step's line in the journal is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trn.errors import TrainerError
from trn.gates import require_finite
from trn.provenance.process import clean_name
from trn.records import EVENT_HEAD, STEP_KEYS, Json

__all__ = ["finite_metrics", "step_line"]

_ALIASES = {"loss": "train_loss", "learning_rate": "lr", "train_lr": "lr"}
_TRAINERS_OWN = frozenset({"train_loss", "lr", "grad_norm"})
_MOST_BITS = 63
"""Of a whole number that a reader of a line can be expected to hold."""
_OURS = (frozenset(STEP_KEYS) | EVENT_HEAD) - _TRAINERS_OWN


def finite_metrics(step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics by their canonical names as plain numbers.

    Raises NumericalInstability for one that is not finite; TrainerError for one that is no number or has a name that
    the journal fills itself.
    """
    plain: dict[str, float] = {}
    for name, given in metrics.items():
        name = _ALIASES.get(name, name)
        value = _plain(step, name, given)
        name = clean_name(name)
        if name in plain:
            raise TrainerError("it is given twice, under a name and its alias.", where=_place(step, name))
        if type(value) not in (float, int) or name in _OURS:
            found = f"a {type(value).__name__}" if name not in _OURS else "a name that the journal fills itself"
            raise TrainerError(
                f"expected a finite number under a name of its own, found {found}.", where=_place(step, name)
            )
        if type(value) is int and value.bit_length() > _MOST_BITS:
            raise TrainerError(
                f"expected a number of at most {_MOST_BITS} bits, found one of {value.bit_length():,}.",
                where=_place(step, name),
            )
        plain[name] = require_finite(step, name, value)
    return plain


def _place(step: int, name: str) -> str:
    return f"step {step}, metric {name!r}"


def _plain(step: int, name: str, given: Any) -> Any:
    if not isinstance(name, str):
        raise TrainerError(f"expected text, found {name!r}.", where=f"step {step}, the name of a metric")
    if not hasattr(given, "item"):
        return given
    try:
        return given.item()
    except (RuntimeError, TypeError, ValueError):
        # its own words say no more, and a cause would be shown with its traceback
        raise TrainerError("expected one number, found a tensor of several.", where=_place(step, name)) from None


def step_line(
    step: int,
    epoch: int,
    metrics: dict[str, float],
    tokens: int | None,
    rows: int,
    *,
    wall_s: float,
    waited_s: float,
    tokens_seen: int | None,
    gpu_util_pct: float | None = None,
) -> Json:
    """One line of train_metrics.jsonl; `wall_s` is the whole step with its wait for data.

    `tokens_per_sec * wall_ms / 1000` is the number of tokens of the batch. `gpu_util_pct` is null where nobody reads a
    counter: a number that was not measured is never written.
    """
    return {
        "step": step,
        "epoch": epoch,
        "train_loss": None,
        "grad_norm": None,
        "lr": None,
        "tokens_per_sec": None if tokens is None else tokens / wall_s,
        "samples_per_sec": rows / wall_s,
        "gpu_util_pct": gpu_util_pct,
        "wall_ms": wall_s * 1000.0,
        "data_wait_ms": waited_s * 1000.0,
        "tokens_seen": tokens_seen,
        **metrics,  # the first three go where they stand above
    }
