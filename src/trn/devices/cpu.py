"""The cores of this machine that this process may use."""

from __future__ import annotations

import os

__all__ = ["cpu_threads", "usable_cores"]


def usable_cores() -> tuple[int, ...]:
    """By number: those this process may run on; where the system does not say, all."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def cpu_threads() -> int:
    """How many threads a run uses when the spec leaves it open: the cores this process may run on."""
    return max(1, len(usable_cores()))
