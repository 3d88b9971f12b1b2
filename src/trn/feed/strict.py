"""Objects read from JSON with exactly the fields that are expected: the check that all readers of this room share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trn.records import JsonError

__all__ = ["fields", "list_of"]

_SHA256 = re.compile(r"[0-9a-f]{64}")


def fields(value: Any, name: str, kinds: Mapping[str, type]) -> dict[str, Any]:
    """`value` itself, once it is an object with exactly the keys of `kinds`, each of its type.

    Integers are not negative, strings named `*sha256` or `fingerprint` are 64 hex digits. Raises JsonError, which says
    what in `name` is wrong.
    """
    if not isinstance(value, dict):
        raise JsonError(f"{name}: expected an object, found {_kind(value)}")
    if unknown := sorted(set(value) - set(kinds)):
        raise JsonError(f"{name}: unknown {', '.join(unknown)}; expected {', '.join(kinds)}")
    if missing := [key for key in kinds if key not in value]:
        raise JsonError(f"{name}: missing {', '.join(missing)}")
    for key, kind in kinds.items():
        _check(value[key], f"{name}.{key}", kind)
        if kind is str and (key.endswith("sha256") or key == "fingerprint") and not _SHA256.fullmatch(value[key]):
            raise JsonError(f"{name}.{key}: expected 64 hex digits, found {value[key][:80]!r}")
    return value


def list_of(value: list[Any], name: str, kind: type) -> tuple[Any, ...]:
    """The elements of `value` as a tuple, once each is of `kind` (integers not negative). Raises JsonError."""
    for index, one in enumerate(value):
        _check(one, f"{name}[{index}]", kind)
    return tuple(value)


def _check(found: Any, name: str, kind: type) -> None:
    if type(found) is not kind:  # not isinstance: True is no number here
        raise JsonError(f"{name}: expected {kind.__name__}, found {_kind(found)}")
    if isinstance(found, int) and found < 0:
        raise JsonError(f"{name}: expected no negative number, found {found}")


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
