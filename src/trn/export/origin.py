"""Are the weights those of the checkpoint? By content: names may differ, since a trainer may wrap its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trn.checkpoint.discover import load_payload
from trn.checkpoint.meta import CheckpointMeta
from trn.export.trials import bytes_of
from trn.files import new_sha256

__all__ = ["not_in_checkpoint"]


def not_in_checkpoint(model: nn.Module, run_dir: Path, meta: CheckpointMeta) -> tuple[str, ...]:
    """Names of parameters and saved buffers whose bits no tensor of the checkpoint has.

    A trainer may keep weights that it does not save, or save them in another type: then they stand here.
    """
    own = {**dict(model.named_parameters()), **model.state_dict()}
    wanted = {(tensor.dtype, tuple(tensor.shape)) for tensor in own.values() if isinstance(tensor, Tensor)}
    payload = load_payload(run_dir, meta)
    there = {_digest(one) for one in _tensors(payload["trainer"]) if (one.dtype, tuple(one.shape)) in wanted}
    return tuple(name for name, one in own.items() if isinstance(one, Tensor) and _digest(one) not in there)


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _tensors(value)


def _digest(tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
    return str(tensor.dtype), tuple(tensor.shape), new_sha256(bytes_of(tensor)).hexdigest()
