"""The accelerators that this process may use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["count_accelerators"]

_NVIDIA = Path("/proc/driver/nvidia/gpus")


def count_accelerators(environ: Mapping[str, str], *, folder: Path = _NVIDIA) -> int:
    """How many NVIDIA devices the driver in `folder` shows, of those that CUDA_VISIBLE_DEVICES leaves; 0 without any.

    As CUDA reads it: the list ends before the first entry that names no device.
    """
    try:
        there = sum(1 for _ in folder.iterdir())
    except OSError:
        return 0
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or there == 0:
        return there
    count = 0
    for name in chosen.split(","):
        is_index = name.strip().isdecimal() and int(name) < there
        if not (is_index or name.strip().startswith(("GPU-", "MIG-"))):
            break
        count += 1
    return count
