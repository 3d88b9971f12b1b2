"""`StepResult.debug`: what a trainer wants to be seen of a step, as JSON in the step's `metric` event. Nothing is
computed from it; it is in no line of the metrics, and in no checkpoint.

Numbers that are not finite become the text "nan", "inf" or "-inf"; tensors and numpy's numbers of one element are
plain numbers. Secrets are taken out by the journal, as of all that it is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from trn.errors import TrainerError
from trn.provenance.redact import encodable
from trn.records import Json, canonical_json

__all__ = ["MOST_BYTES", "debug_fields", "plain_json"]

MOST_BYTES = 16 << 10
_MOST_VALUES = 4096
_MOST_TRIES = 16
"""So many entries that do not fit are looked at, before the rest is left out too."""
_DEEPEST = 16
_MOST_BITS = 63


class _TooMuch(Exception):
    """A value with more in it than is ever written."""


def debug_fields(step: int, debug: Mapping[Any, Any], line: Json) -> Json:
    """`debug` for the metric event whose other fields are `line`'s: whole entries, in their order, while they fit.

    Where one does not, it is left out, and `debug_truncated` says that there was more. Raises TrainerError for what
    JSON has no word for.
    """
    where = f"step {step}, debug"
    if "debug" in line:
        raise TrainerError("the step has a metric of the same name, and the event has room for one.", where=where)
    told: Json = {}
    left, left_out = MOST_BYTES - 2, 0
    for name, value in debug.items():
        if left_out == _MOST_TRIES:
            break
        name = _key(name, where)
        try:
            plain = _plain(value, f"{where}[{name[:60]!r}]", [_MOST_VALUES, MOST_BYTES], _DEEPEST)
        except _TooMuch:
            left_out += 1
            continue
        size = len(canonical_json({name: plain})) - 1  # a brace of two is a comma
        if size > left:
            left_out += 1
        elif name not in told:
            told[name] = plain
            left -= size
    return {"debug": told, "debug_truncated": True} if left_out else {"debug": told}


def plain_json(value: Any, where: str, *, most_bytes: int) -> Any:
    """The value as strict JSON has it. Raises TrainerError for what it has no word for, or is more than so much."""
    try:
        return _plain(value, where, [_MOST_VALUES, most_bytes], _DEEPEST)
    except _TooMuch:
        raise TrainerError(
            f"more than {most_bytes:,} bytes of JSON, or {_MOST_VALUES:,} values.", where=where
        ) from None


def _plain(value: Any, where: str, left: list[int], depth: int) -> Any:
    """`left` is how many values and characters of text may still come."""
    left[0] -= 1
    if left[0] < 0:
        raise _TooMuch
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        left[1] -= len(value)
        if left[1] < 0:
            raise _TooMuch
        return encodable(str.__str__(value))
    if isinstance(value, int):
        if value.bit_length() > _MOST_BITS:
            raise TrainerError("a number of more than 64 bits.", where=where, hint="Keep it as text.")
        return int(value)
    if isinstance(value, float):
        return float(value) if isfinite(value) else str(float(value))
    if depth == 0:
        raise TrainerError(f"nested deeper than {_DEEPEST}, or holds itself.", where=where)
    if isinstance(value, Mapping):
        return {
            _key(name, where): _plain(item, f"{where}[{name[:60]!r}]", left, depth - 1) for name, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{number}]", left, depth - 1) for number, item in enumerate(value)]
    if hasattr(value, "item"):
        try:
            return _plain(value.item(), where, left, depth - 1)
        except (RuntimeError, TypeError, ValueError):
            # its own words say no more, and a cause would be shown with its traceback
            raise TrainerError("expected one number, found a tensor of several.", where=where) from None
    raise TrainerError(
        f"a {type(value).__name__}; expected null, true, false, a number, text, or a list or mapping of them.",
        where=where,
        hint="Turn it into one of these.",
    )


def _key(name: Any, where: str) -> str:
    if not isinstance(name, str):
        raise TrainerError(f"expected text as a name, found {name!r:.60}.", where=where)
    return encodable(str.__str__(name))
