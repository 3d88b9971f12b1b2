"""Weights alone: model.safetensors, and the folder that Hugging Face's `from_pretrained` reads.

Both are read back before they are published, and must give the same bits.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trn.errors import StorageError, TrainerError
from trn.export.onnx_file import require_libraries
from trn.export.program import first_line, original
from trn.export.trials import bytes_of
from trn.records import Json, canonical_json
from trn.trainer import TorchState

__all__ = ["model_of", "write_hf", "write_safetensors"]


def model_of(state: Any) -> nn.Module:
    """The model in a trainer's state: its `model`, or the only module there is. Raises TrainerError."""
    if isinstance(state, TorchState):
        return original(state.model)
    if isinstance(state, nn.Module):
        return original(state)
    parts = state if isinstance(state, Mapping) else getattr(state, "__dict__", {})
    named = {str(name): one for name, one in parts.items() if isinstance(one, nn.Module)}
    if "model" in named:
        return original(named["model"])
    if len(named) != 1:
        raise TrainerError(
            f"the state has {len(named)} modules: {', '.join(named) or 'none'}.",
            where="export",
            hint="Call the one that is to be exported `model`.",
        )
    return original(next(iter(named.values())))


def write_safetensors(model: nn.Module, folder: Path, notes: Mapping[str, str]) -> Json:
    """Write folder/model.safetensors: the state dict by name, tied tensors once. Returns what the sidecar says of it.

    The names of tied tensors stand in the file's own metadata too, as JSON: name -> the name it is kept under.
    """
    require_libraries("safetensors")
    from safetensors.torch import load_file, save_file

    tensors, tied = _once(model)
    path = folder / "model.safetensors"
    metadata = {"format": "pt", **notes}
    if tied:
        metadata["tied"] = canonical_json(tied).decode()
    with _told_plainly(folder):
        save_file(tensors, path, metadata=metadata)
        _require_same(tensors, load_file(path), path.name)
    return {"safetensors": {"tensors": len(tensors), "tied": tied}}


@contextlib.contextmanager
def _told_plainly(folder: Path) -> Iterator[None]:
    """What safetensors raises is told as ours: it has one class for a full disk and for all else."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        if "os error" in str(error):
            raise StorageError(f"cannot write the export: {first_line(error)}.", where=str(folder)) from error
        raise TrainerError(f"safetensors: {first_line(error)}.", where="export") from error


def _once(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            what = f"a tensor of layout {value.layout}" if isinstance(value, Tensor) else type(value).__name__
            raise TrainerError(
                f"{name!r} in the model's state is {what}; safetensors holds dense tensors only.", where="export"
            )
        place = (value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape), tuple(value.stride()))
        if value.numel() and (first := seen.setdefault(place, name)) != name:
            tied[name] = first
            continue
        # a copy: what shares memory with others in another way is no tensor of its own to safetensors
        tensors[name] = value.detach().cpu().contiguous().clone()
    return tensors, tied


def _require_same(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    names = set(expected) ^ set(found)
    other = next((name for name in expected if name in found and not _is_same(expected[name], found[name])), None)
    if names or other is not None:
        raise TrainerError(f"read back, {other or min(names)!r} is not what was written.", where=f"export: {where}")


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bytes_of(one) == bytes_of(other)


def write_hf(model: nn.Module, folder: Path) -> Json:
    """Write folder/hf/ as `from_pretrained` reads it, and read it back. Raises TrainerError for any other model."""
    require_libraries("transformers", "safetensors")
    from transformers import PreTrainedModel

    own = model if isinstance(model, PreTrainedModel) else None
    inner = [one for one in model.children() if isinstance(one, PreTrainedModel)]
    if own is None and len(inner) == 1:
        own = inner[0]
    if own is None:
        raise TrainerError(
            f"{type(model).__name__} is no PreTrainedModel of the transformers library, and holds not exactly one.",
            where="export --format hf",
            hint="Use --format safetensors.",
        )
    target = folder / "hf"
    config = copy.deepcopy(own.config)
    with _told_plainly(folder), _without_progress():
        try:
            own.save_pretrained(target)
        finally:
            own.config = config  # saving writes into it
        # on the CPU and in the types of the file; never a hub
        again = type(own).from_pretrained(target, local_files_only=True, dtype="auto")
    expected = {name: tensor.detach().cpu() for name, tensor in own.state_dict().items()}
    _require_same(expected, again.state_dict(), "hf")
    return {"hf": {"class": type(own).__name__, "tensors": len(expected)}}


@contextlib.contextmanager
def _without_progress() -> Iterator[None]:
    from transformers.utils import logging as untyped

    logging: Any = untyped
    was_shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        logging.set_verbosity(level)
        if was_shown:
            logging.enable_progress_bar()
