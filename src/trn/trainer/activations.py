"""Activation checkpointing: chosen modules make their activations again in the backward pass instead of keeping them.

Losses, gradients and buffers are the same to the bit: the second time begins with the random streams and the buffers of
the first, and what it does to them (the means of a batch norm) is undone. The module keeps copies of its buffers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from types import MethodType
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trn.errors import PlanRefused
from trn.spec.words import found, nearest

__all__ = ["checkpoint_activations"]

_SHOWN = 3
_Buffers = list[tuple[dict[str, Tensor | None], str, Tensor]]
"""Where each buffer is found, and which it is."""


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

    streams, buffers = (random.getstate(), np.random.get_state()), _copied(_buffers(module))
    count, names = len(args), tuple(kwargs)

    def forward(*given: Any) -> Any:
        return type(module).forward(module, *given[:count], **dict(zip(names, given[count:], strict=True)))

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _SecondTime(module, buffers, streams)

    # all by position: torch has keywords of its own, and looks among the others for the devices whose streams it keeps
    return checkpoint(
        forward, *args, *kwargs.values(), use_reentrant=False, preserve_rng_state=True, context_fn=contexts
    )


class _SecondTime(AbstractContextManager[None]):
    """What torch does not see to: buffers, and the streams of python and numpy. Entered at each time but the first.

    The module has copies of its buffers meanwhile. Its own are not written on, not even with what they hold: torch
    would refuse to go back through whatever else has used them.
    """

    def __init__(self, module: nn.Module, buffers: _Buffers, streams: tuple[Any, Any]) -> None:
        self._module, self._buffers, self._streams = module, buffers, streams

    def __enter__(self) -> None:
        self._held, self._now = _buffers(self._module), (random.getstate(), np.random.get_state())
        _set_streams(self._streams)
        _set_buffers(_copied(self._buffers))

    def __exit__(self, *_: object) -> None:
        _set_buffers(self._held)
        _set_streams(self._now)


def _buffers(module: nn.Module) -> _Buffers:
    return [
        (one._buffers, name, buffer)
        for one in module.modules()
        for name, buffer in one._buffers.items()
        if buffer is not None
    ]


def _copied(buffers: _Buffers) -> _Buffers:
    """Copies in the same places; what is shared stays so."""
    copies = {id(buffer): buffer.detach().clone() for _, _, buffer in buffers}
    return [(place, name, copies[id(buffer)]) for place, name, buffer in buffers]


def _set_buffers(buffers: _Buffers) -> None:
    for place, name, buffer in buffers:
        place[name] = buffer


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
