"""The bytes of a file that is being sent: piece by piece, from any offset, with the digest of all up to there.

The file stays open as long as it is being sent, so that it may be pruned meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from trn.files import new_sha256

__all__ = ["PIECE_BYTES", "Over", "Pace", "Source", "sha256_of"]

PIECE_BYTES = 4 << 20
"""What is lost where a connection breaks, and what is held in memory."""
_BLOCK_BYTES = 256 << 10
_LOOK_S = 0.2


class Over(Exception):
    """Nothing more is to be sent."""


class Pace:
    """Lets bytes be read at most so fast, until `is_over`; `wait` sleeps, and may be woken."""

    def __init__(
        self, bytes_per_s: float | None, wait: Callable[[float], object], is_over: Callable[[], bool] = bool
    ) -> None:
        self._bytes_per_s, self._wait, self._is_over = bytes_per_s, wait, is_over
        self._free_s = 0.0

    def spend(self, count: int) -> None:
        """Raises Over."""
        if self._is_over():
            raise Over
        if self._bytes_per_s is None:
            return
        now_s = time.monotonic()
        self._free_s = max(now_s, self._free_s) + count / self._bytes_per_s
        while (left_s := self._free_s - time.monotonic()) > 0:
            self._wait(min(left_s, _LOOK_S))
            if self._is_over():
                raise Over


class Source:
    """An open file of `size_bytes`. One piece of it is kept, which a server may want again, or the rest of it."""

    def __init__(self, fd: int, size_bytes: int, pace: Pace) -> None:
        self._fd, self._size_bytes, self._pace = fd, size_bytes, pace
        self._digest = new_sha256()
        self._start = 0
        self._piece = b""

    def piece(self, offset: int) -> bytes:
        """The bytes from `offset` on, at most PIECE_BYTES; empty where the file has become shorter. Raises OSError."""
        end = self._start + len(self._piece)
        if self._piece and self._start <= offset < end:
            return self._piece[offset - self._start :]
        digest = self._digest
        if offset < end:  # the server has lost what it had: from the beginning again
            digest, end = new_sha256(), 0
        self._digest, self._start, self._piece = new_sha256(), 0, b""  # so that nothing is half read, should that fail
        for block in _blocks(self._fd, end, offset, self._pace):
            digest.update(block)
        piece = b"".join(_blocks(self._fd, offset, min(offset + PIECE_BYTES, self._size_bytes), self._pace))
        digest.update(piece)
        self._digest, self._start, self._piece = digest, offset, piece
        return self._piece

    def sha256(self) -> str:
        """Of all bytes up to the end of the last piece."""
        return self._digest.hexdigest()

    def close(self) -> None:
        self._piece = b""
        os.close(self._fd)


def sha256_of(fd: int, size_bytes: int, pace: Pace) -> str:
    """Of the first `size_bytes` of an open file. Raises OSError."""
    digest = new_sha256()
    for block in _blocks(fd, 0, size_bytes, pace):
        digest.update(block)
    return digest.hexdigest()


def _blocks(fd: int, start: int, end: int, pace: Pace) -> Iterator[bytes]:
    while start < end and (block := os.pread(fd, min(_BLOCK_BYTES, end - start), start)):
        pace.spend(len(block))
        start += len(block)
        yield block
