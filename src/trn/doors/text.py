"""Words from elsewhere, made safe to show: a run's files and a trainer's prints may hold anything."""

from __future__ import annotations

import re

__all__ = ["clean", "clean_line"]

_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor movement
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC, DCS and their like: titles, links, clipboard
    r"|\x1b[ -/]*[0-~]?"  # what else begins with ESC
)
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the direction of what follows
    "\ud800-\udfff]"  # halves of a character, which no stream can encode
)


def clean(text: str) -> str:
    """`text` without anything that moves a cursor, colours, rings or reorders; tabs and newlines stay."""
    return _CONTROLS.sub("", _SEQUENCES.sub("", text))


def clean_line(text: str) -> str:
    """`text` as one clean line: of a line that was drawn over with carriage returns, what was last to be seen."""
    shown = [part for part in text.rstrip("\r\n").split("\r") if part]
    return clean(shown[-1] if shown else "").replace("\n", " ")
