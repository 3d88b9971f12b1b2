"""A step of several ranks: each has its rows' part of the sums, and all of them the mean over the whole batch.

What is summed: gradients of sums (a loss times its count), losses and metrics times their counts, counts. Divided by
the total count they are the mean over all rows, however these are shared out. Gradients go through one flat tensor of
each type, laid out the same at every step: a resumed run sums in the order of the run that was never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from trn.errors import TrainerError
from trn.ranks.group import Group

__all__ = ["Sums", "add_up", "add_up_with_gradients", "share_buffers"]


@dataclass
class Sums:
    """Values times their counts, and the count."""

    count: int = 0
    values: dict[str, float] = field(default_factory=dict)

    def add(self, count: int, values: Mapping[str, float]) -> None:
        """Take in means over `count` things; of none, nothing."""
        if count:
            self.count += count
            for name, value in values.items():
                self.values[name] = self.values.get(name, 0.0) + float(value) * count

    def add_sums(self, count: int, values: Mapping[str, float]) -> None:
        """Take in another rank's."""
        self.count += count
        for name, value in values.items():
            self.values[name] = self.values.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Empty where nothing was counted."""
        return {name: value / self.count for name, value in self.values.items()} if self.count else {}


def add_up(ranks: Group, own: Sums) -> Sums:
    """The sums of all ranks, added in their order: the same on each of them to the bit."""
    if ranks.world_size == 1:
        return own
    total = Sums()
    for count, values in ranks.gather([own.count, own.values]):
        total.add_sums(count, values)
    return total


def add_up_with_gradients(ranks: Group, own: Sums, parameters: Sequence[nn.Parameter], scale: float = 1.0) -> Sums:
    """The sums of all ranks; and each rank's gradients of sums become those of the mean over all of their things.

    `scale` is what those sums were multiplied with.
    A parameter that any rank used has a gradient on all of them then; one that nobody used has none. Raises
    TrainerError for gradients that are not dense, and where there is nothing to learn from.
    """
    used = [index for index, parameter in enumerate(parameters) if parameter.grad is not None]
    if any(parameters[index].grad.is_sparse for index in used):  # type: ignore[union-attr]  # those have one
        raise TrainerError("a gradient is sparse; several ranks sum dense ones only.", hint="Use sparse=False.")
    everywhere: set[int] = set()
    total = Sums()
    for count, values, ranges in ranks.gather([own.count, own.values, _ranges(used)]):
        total.add_sums(count, values)
        everywhere.update(index for first, end in ranges for index in range(first, end))
    if total.count == 0:
        raise TrainerError("every row of the batch has weight 0: there is nothing to learn from.")
    gradients = []
    for index in sorted(everywhere):
        parameter = parameters[index]
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    ranks.sum_(gradients, have_met=True)
    torch._foreach_div_(gradients, total.count * scale)
    return total


def share_buffers(ranks: Group, model: nn.Module) -> None:
    """Give every rank the buffers of rank 0: the running means of a batch norm have seen other rows elsewhere."""
    buffers = list(model.buffers()) if ranks.world_size > 1 else []
    if buffers:
        ranks.copy_from_first(buffers)


def _ranges(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive numbers as (first, one after the last): all parameters are one pair, however many."""
    ranges: list[tuple[int, int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index:
            ranges[-1] = (ranges[-1][0], index + 1)
        else:
            ranges.append((index, index + 1))
    return ranges
