"""The inputs that an export is traced and compared with: real rows, in several sizes of each axis that may change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from trn.errors import TrainerError, TrnError
from trn.export.program import first_line
from trn.files import new_sha256
from trn.records import Json
from trn.trainer import Context, Trainer
from trn.trainer.exporting import Export
from trn.trainer.torch_trainer import TorchTrainer, has_own_transform

__all__ = ["Trial", "bytes_of", "example_of", "exports_of", "trials_of"]

_LARGER_BY = 3


@dataclass(frozen=True)
class Trial:
    """One set of inputs. A size that was made by us, not by the trainer, may be one that the model refuses."""

    what: str
    inputs: dict[str, Tensor]
    is_given: bool

    def to_json(self) -> Json:
        return {
            "what": self.what,
            "tensors": {
                name: {
                    "shape": list(tensor.shape),
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                    "sha256": _sha256(tensor),
                }
                for name, tensor in self.inputs.items()
            },
        }


def exports_of(trainer: Trainer, state: Any, ctx: Context, rows: pa.RecordBatch) -> list[Export]:
    """What the hook gives for all rows, and for 1 and 3 of them; the first is the example.

    All rows come first: torch takes an axis of size 1 for one that never changes. Raises TrainerError.
    """
    sizes = dict.fromkeys([rows.num_rows, *(size for size in (1, 3) if size < rows.num_rows)])
    return [_export_of(trainer, state, ctx, rows.slice(0, size)) for size in sizes]


def _export_of(trainer: Any, state: Any, ctx: Context, rows: pa.RecordBatch) -> Export:
    export: Callable[..., Export] = trainer.export
    taken = (ctx._step, ctx._epoch, ctx._row_ids, ctx._row_passes, ctx._lr_factor)
    passes = np.zeros(rows.num_rows, np.int32)
    ctx._enter_step(ctx._step or 0, ctx._epoch, np.arange(rows.num_rows), passes, ctx._lr_factor)
    try:
        is_ours = isinstance(trainer, TorchTrainer) or not has_own_transform(trainer)
        batch = trainer.prepare_batch(rows if is_ours else trainer.transform(rows, ctx), state, ctx)
        found = export(batch, state, ctx)
    except TrnError:
        raise
    except Exception as error:  # a trainer's own code may raise anything
        raise TrainerError(f"{type(error).__name__}: {first_line(error)}.", where="export") from error
    finally:
        ctx._step, ctx._epoch, ctx._row_ids, ctx._row_passes, ctx._lr_factor = taken
    if not isinstance(found, Export):
        raise TrainerError(f"expected a trn.Export, found {type(found).__name__}.", where="export")
    return found


def trials_of(exports: Sequence[Export]) -> list[Trial]:
    """What is compared: the inputs of each export that fit the first, then other sizes of each axis that may change.

    Of axes of which the exports show no other size: 1, a half. Of every one: more than the example has, by repeating.
    """
    first = exports[0]
    trials = [
        Trial(f"rows: {_shapes(one.inputs)}", _on_cpu(one.inputs), True)
        for one in exports
        if one is first or _fits(one, first)
    ]
    for word, size in _axes(first).items():
        shown = {_axes(one)[word] for one in exports if _fits(one, first)}
        wanted = [size + _LARGER_BY] if len(shown) > 1 else [1, (size + 1) // 2, size + _LARGER_BY]
        for other in dict.fromkeys(one for one in wanted if one not in shown):
            resized = {name: _resized(name, tensor, first, word, other) for name, tensor in trials[0].inputs.items()}
            trials.append(Trial(f"{word} = {other}: {_shapes(resized)}", resized, False))
    return trials


def example_of(first: Export) -> dict[str, Tensor]:
    """The inputs to trace with: each axis that may change has 2 entries or more."""
    inputs = _on_cpu(first.inputs)
    for word, size in _axes(first).items():
        if size < 2:
            inputs = {name: _resized(name, tensor, first, word, 2) for name, tensor in inputs.items()}
    return inputs


def _axes(export: Export) -> dict[str, int]:
    """The axes that may change, by name, with their sizes in this export."""
    return {
        word: export.inputs[name].shape[axis] for name, axes in export.dynamic.items() for axis, word in axes.items()
    }


def _fits(other: Export, first: Export) -> bool:
    """Whether the inputs differ from the first's only where they may. Raises TrainerError for other names."""
    if (list(other.inputs), other.outputs, other.dynamic) != (list(first.inputs), first.outputs, first.dynamic):
        raise TrainerError("the hook names other inputs, outputs or axes for another number of rows.", where="export")
    return all(
        tensor.dim() == first.inputs[name].dim()
        and all(
            size == first.inputs[name].shape[axis] or axis in first.dynamic.get(name, {})
            for axis, size in enumerate(tensor.shape)
        )
        for name, tensor in other.inputs.items()
    )


def _resized(name: str, tensor: Tensor, export: Export, word: str, size: int) -> Tensor:
    for axis, other in export.dynamic.get(name, {}).items():
        if other == word:
            times = -(-size // tensor.shape[axis]) if tensor.shape[axis] else 0
            tensor = torch.cat([tensor] * times, axis) if times > 1 else tensor
            tensor = tensor.narrow(axis, 0, min(size, tensor.shape[axis])).contiguous()
    return tensor


def _on_cpu(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in inputs.items()}


def _shapes(inputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())


def _sha256(tensor: Tensor) -> str:
    return new_sha256(bytes_of(tensor)).hexdigest()


def bytes_of(tensor: Tensor) -> bytes:
    """The numbers of a tensor in their order, as bytes."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
