"""Seeds that follow from the plan's: for what is done at a step beside it."""

from __future__ import annotations

import hashlib

__all__ = ["derived_seed"]


def derived_seed(seed: int, purpose: str, step: int) -> int:
    """A seed of its own for what is done at a step: 63 bits of a sha256."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()[:8]) >> 1
