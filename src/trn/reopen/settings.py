"""Torch, set as the plan says."""

from __future__ import annotations

import gc

import torch

from trn.devices import keep_freed_memory
from trn.spec.plan_model import Plan

__all__ = ["prepare_torch"]


def prepare_torch(plan: Plan) -> None:
    """Threads and determinism as planned, memory kept; before anything is built or recorded.

    From here on garbage is collected, but what is there now, mostly modules, is left alone for good.
    """
    keep_freed_memory()
    torch.set_num_threads(plan.threads)
    if plan.deterministic is not False:
        torch.use_deterministic_algorithms(True, warn_only=plan.deterministic == "warn")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    gc.freeze()
    gc.enable()
