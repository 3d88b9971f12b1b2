"""How a value, a key and a place are shown in a message: short, on one line, without control characters."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["dotted", "found", "nearest", "one_of", "printable"]

_PLAIN_WORD = re.compile(r"[\w-]{1,60}")
_WIDTH = 60
_LONGEST_NAME = 64


def printable(text: str, width: int = 200) -> str:
    """`text` with everything that is not printable escaped, cut to `width` characters."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[: width + 1])
    return shown if len(shown) <= width else shown[: width - 3] + "..."


def found(value: object, *, quoted: bool = True) -> str:
    """`value` as a message names it, in at most 60 characters: text in quotes, null, true, a list, a mapping."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _cut(repr(value[: _WIDTH + 1])) if quoted else printable(value, _WIDTH)
    if isinstance(value, int):
        return repr(value) if value.bit_length() <= 128 else f"a number of {value.bit_length()} bits"
    if isinstance(value, Mapping):
        return f"a mapping of {len(value)}" if value else "an empty mapping"
    if isinstance(value, Sequence):
        return f"a list of {len(value)}" if value else "an empty list"
    return _cut(repr(value))


def _cut(shown: str) -> str:
    return shown if len(shown) <= _WIDTH else shown[: _WIDTH - 4] + "..." + shown[-1]


def dotted(path: Iterable[str | int]) -> str:
    """`a.b[2].c`; a key that is no plain word stands in quotes."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + found(step, quoted=not _PLAIN_WORD.fullmatch(step))
    return text


def one_of(names: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was most likely meant to be, None where none is near."""
    if len(name) > _LONGEST_NAME:
        return None
    folded = {one.lower().replace("-", "_"): one for one in known}
    near = difflib.get_close_matches(name.lower().replace("-", "_"), folded, n=1, cutoff=0.6)
    return folded[near[0]] if near else None
