"""What the runner says to whoever reads its log: on a full disk it falls silent, and nothing else happens."""

from __future__ import annotations

import contextlib
import sys

__all__ = ["say"]


def say(text: str) -> None:
    """One message on stderr."""
    with contextlib.suppress(OSError, ValueError):
        print(text.encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)
