"""A moving average of a model: a second set of its tensors, and the way to put them in its place for a while.

    after an update:  average = decay * average + (1 - decay) * weights

Averaged are all parameters and saved buffers of floating numbers; others, such as a counter, are those of the newest
step. The average is in float32 where the model's type is a smaller one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trn.errors import ResumeRefused

__all__ = ["Average", "hold_buffers", "make_buffers_writable", "put_back_buffers"]

HeldBuffers = list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]]


class Average:
    """The average of a model as it is now, on its device; `update` after each step that was accepted.

    The model's parameters stay the same objects while there is an average; its buffers may be replaced.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._is_in = False
        self._parameters = dict(model.named_parameters())
        self._buffers = _saved_buffers(model)
        self._tensors = {name: _wide(tensor.detach()) for name, tensor in self._live().items()}
        # the parameters are the same objects at every step: what is done to them is decided once
        parts = [(self._tensors[name], value) for name, value in self._parameters.items()]
        self._averaged = [pair for pair in parts if _is_averaged(pair[1])]
        self._copied = [pair for pair in parts if not _is_averaged(pair[1])]
        self._averages = [average for average, _ in self._averaged]
        self._values: list[Tensor] = [value for _, value in self._averaged]
        self._is_narrow = any(average.dtype != value.dtype for average, value in self._averaged)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's weights."""
        values = self._values
        if self._is_narrow:
            values = [value.to(average.dtype) for average, value in self._averaged]
        torch._foreach_lerp_(self._averages, values, 1.0 - self._decay)
        for average, value in self._copied:
            average.copy_(value)
        if self._buffers:
            self._update_buffers()

    def _update_buffers(self) -> None:
        averages, values, counters, counts = [], [], [], []
        for name, (place, key) in self._buffers.items():
            value, average = place[key], self._tensors[name]
            if value is None:
                continue
            if average.shape != value.shape:
                self._tensors[name] = _wide(value)
            elif _is_averaged(average):
                averages.append(average)
                values.append(value if value.dtype is average.dtype else value.to(average.dtype))
            else:
                counters.append(average)
                counts.append(value)
        if counters:
            torch._foreach_copy_(counters, counts)
        if averages:
            torch._foreach_lerp_(averages, values, 1.0 - self._decay)
            _take_over_infinities(averages, values)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Inside, the model's tensors hold the average; it must not be trained or saved there. May be nested."""
        if self._is_in:
            yield
            return
        held = [(tensor, tensor.data, self._tensors[name]) for name, tensor in self._live().items()]
        places = [(place, name, place[name]) for place, name in self._buffers.values()]
        self._is_in = True
        try:
            for tensor, own, average in held:
                tensor.data = average if average.dtype == own.dtype else average.to(own.dtype)
            yield
        finally:
            for tensor, own, _ in held:
                tensor.data = own
            for place, name, buffer in places:
                place[name] = buffer
            self._is_in = False

    def state_dict(self) -> dict[str, Tensor]:
        """By the names of the model's own tensors."""
        assert not self._is_in, "a model is not saved while it holds its average"
        return dict(self._tensors)

    def load_state_dict(self, payload: Any) -> None:
        """The same, given back. Raises ResumeRefused unless it has the model's names and shapes, all of them."""
        if not isinstance(payload, Mapping):
            raise ResumeRefused(f"expected tensors by name, found {type(payload).__name__}.", where="ema")
        missing, unexpected = self._tensors.keys() - payload.keys(), payload.keys() - self._tensors.keys()
        if missing or unexpected:
            what = f"lacks {min(missing)!r}" if missing else f"has {min(unexpected)!r}, which the model has not"
            raise ResumeRefused(f"the saved average {what}.", where="ema")
        for name, average in self._tensors.items():
            saved = payload[name]
            if saved.dtype != average.dtype or (saved.shape != average.shape and name in self._parameters):
                expected = f"{average.dtype} {list(average.shape)}"
                raise ResumeRefused(
                    f"expected {expected}, found {saved.dtype} {list(saved.shape)}.", where=f"ema.{name}"
                )
        with torch.no_grad():
            for name, average in self._tensors.items():
                saved = payload[name].to(average.device)
                # a clone: the saved tensor may be tied to a mapped file
                self._tensors[name] = average.copy_(saved) if saved.shape == average.shape else saved.clone()

    def _live(self) -> dict[str, Tensor]:
        """The model's tensors by name, buffers as they are now."""
        buffers = {name: place[key] for name, (place, key) in self._buffers.items()}
        return {**self._parameters, **{name: one for name, one in buffers.items() if one is not None}}


def make_buffers_writable(model: nn.Module) -> None:
    """Give a buffer that was made by `expand` memory for each of its numbers: else nothing can be put back into it.

    That is what a refused step, a checkpoint and the other ranks' rank 0 do.
    """
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and _is_spread(buffer):
                module._buffers[name] = buffer.contiguous()


def hold_buffers(model: nn.Module) -> HeldBuffers:
    """The buffers of a model and copies of them: a forward pass moves the means of a batch norm."""
    return [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]


def put_back_buffers(held: HeldBuffers) -> None:
    """Give the model the buffers that it had, also where the forward pass has put others in their place."""
    with torch.no_grad():
        for place, name, buffer, before in held:
            place[name] = buffer.copy_(before)


def _saved_buffers(model: nn.Module) -> dict[str, tuple[dict[str, Tensor | None], str]]:
    """Where each buffer is found that is part of the model's state, shared ones once."""
    found: dict[str, tuple[dict[str, Tensor | None], str]] = {}
    seen: set[Tensor] = set()
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set and buffer not in seen:
                seen.add(buffer)
                found[f"{prefix}.{name}" if prefix else name] = (module._buffers, name)
    return found


def _is_spread(tensor: Tensor) -> bool:
    """Whether several of its numbers are one in memory."""
    if tensor.layout is not torch.strided:
        return False
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _is_averaged(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _wide(tensor: Tensor) -> Tensor:
    """A copy, in float32 at the least where it is averaged."""
    dtype = torch.promote_types(tensor.dtype, torch.float32) if _is_averaged(tensor) else tensor.dtype
    return tensor.to(dtype, copy=True)


def _take_over_infinities(averages: list[Tensor], values: list[Tensor]) -> None:
    """Where an average of buffers is no finite number, the newest value: a mask of -inf has no average."""
    # the sum of one long tensor: a norm of each costs six times as much where there are a hundred small ones
    flat = [average if average.dim() == 1 else average.reshape(-1) for average in averages]
    if not torch.isfinite(torch.cat(flat).sum()).item():
        for average, value in zip(averages, values, strict=True):
            average.copy_(torch.where(torch.isfinite(average), average, value))
