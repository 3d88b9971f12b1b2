"""Around an export: the model as it is evaluated, no gradients, no noise; and everything put back afterwards."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from trn.trainer.averaging import hold_buffers

__all__ = ["at_rest", "quiet", "same_buffers"]

_LOUD = ("torch.onnx", "torch.export", "torch._export", "torch.fx", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Inside, `model` is in the mode of evaluation and nothing has a gradient; then modes and buffers are as before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), same_buffers(model):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def same_buffers(model: nn.Module) -> Iterator[None]:
    """A model may write into its buffers whenever it is called, such as a counter: afterwards they are as before."""
    held = hold_buffers(model)
    try:
        yield
    finally:
        for place, name, buffer, before in held:
            place[name] = buffer
            if not torch.equal(buffer, before):
                buffer.copy_(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, this thread prints nothing: the exporter warns of each library that is not installed, and draws graphs.

    What goes wrong is raised, and told in one line. What other threads print is seen; their warnings are not, since
    Python's filters are everybody's.
    """
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out, err = _ButThisThread(sys.stdout), _ButThisThread(sys.stderr)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _ButThisThread(io.TextIOBase):
    """A stream as all threads have it, but the one that made this: what that one writes is gone."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._deaf_to = stream, threading.get_ident()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if threading.get_ident() != self._deaf_to and self._stream is not None:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if threading.get_ident() != self._deaf_to and self._stream is not None:
            self._stream.flush()
