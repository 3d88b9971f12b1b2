"""Are the weights those of the checkpoint? By content: names may differ, since a trainer may wrap its model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trn.export.program import original
from trn.export.trials import bytes_of
from trn.files import new_sha256
from trn.trainer import TorchState

__all__ = ["foreign_parameters", "not_in_checkpoint"]


def not_in_checkpoint(model: nn.Module, payload: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of parameters and saved buffers whose bits no tensor of the trainer's state in a checkpoint has.

    A trainer may keep weights that it does not save, or save them in another type: then they stand here.
    """
    every = {**dict(model.named_parameters()), **model.state_dict()}
    own = {name: one for name, one in every.items() if isinstance(one, Tensor) and one.layout is torch.strided}
    wanted = {(tensor.dtype, tuple(tensor.shape)) for tensor in own.values()}
    there = {_digest(one) for one in _tensors(payload["trainer"]) if (one.dtype, tuple(one.shape)) in wanted}
    return tuple(name for name, one in own.items() if _digest(one) not in there)


def foreign_parameters(model: nn.Module, state: Any, strange: Collection[str], *, is_average: bool) -> list[str]:
    """Which of the `strange` ones are no weights of the checkpoint for certain: what a TorchTrainer trains it saves.

    The average of a narrow type is saved in float32: its bits are not found.
    """
    if not isinstance(state, TorchState):
        return []
    trained = {parameter.data_ptr() for parameter in state.parameters}
    return [
        name
        for name, parameter in original(model).named_parameters()
        if name in strange
        and parameter.data_ptr() in trained
        and not (is_average and parameter.dtype in (torch.float16, torch.bfloat16))
    ]


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        if tree.layout is torch.strided:
            yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _tensors(value)


def _digest(tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
    return str(tensor.dtype), tuple(tensor.shape), new_sha256(bytes_of(tensor)).hexdigest()
