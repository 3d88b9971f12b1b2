"""What the trainer's code prints, line by line without the secrets that this process knows, on its way to the log.

`sys.stdout` and `sys.stderr` are replaced, so that prints, logging, warnings and tracebacks all come through. A line
is looked at when it is whole, or when it is flushed; a private key is held back until its end.

Not promised: what does not go through these two objects (a C library, a child process, `os.write`) is not seen here.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

from trn.provenance.process import process_redactor

__all__ = ["MaskedOutput", "copy_output", "mask_output"]

_ARMOUR = (b"-----BEGIN ", b"PRIVATE KEY", b"-----END ")
_LONGEST = 64 << 10  # of what is held back, in bytes


def mask_output() -> None:
    """Let both streams of this process mask secrets; a terminal is left alone: what is shown there is kept nowhere."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        buffer = getattr(stream, "buffer", None)
        if buffer is None or isinstance(buffer, MaskedOutput) or stream.isatty():
            continue
        stream.flush()
        masked: Any = MaskedOutput(buffer)
        _masked[name] = masked
        setattr(sys, name, io.TextIOWrapper(masked, "utf-8", errors="backslashreplace", write_through=True))
        atexit.register(masked.let_go)
        os.register_at_fork(after_in_child=masked.begin_in_child)


def copy_output(name: str, take: Callable[[bytes], None] | None) -> bool:
    """Give `take` a copy of all that goes out through the stream, masked; False where it is not masked. None: no more.

    `take` must not raise.
    """
    buffer = getattr(getattr(sys, name), "buffer", None)
    # a trainer may have put a stream of its own before the masked one, which still gets what is printed
    masked = buffer if isinstance(buffer, MaskedOutput) else _masked.get(name)
    if masked is None:
        return False
    masked.copy_to = take
    return True


_masked: dict[str, MaskedOutput] = {}
"""The streams that `mask_output` has put in place, by name."""


class MaskedOutput(io.BufferedIOBase):
    """Bytes of text on their way to `target`, lines masked as they end. Safe for threads."""

    def __init__(self, target: BinaryIO) -> None:
        self.copy_to: Callable[[bytes], None] | None = None
        self._target = target
        self._pending = b""
        self._lock = threading.RLock()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """The descriptor below, for whoever bypasses us on purpose."""
        return self._target.fileno()

    def write(self, data: Any, /) -> int:
        """Take all of `data`; what ends a line goes out. Raises OSError as the target does."""
        with self._lock:
            self._pending += bytes(data)
            end = max(self._pending.rfind(b"\n"), self._pending.rfind(b"\r")) + 1
            if len(self._pending) > _LONGEST:
                end = len(self._pending)
            if not self._is_inside_key():
                self._put(end)
        return len(data)

    def flush(self) -> None:
        with self._lock:
            if not self._is_inside_key():
                self._put(len(self._pending))

    def let_go(self) -> None:
        """Put out what is still held back, at the end of the process; nobody reads an error any more."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._put(len(self._pending))

    def begin_in_child(self) -> None:
        """A forked child has its own beginning: what was pending is its parent's, and so is whoever held the lock."""
        self._lock = threading.RLock()
        self._pending = b""

    def _put(self, size: int) -> None:
        ready, self._pending = self._pending[:size], self._pending[size:]
        if ready:
            text = ready.decode("utf-8", "surrogateescape")
            left = process_redactor().text(text).encode("utf-8", "surrogateescape")
            if self.copy_to is not None:
                self.copy_to(left)
            while left:  # an unbuffered file may take less than all
                left = left[self._target.write(left) :]
            self._target.flush()

    def _is_inside_key(self) -> bool:
        """Whether a private key has begun, and the line of its end is not here yet."""
        begin, key, end = _ARMOUR
        at = self._pending.rfind(begin)
        if at < 0 or len(self._pending) > _LONGEST or key not in self._pending[at : at + 80]:
            return False
        ends_at = self._pending.find(end, at)
        return ends_at < 0 or b"\n" not in self._pending[ends_at:]
