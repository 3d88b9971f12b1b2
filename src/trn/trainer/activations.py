"""Activation checkpointing: chosen modules make their activations again in the backward pass instead of keeping them.

Losses, gradients and buffers are the same to the bit: random streams are put back for the second time, and what it does
to buffers (the means of a batch norm) is undone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from types import MethodType
from typing import Any

import numpy as np
from torch import nn
from torch.utils.checkpoint import checkpoint

from trn.errors import PlanRefused
from trn.spec.words import found, nearest
from trn.trainer.averaging import hold_buffers, put_back_buffers

__all__ = ["checkpoint_activations"]

_SHOWN = 3


def checkpoint_activations(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Let the modules whose names match do so; returns the names. Of nested ones the outermost does.

    A module that has no `forward` of its own, such as a ModuleList, is not meant. Raises PlanRefused for a pattern that
    matches none.
    """
    able = {name: module for name, module in model.named_modules() if name and _has_forward(module)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in able):
            raise _matches_nothing(pattern, list(able))
    chosen: list[str] = []
    for name, module in able.items():  # a module comes before those in it
        is_inside = any(name.startswith(f"{outer}.") for outer in chosen)
        if not is_inside and any(fnmatchcase(name, pattern) for pattern in patterns):
            if "forward" in vars(module):
                raise PlanRefused(
                    f"the forward of module {name!r} was replaced by the trainer.", where="activation_checkpointing"
                )
            # bound, so that a copy of the module has its own
            module.forward = MethodType(_forward, module)
            chosen.append(name)
    return chosen


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward of the module's class; in training it is made again in the backward pass."""
    if not module.training:
        return type(module).forward(module, *args, **kwargs)

    streams = random.getstate(), np.random.get_state()

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _second_time(module, streams)

    return checkpoint(
        type(module).forward, module, *args, use_reentrant=False, preserve_rng_state=True, context_fn=contexts, **kwargs
    )


@contextmanager
def _second_time(module: nn.Module, streams: tuple[Any, Any]) -> Iterator[None]:
    """What torch does not see to: buffers, and the streams of python and numpy."""
    held, now = hold_buffers(module), (random.getstate(), np.random.get_state())
    _set_streams(streams)
    try:
        yield
    finally:
        put_back_buffers(held)
        _set_streams(now)


def _set_streams(streams: tuple[Any, Any]) -> None:
    random.setstate(streams[0])
    np.random.set_state(streams[1])


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _matches_nothing(pattern: str, known: list[str]) -> PlanRefused:
    near = nearest(pattern, known)
    more = "" if len(known) <= _SHOWN else f" and {len(known) - _SHOWN} more"
    return PlanRefused(
        f"{found(pattern)} matches no module.",
        where="activation_checkpointing",
        hint=f"Near is {near}." if near else f"There are {', '.join(known[:_SHOWN])}{more}.",
    )
