"""Digests: sha256 is the identity of bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from trn.files.system import CHUNK_BYTES

__all__ = ["sha256_file", "sha256_prefix"]


def sha256_file(path: Path) -> str:
    """Hex sha256 of a whole file. Raises OSError."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_prefix(path: Path, size_bytes: int) -> str | None:
    """Hex sha256 of the first `size_bytes` of a file, or None where the file is missing or shorter."""
    digest = hashlib.sha256()
    left = size_bytes
    try:
        with open(path, "rb") as stream:
            while left and (chunk := stream.read(min(left, CHUNK_BYTES))):
                digest.update(chunk)
                left -= len(chunk)
    except FileNotFoundError:
        return None
    return None if left else digest.hexdigest()
