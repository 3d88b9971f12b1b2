"""trn: the runtime for PyTorch trainings that can be trusted.

Public names are loaded when they are first used, so that `import trn` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trn.trainer import Context, Control, Step, StepResult, TorchTrainer, Trainer

__version__ = "0.1.0"

__all__ = ["Context", "Control", "Step", "StepResult", "TorchTrainer", "Trainer", "errors"]

_HOMES = dict.fromkeys(("Context", "Control", "Step", "StepResult", "TorchTrainer", "Trainer"), "trn.trainer")


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("trn.errors")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'trn' has no attribute {name!r}")
