"""Gradients of the mean loss over a batch, whether it is cut into micro-batches, shared out over ranks, or scaled.

Whatever the parts, the gradient is that of sums, a mean times its count, divided by the count of all: parts of
different size weigh what they hold. The scale of an fp16 loss is multiplied in before the backward pass and divided out
with the count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trn.errors import TrainerError
from trn.trainer.contract import Context
from trn.trainer.losses import Batch, Loss, call_loss, plain_number
from trn.trainer.micro_batches import split_batch
from trn.trainer.together import Sums, add_up_with_gradients

__all__ = ["find_gradients"]


def find_gradients(
    loss: Loss,
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batch: Batch,
    ctx: Context,
    *,
    accumulate: int,
    scale: float | None,
) -> tuple[float, int, dict[str, Any]]:
    """Give the parameters their gradients, in a world of several ranks the same on all of them.

    Returns (mean loss, count, mean metrics), of all ranks. Raises TrainerError where there is nothing to learn from.
    """
    if ctx.world_size == 1 and accumulate == 1:
        step = call_loss(loss, model, batch, ctx)
        _require_some(step.count)
        _require_gradient(step.loss)
        if scale is None:
            step.loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        else:
            (_wide(step.loss) * scale).backward()  # type: ignore[no-untyped-call]
            _divide(parameters, scale)
        return step.loss.item(), step.count, {name: plain_number(name, one) for name, one in step.metrics.items()}
    sums = _backward_of_sums(loss, model, batch, ctx, accumulate, scale or 1.0)
    if ctx.world_size == 1:
        _require_some(sums.count)
        _divide(parameters, sums.count * (scale or 1.0))
    else:
        sums = add_up_with_gradients(ctx.ranks, sums, parameters, scale or 1.0)
    means = sums.means()
    return means.pop("loss"), sums.count, means


def _backward_of_sums(loss: Loss, model: nn.Module, batch: Batch, ctx: Context, accumulate: int, scale: float) -> Sums:
    """Gradients of sums over all micro-batches, times the scale."""
    sums = Sums()
    for micro in split_batch(batch, accumulate):
        step = call_loss(loss, model, micro, ctx)
        if step.count == 0:
            continue  # the mean of nothing is no number, and weighs nothing
        _require_gradient(step.loss)
        (_wide(step.loss) * (step.count * scale)).backward()  # type: ignore[no-untyped-call]
        found = {name: _addable(name, plain_number(name, value)) for name, value in step.metrics.items()}
        sums.add(step.count, {"loss": step.loss.item(), **found})
    return sums


def _require_gradient(loss: Tensor) -> None:
    if not loss.requires_grad:
        raise TrainerError(
            "the loss has no gradient: it was detached, made under torch.no_grad, or is of no parameter.",
            hint="Return the tensor that the model's output led to, without .detach() or .item().",
        )


def _require_some(count: int) -> None:
    if count == 0:
        raise TrainerError("every row of the batch has weight 0: there is nothing to learn from.")


def _addable(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)):
        raise TrainerError(f"expected a finite number, found a {type(value).__name__}.", where=f"metric {name!r}")
    return value


def _wide(loss: Tensor) -> Tensor:
    """In half a precision a sum, and a scaled loss, may be too large for a number."""
    return loss if loss.dtype in (torch.float32, torch.float64) else loss.float()


def _divide(parameters: Sequence[nn.Parameter], divisor: float) -> None:
    if gradients := [one.grad for one in parameters if one.grad is not None]:
        torch._foreach_div_(gradients, float(divisor))
