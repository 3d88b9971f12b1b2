"""Which checkpoints stay, and how the others go without ever endangering the last good one.

A checkpoint goes meta first: once its commit mark has the name `.trash-*`, it is no checkpoint any more, and whatever
of it is left after a crash is removed by the next job; the trainer's own folder goes last. Kept are the newest (at
least two) and the best.
"""

from __future__ import annotations

from pathlib import Path

from trn.checkpoint.epochs import listed_epochs, weights_name
from trn.checkpoint.folder import FILES_NAME, folder_name, is_staged, remove_folder
from trn.checkpoint.meta import checkpoint_name, listed_steps, meta_name
from trn.files import link_atomic, move, remove, sweep

__all__ = ["clean_leftovers", "link_hint", "prune", "unlink_hint"]

_TRASH = ".trash-"
_LEAST_KEPT = 2


def link_hint(folder: Path, hint: str, step: int) -> None:
    """Let `last` or `best` name the checkpoint of `step`; the meta goes first, so that it is never older."""
    link_atomic(folder / meta_name(step), folder / f"{hint}.meta.json")
    link_atomic(folder / checkpoint_name(step), folder / f"{hint}.pt")


def unlink_hint(folder: Path, hint: str) -> None:
    for name in (f"{hint}.meta.json", f"{hint}.pt"):
        remove(folder / name)


def prune(folder: Path, *, keep: int, best_step: int | None) -> list[int]:
    """Remove all but the newest `keep` checkpoints (at least two; 0 keeps all) and the best; returns the removed."""
    if keep == 0:
        return []
    steps = listed_steps(folder)
    kept = {*steps[: max(keep, _LEAST_KEPT)], best_step}
    gone = [step for step in steps if step not in kept]
    for step in gone:
        for name in (meta_name(step), checkpoint_name(step)):
            if (folder / name).exists():
                move(folder / name, folder / f"{_TRASH}{name}")
        for name in (meta_name(step), checkpoint_name(step)):
            remove(folder / f"{_TRASH}{name}")
        if (folder / folder_name(step)).exists():
            trash = folder / f"{_TRASH}{folder_name(step)}"
            move(folder / folder_name(step), trash)
            remove_folder(trash)
    return gone


def clean_leftovers(folder: Path) -> list[str]:
    """Remove what a crash left: temporaries, trash, `.pt` files and folders without a meta. The caller has the lock."""
    steps = listed_steps(folder)
    left = _clean_folders(folder, {folder_name(step) for step in steps})
    left += sweep(folder)
    committed = {checkpoint_name(step) for step in steps}
    committed |= {weights_name(epoch) for epoch in listed_epochs(folder)}
    for path in sorted(folder.iterdir()):
        is_uncommitted = (
            path.name.startswith(("step-", "epoch-")) and path.suffix == ".pt" and path.name not in committed
        )
        if path.name.startswith(_TRASH) or is_uncommitted:
            remove(path)
            left.append(path.name)
    return left


def _clean_folders(folder: Path, committed: set[str]) -> list[str]:
    """Those of a trainer's own: being filled, thrown away, or without a meta."""
    left = []
    for path in sorted(folder.iterdir()):
        is_uncommitted = FILES_NAME.fullmatch(path.name) and path.name not in committed
        is_ours = is_staged(path.name) or path.name.startswith(_TRASH) or is_uncommitted
        if is_ours and path.is_dir() and not path.is_symlink():
            remove_folder(path)
            left.append(path.name)
    return left
