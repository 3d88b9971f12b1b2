"""Digests: sha256 is the identity of bytes."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from trn.files.system import CHUNK_BYTES

if TYPE_CHECKING:
    import hashlib

__all__ = ["Sha256Aside", "new_sha256", "sha256_file", "sha256_prefix"]


def new_sha256(data: bytes = b"") -> hashlib._Hash:
    """A sha256 to go on with, of `data` so far."""
    import hashlib  # brings OpenSSL: a twentieth of what `trn list` costs, which digests nothing

    return hashlib.sha256(data)


class Sha256Aside:
    """A sha256 whose work is done in a thread of its own; for big pieces, and one thread that gives them."""

    LAG = 3
    """So many pieces may still be unread when `update` returns."""

    def __init__(self) -> None:
        self._digest = new_sha256()
        self._pieces: queue.Queue[memoryview | None] = queue.Queue(maxsize=self.LAG - 1)
        self._thread: threading.Thread | None = None

    def update(self, data: memoryview) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="trn-sha256")
            thread.start()
            self._thread = thread
        self._pieces.put(data)

    def hexdigest(self) -> str:
        """Hex sha256 of all pieces so far; none of them is read any more."""
        if self._thread is not None:
            self._pieces.put(None)
            self._thread.join()
            self._thread = None
        return self._digest.hexdigest()

    def _run(self) -> None:
        while (piece := self._pieces.get()) is not None:
            self._digest.update(piece)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a whole file. Raises OSError."""
    import hashlib  # as above

    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_prefix(path: Path, size_bytes: int) -> str | None:
    """Hex sha256 of the first `size_bytes` of a file, or None where the file is missing or shorter."""
    digest = new_sha256()
    left = size_bytes
    try:
        with open(path, "rb") as stream:
            while left and (chunk := stream.read(min(left, CHUNK_BYTES))):
                digest.update(chunk)
                left -= len(chunk)
    except FileNotFoundError:
        return None
    return None if left else digest.hexdigest()
