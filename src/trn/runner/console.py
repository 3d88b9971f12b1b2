"""What the runner says to whoever reads its log: on a full disk it falls silent, and nothing else happens."""

from __future__ import annotations

import contextlib
import sys

__all__ = ["say", "speak_as"]


_speaker = [""]


def speak_as(name: str) -> None:
    """From now on every line begins with `name`: one log holds what several ranks say."""
    _speaker[0] = name


def say(text: str) -> None:
    """One message on stderr."""
    text = "\n".join(f"{_speaker[0]}{line}" for line in text.splitlines()) if _speaker[0] else text
    with contextlib.suppress(OSError, ValueError):
        print(text.encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)
