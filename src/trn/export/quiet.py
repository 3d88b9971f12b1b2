"""Around an export: the model as it is evaluated, no gradients, no noise; and everything put back afterwards."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import nn

__all__ = ["at_rest", "quiet"]

_LOUD = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Inside, `model` is in the mode of evaluation and nothing has a gradient; then every module is in its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, nothing is printed: the exporter warns of each library that is not installed, and draws its graphs.

    What goes wrong is raised, and told in one line.
    """
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
