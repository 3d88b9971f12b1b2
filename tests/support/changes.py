"""Changes to a JSON document, for tests that a reader notices each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Change", "drop", "put"]

Change = Callable[[dict[str, Any]], object]


def put(path: str, value: Any) -> Change:
    """Set what stands at a dotted path; items of lists by their number."""

    def change(document: dict[str, Any]) -> None:
        place, last = _place(document, path)
        place[last] = value

    return change


def drop(path: str) -> Change:
    """Remove what stands at a dotted path."""

    def change(document: dict[str, Any]) -> None:
        place, last = _place(document, path)
        del place[last]

    return change


def _place(document: Any, path: str) -> tuple[Any, str | int]:
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        document = document[part]
    return document, last
