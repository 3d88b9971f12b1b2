"""A guard over a folder: asked before a file in it gets its name or is removed, and may refuse by an error.

For who holds a folder by a lock that can be lost: whatever writes there, in whichever thread, is asked in one place.
Appends are not: they are many, and their logs have a guard of their own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["ask_guards", "guarding"]

_guards: dict[str, Callable[[], None]] = {}


@contextlib.contextmanager
def guarding(folder: Path, guard: Callable[[], None]) -> Iterator[None]:
    """Inside, `guard` is asked in this process, and not in what it forks. What it raises goes to the writer."""
    prefix = f"{folder}{os.sep}"
    _guards[prefix] = guard
    try:
        yield
    finally:
        _guards.pop(prefix, None)


def ask_guards(path: Path) -> None:
    """Raises what the guard of a folder above `path` raises."""
    if _guards:
        text = str(path)
        for prefix, guard in list(_guards.items()):
            if text.startswith(prefix):
                guard()


os.register_at_fork(after_in_child=_guards.clear)
