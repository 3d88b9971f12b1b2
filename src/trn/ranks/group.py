"""What the ranks of a run do together, in lockstep; and the world of one, which needs nobody for it. No torch here.

`trn.ranks.processes` has the same for a world of several.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Alone", "Group"]


class Group(ABC):
    """What one rank knows and asks of the others. A collective is called by all ranks, in the same order."""

    rank = 0
    world_size = 1

    @abstractmethod
    def exchange(self, values: Sequence[float]) -> list[list[float]]:
        """The float64 values of every rank, in the order of the ranks."""

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """A JSON value of every rank, in the order of the ranks."""

    @abstractmethod
    def sum_(self, tensors: Sequence[torch.Tensor], *, have_met: bool = False) -> None:
        """Replace each tensor by its sum over the ranks; dense ones of the same shapes on all of them.

        The sums are the same to the bit on every rank, and whenever they are taken of the same values. `have_met`: a
        gather came just before, so nobody can be out of step.
        """

    @abstractmethod
    def copy_from_first(self, tensors: Sequence[torch.Tensor]) -> None:
        """Give each tensor the values it has on rank 0."""


class Alone(Group):
    """A world of one."""

    def exchange(self, values: Sequence[float]) -> list[list[float]]:
        return [[float(value) for value in values]]

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def sum_(self, tensors: Sequence[torch.Tensor], *, have_met: bool = False) -> None:
        """Nothing to add."""

    def copy_from_first(self, tensors: Sequence[torch.Tensor]) -> None:
        """It is the first."""
