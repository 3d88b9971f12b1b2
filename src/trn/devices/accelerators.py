"""The accelerators that this process may use."""

from __future__ import annotations

from collections.abc import Mapping

from trn.devices.inventory import accelerators

__all__ = ["count_accelerators"]


def count_accelerators(environ: Mapping[str, str]) -> int:
    """How many devices of CUDA's, or of ROCm's, the environment leaves of those that are here; 0 without any."""
    return len(accelerators(environ, with_use=False).of("cuda", "rocm"))
