"""What the bits depend on besides the plan and the data: libraries, the interpreter's hash seed, the CPU's kernels."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from trn.provenance.code import library_versions

__all__ = ["NOT_LIBRARIES", "versions_here"]

NOT_LIBRARIES = frozenset({"python", "trn", "hash_seed", "cpu_capability"})
"""Keys of `Plan.versions` that name no distribution."""


def versions_here(libraries: Sequence[str]) -> dict[str, str]:
    """Library versions, `hash_seed` (PYTHONHASHSEED, "random" without it: the order of a set of strings) and
    `cpu_capability` (which of torch's kernels this processor runs)."""
    return library_versions(libraries) | {
        "hash_seed": os.environ.get("PYTHONHASHSEED", "random"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
