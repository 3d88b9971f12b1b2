"""Find the newest checkpoint that holds, or the one that was named, and set aside what came after it.

Nothing is believed before it is verified: the meta by its own digest, the `.pt` by its hash, the trainer's own folder
file by file, the metrics files by the digest of what this state had seen. What does not hold is named with its reason
and the search walks back.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trn.checkpoint.epochs import set_aside_epochs
from trn.checkpoint.folder import folder_name
from trn.checkpoint.meta import CheckpointMeta, checkpoint_name, listed_steps, meta_name, reject_reason
from trn.checkpoint.retention import clean_leftovers, link_hint, unlink_hint
from trn.errors import NoGoodCheckpoint, ResumeRefused
from trn.files import make_folder, move
from trn.records import JsonError

__all__ = ["Found", "find_named", "find_newest_good", "load_payload", "set_aside_later"]


@dataclass(frozen=True)
class Found:
    """The newest good checkpoint, None where none was ever committed; and what was rejected on the way, with why."""

    meta: CheckpointMeta | None
    rejected: tuple[tuple[str, str], ...]


def find_newest_good(run_dir: Path, *, lineage: Collection[str], announced: set[int]) -> Found:
    """Walk back from the newest. `announced` are steps that the events say were committed and not since removed.

    Raises NoGoodCheckpoint when checkpoints had been committed and none holds.
    """
    folder = run_dir / "checkpoints"
    steps = listed_steps(folder)
    newest = max(steps, default=0)
    rejected = [
        (checkpoint_name(step), "its meta is gone") for step in sorted(announced, reverse=True) if step > newest
    ]
    for step in steps:
        found = _verified(run_dir, step, lineage)
        if isinstance(found, CheckpointMeta):
            return Found(found, tuple(rejected))
        rejected.append((checkpoint_name(step), found))
    if rejected or announced:
        listed = "; ".join(f"{file}: {reason}" for file, reason in rejected)
        raise NoGoodCheckpoint(
            f"checkpoints were committed and none holds: {listed or 'all are gone'}.",
            where=str(folder),
            hint="Restore one from a backup, or start a new run.",
        )
    return Found(None, ())


def find_named(run_dir: Path, step: int, *, lineage: Collection[str]) -> CheckpointMeta:
    """The checkpoint of `step`, that and no other. Raises ResumeRefused where it does not hold."""
    found = _verified(run_dir, step, lineage)
    if isinstance(found, CheckpointMeta):
        return found
    raise ResumeRefused(
        f"this checkpoint does not hold: {found}.",
        where=str(run_dir / "checkpoints" / checkpoint_name(step)),
        hint="Name another one, or give no name to begin from the newest that holds.",
    )


def _verified(run_dir: Path, step: int, lineage: Collection[str]) -> CheckpointMeta | str:
    """The checkpoint of a step, or why it must not be used."""
    folder = run_dir / "checkpoints"
    try:
        meta = CheckpointMeta.read(folder / meta_name(step))
        return reject_reason(folder, meta, lineage=lineage, reports=run_dir / "reports") or meta
    except (JsonError, OSError) as error:
        return f"{meta_name(step)}: {error}"


def load_payload(run_dir: Path, meta: CheckpointMeta) -> dict[str, Any]:
    """The content of a verified checkpoint; tensors are memory-mapped, private to this process, on the CPU."""
    path = run_dir / "checkpoints" / meta.file
    payload: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return payload


def set_aside_later(run_dir: Path, *, step: int, epochs_over: int, best_step: int | None, job_id: str) -> list[str]:
    """Move checkpoints after `step` to `abandoned-<job_id>/`, clean up, and let the hints name what is left.

    `epochs_over` is how many epochs are over at that step: artifacts of later ones go too.
    """
    folder = run_dir / "checkpoints"
    later = [one for one in listed_steps(folder) if one > step]
    names = [name for one in later for name in (meta_name(one), checkpoint_name(one), folder_name(one))]
    moved = []
    for name in names:
        if (folder / name).exists():
            target = make_folder(folder / f"abandoned-{job_id}")
            move(folder / name, target / name)
            moved.append(name)
    moved += set_aside_epochs(folder, folder / f"abandoned-{job_id}", epochs_over=epochs_over)
    clean_leftovers(folder)
    for hint, at in (("last", step), ("best", best_step)):
        if at and (folder / meta_name(at)).exists() and (folder / checkpoint_name(at)).exists():
            link_hint(folder, hint, at)
        else:
            unlink_hint(folder, hint)
    return moved
