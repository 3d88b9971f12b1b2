"""trn: the runtime for PyTorch trainings that can be trusted.

Public names are loaded when they are first used, so that `import trn` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trn.session import Run, open_run
    from trn.trainer import Context, Control, Export, Step, StepResult, TorchTrainer, Trainer

__version__ = "0.1.0"

__all__ = [
    "Context",
    "Control",
    "Export",
    "Run",
    "Step",
    "StepResult",
    "TorchTrainer",
    "Trainer",
    "errors",
    "open_run",
    "testing",
]

_HOMES = dict.fromkeys(("Context", "Control", "Export", "Step", "StepResult", "TorchTrainer", "Trainer"), "trn.trainer")
_HOMES |= dict.fromkeys(("Run", "open_run"), "trn.session")


def __getattr__(name: str) -> Any:
    if name in ("errors", "testing"):
        return importlib.import_module(f"trn.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'trn' has no attribute {name!r}")
