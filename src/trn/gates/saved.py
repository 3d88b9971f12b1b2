"""Reading back what was saved: a frozen value of numbers, or a refusal. Nothing is filled in, nothing left out."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, TypeVar

from trn.records import JsonError

__all__ = ["read_saved"]

_Value = TypeVar("_Value")


def read_saved(kind: type[_Value], value: Any) -> _Value:
    """The dataclass `kind`, whose fields are all `int` (a count), `float` or `float | None`.

    Raises JsonError for a missing or unknown key, another type, a negative count, a number that is not finite.
    """
    name = kind.__name__
    if not isinstance(value, dict):
        raise JsonError(f"{name}: expected an object, found {value!r:.60}")
    types = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass by contract
    if missing := sorted(set(types) - set(value)):
        raise JsonError(f"{name}: missing {', '.join(missing)}")
    if unknown := sorted(str(key) for key in set(value) - set(types)):
        raise JsonError(f"{name}: unknown {', '.join(unknown)}")
    for key, expected in types.items():
        if not _is(expected, value[key]):
            raise JsonError(f"{name}.{key}: expected {_WORDS[expected]}, found {value[key]!r:.60}")
    return kind(**value)


_WORDS = {
    "int": "a count, 0 or more",
    "float": "a finite float",
    "float | None": "a finite float or null",
}


def _is(expected: str, value: Any) -> bool:
    if expected == "int":
        return type(value) is int and value >= 0
    return (value is None and expected == "float | None") or (type(value) is float and math.isfinite(value))
