"""Sums over ranks: whatever the shares, the means are those of all rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from trn.errors import TrainerError
from trn.ranks.group import Alone, Group
from trn.trainer.together import Sums, add_up, add_up_with_gradients


class Two(Group):
    """Rank 0 of two, of which the other has said `told` and has gradients `others`."""

    world_size = 2

    def __init__(self, told: Any, others: Sequence[torch.Tensor] = ()) -> None:
        self.told, self.others = told, others

    def exchange(self, values: Sequence[float]) -> list[list[float]]:
        raise AssertionError

    def gather(self, value: Any) -> list[Any]:
        return [value, self.told]

    def sum_(self, tensors: Sequence[torch.Tensor], *, have_met: bool = False) -> None:
        for tensor, other in zip(tensors, self.others, strict=True):
            tensor += other

    def copy_from_first(self, tensors: Sequence[torch.Tensor]) -> None:
        raise AssertionError


def test_means_are_weighted_by_counts() -> None:
    own = Sums()
    own.add(3, {"loss": 2.0})
    own.add(0, {"loss": float("nan")})
    own.add(1, {"loss": 4.0})
    assert own.means() == {"loss": 2.5}
    assert add_up(Alone(), own) is own
    assert add_up(Two([4, {"loss": 6.0}]), own).means() == {"loss": 2.0}
    assert add_up(Two([0, {}]), own).means() == {"loss": 2.5}


def test_of_nothing_there_is_no_mean() -> None:
    assert add_up(Two([0, {}]), Sums()).means() == {}


def test_a_parameter_that_only_another_rank_used_gets_its_gradient_and_one_that_nobody_used_gets_none() -> None:
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(4)]
    parameters[0].grad = torch.full((2,), 6.0)
    parameters[3].grad = torch.full((2,), 2.0)
    others = [torch.full((2,), 2.0), torch.full((2,), 4.0), torch.zeros(2)]
    own = Sums(2, {"loss": 1.0})
    total = add_up_with_gradients(Two([2, {"loss": 3.0}, [[0, 2]]], others), own, parameters)
    assert (total.count, total.means()) == (4, {"loss": 1.0})
    found = [None if one.grad is None else one.grad.tolist() for one in parameters]
    assert found == [[2.0, 2.0], [1.0, 1.0], None, [0.5, 0.5]]


def test_where_no_rank_has_anything_to_learn_from_it_says_so() -> None:
    with pytest.raises(TrainerError, match="nothing to learn from"):
        add_up_with_gradients(Two([0, {}, []]), Sums(), [nn.Parameter(torch.zeros(1))])


def test_a_sparse_gradient_is_refused() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TrainerError, match="sparse"):
        add_up_with_gradients(Two([1, {}, []]), Sums(1, {}), [table.weight])
