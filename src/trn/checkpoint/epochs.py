"""epoch-NNN.pt and epoch-NNN.metadata.json: what a run was at the end of an epoch.

The `.pt` is a hard link to the checkpoint of that step; the metadata, written last, are the nine fields of seed 002.
They stay for every epoch, the `.pt` of the newest ones.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from trn.files import link_atomic, make_folder, move, remove, write_atomic
from trn.records import Json, canonical_json, pretty_json

__all__ = [
    "listed_epochs",
    "metadata_name",
    "prune_epochs",
    "publish_epoch",
    "set_aside_epochs",
    "state_sha256",
    "weights_name",
]

_METADATA = re.compile(r"epoch-(\d{3,})\.metadata\.json")


def metadata_name(epoch: int) -> str:
    return f"epoch-{epoch:03d}.metadata.json"


def weights_name(epoch: int) -> str:
    return f"epoch-{epoch:03d}.pt"


def listed_epochs(folder: Path) -> list[int]:
    """Epochs that have metadata in `folder`, newest first."""
    names = (_METADATA.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted((int(match.group(1)) for match in names if match), reverse=True)


def publish_epoch(checkpoint: Path, metadata: Json, state: Any) -> None:
    """The artifact of the epoch that ended with `checkpoint`, whose trainer's `state` gives the optimizer's digest.

    The digest is of what lies under `optimizer` in it, null where nothing does. Raises StorageError.
    """
    optimizer = state.get("optimizer") if isinstance(state, dict) else None
    digest = None if optimizer is None else state_sha256(optimizer)
    link_atomic(checkpoint, checkpoint.with_name(weights_name(metadata["epoch"])))
    content = pretty_json({**metadata, "optimizer_state_sha": digest})
    write_atomic(checkpoint.with_name(metadata_name(metadata["epoch"])), content)


def prune_epochs(folder: Path, *, keep: int) -> None:
    """Remove the `.pt` of all but the newest `keep` epochs; 0 keeps all."""
    for epoch in listed_epochs(folder)[keep:] if keep else ():
        if (folder / weights_name(epoch)).exists():
            remove(folder / weights_name(epoch))


def set_aside_epochs(folder: Path, target: Path, *, epochs_over: int) -> list[str]:
    """Move the artifacts of epochs from `epochs_over` on to `target`; returns their names."""
    moved = []
    for epoch in listed_epochs(folder):
        for name in (metadata_name(epoch), weights_name(epoch)) if epoch >= epochs_over else ():
            if (folder / name).exists():
                move(folder / name, make_folder(target) / name)
                moved.append(name)
    return moved


def state_sha256(tree: Any) -> str:
    """Hex sha256 of nested dicts, lists and tuples of tensors and plain values, in a fixed order.

    For each leaf, dict keys sorted by their text: a line of JSON with its path and, of a tensor, its type and shape,
    or the value itself; then the bytes of the tensor, contiguous, in this machine's byte order.
    """
    digest = hashlib.sha256()
    _feed(digest.update, [], tree)
    return digest.hexdigest()


def _feed(update: Any, path: list[str], value: Any) -> None:
    if isinstance(value, dict):
        for key in sorted(value, key=repr):
            _feed(update, [*path, repr(key)], value[key])
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _feed(update, [*path, str(index)], item)
    elif hasattr(value, "untyped_storage"):
        import torch  # here alone: who only lists epochs, as verify does, needs none of it

        kind = str(value.dtype).removeprefix("torch.")
        update(canonical_json({"path": path, "dtype": kind, "shape": list(value.shape)}) + b"\n")
        # as plain bytes: numpy knows neither bfloat16 nor a tensor without dimensions
        update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    else:
        update(canonical_json({"path": path, "value": repr(value)}) + b"\n")
