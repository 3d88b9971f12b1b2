"""What this machine can compute on. No torch here: what is there is asked of the system, not of a framework.

Here: how many threads a run gets. Later rooms of this house (leases, GPUs, telemetry) belong here too.
"""

from __future__ import annotations

import os

__all__ = ["cpu_threads"]


def cpu_threads() -> int:
    """How many threads a run uses when the spec leaves it open: the cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)
