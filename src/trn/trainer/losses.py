"""What `loss` returns, and how it is called: under autocast where the plan says so, and checked.

Here: `Step`, and what is wrong with one. Not here: what is made of it (gradients), what is done where it is not finite
(the step of TorchTrainer).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trn.errors import TrainerError
from trn.trainer.contract import Context

__all__ = ["AUTOCAST", "Batch", "Loss", "Step", "call_loss", "plain_number"]

Batch = Mapping[str, Tensor]

AUTOCAST: dict[str, torch.dtype | None] = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The type of the fast operations of a `precision`; weights, gradients and the optimizer's state stay as they are."""


@dataclass(frozen=True)
class Step:
    """What `loss` returns: a mean, and over how many things it is the mean.

    `loss` is a 0-d tensor with a gradient; `metrics` are means over the same `count` things, numbers or 0-d tensors,
    whose gradient is not used. Means of micro-batches and ranks are combined by `count`, a whole number from 0 on.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    count: int = 1


_OURS = frozenset({"loss", "train_loss", "grad_norm", "lr", "loss_scale"})
Loss = Callable[[nn.Module, Batch], Step]


def call_loss(loss: Loss, model: nn.Module, batch: Batch, ctx: Context) -> Step:
    """The step of a micro-batch, its count a plain number. Raises TrainerError for what is no Step."""
    dtype = AUTOCAST[ctx.plan.precision]
    if dtype is None:
        return _checked(loss(model, batch))
    with torch.autocast(ctx.device.type, dtype):
        step = loss(model, batch)
    return _checked(step)


def plain_number(name: str, value: Any) -> Any:
    """A metric without its tensor; what is no number at all is left to whoever writes it down.

    Raises TrainerError for a tensor of several numbers.
    """
    try:
        return value.item() if hasattr(value, "item") else value
    except (RuntimeError, ValueError):
        raise TrainerError("expected one number, found a tensor of several.", where=f"metric {name!r}") from None


def _checked(step: Step) -> Step:
    if not isinstance(step, Step):
        raise TrainerError(f"loss() returned {type(step).__name__}; expected a Step.")
    if not isinstance(step.loss, Tensor) or step.loss.dim():
        found = f"shape {list(step.loss.shape)}" if isinstance(step.loss, Tensor) else type(step.loss).__name__
        raise TrainerError(f"the loss of a Step is a 0-d tensor, the mean; found {found}.", hint="Return its .mean().")
    if not isinstance(step.metrics, Mapping):
        raise TrainerError(f"the metrics of a Step are numbers by name; found {type(step.metrics).__name__}.")
    if not _OURS.isdisjoint(step.metrics):
        name = min(_OURS.intersection(step.metrics))
        raise TrainerError("every step gives it already; give yours another name.", where=f"metric {name!r}")
    count = step.count
    return step if type(count) is int and count >= 0 else Step(step.loss, step.metrics, _whole(count))


def _whole(count: Any) -> int:
    try:
        number = count.item() if hasattr(count, "item") else count
        is_whole = 0 <= number < math.inf and number == int(number)
    except (RuntimeError, TypeError, ValueError):
        is_whole = False
    if not is_whole:
        raise TrainerError(f"the count of a Step is a whole number from 0 on; found {count!r:.60}.")
    return int(number)
