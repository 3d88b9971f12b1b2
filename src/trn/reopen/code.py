"""The trainer's code: where it may come from, and whether it is the run's, before it runs.

    --code DIR, if given; else what is installed, the plan's spec_folder, the current folder
        -> the first whose digest is the plan's -> import -> its digest once more, of what was really loaded

The plan's `spec_folder` is a path in a file that may come from anywhere. It counts only where it belongs to whoever
reopens, or to root, and not everybody may write into it. With --code nothing else counts but what is installed. Nothing
is ever imported from the run's own folder, unless --code says so.

Other code is refused before it runs wherever its imports can be foreseen, and before anything is built otherwise.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Collection
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path

from trn.errors import ResumeRefused, UsageError
from trn.provenance.code import code_sha256
from trn.reopen.imports import Foreseen, foresee
from trn.spec.plan_model import Plan
from trn.trainer import Trainer, load_trainer
from trn.trainer.loading import ENTRY_POINT_GROUP, OWN_LOOP

__all__ = ["CODE", "FoundTrainer", "find_trainer", "other_code", "refuse_own_loop"]

CODE = "code"
"""What --allow-change calls other code of the trainer."""


@dataclass(frozen=True)
class FoundTrainer:
    trainer: Trainer
    code_sha256: str
    """Of what was imported: the plan's, unless another one was allowed."""


@dataclass(frozen=True)
class _Place:
    """A folder to import from, None for what is installed; and what importing from it would load."""

    folder: Path | None
    foreseen: Foreseen


def find_trainer(plan: Plan, code: Path | None, allowed: Collection[str]) -> FoundTrainer:
    """The run's trainer, imported. Raises ResumeRefused where its code is not there or is other code.

    The import path of this process changes: the folders that count are added to it.
    """
    if unknown := sorted(set(allowed) - {CODE}):
        raise UsageError(f"{unknown[0]!r} cannot be allowed; expected {CODE}.", where="--allow-change")
    if code is not None and not code.is_dir():
        raise UsageError("there is no such folder.", where=f"--code {code}")
    folders = _folders(plan, code)
    places = _places(plan, folders, is_given=code is not None)
    if not places and plan.trainer.module not in sys.modules:
        raise _gone(plan, folders, code)
    fitting = [place for place in places if plan.trainer.code_sha256 in place.foreseen.digests]
    unsure = [place for place in places if not place.foreseen.is_certain]
    if CODE not in allowed and places and not (fitting or unsure):
        digest = sorted(places[0].foreseen.digests)[0]
        raise _other_code(plan, str(places[0].foreseen.file), digest)
    chosen = next(iter((*fitting, *unsure, *places)), None)
    if chosen is not None:
        _use(chosen, folders, plan.trainer.module)
    trainer = load_trainer(plan.trainer.name)
    digest = code_sha256(type(trainer).__module__)
    if digest != plan.trainer.code_sha256 and CODE not in allowed:
        own = getattr(sys.modules[type(trainer).__module__], "__file__", None)
        raise _other_code(plan, str(own or plan.trainer.module), digest)
    return FoundTrainer(trainer, digest)


def other_code(plan: Plan) -> str | None:
    """The digest of what would be imported here, where that is other code than the plan's for sure, else None.

    Nothing is imported; the import path is taken as it is.
    """
    module = plan.trainer.module
    if module in sys.modules or plan.trainer.name == OWN_LOOP:
        return None
    foreseen = foresee(module, sys.path, by=_asked_for(plan.trainer.name), is_installed=True)
    if foreseen is None or not foreseen.is_certain or plan.trainer.code_sha256 in foreseen.digests:
        return None
    return min(foreseen.digests)


def refuse_own_loop(plan: Plan) -> None:
    """Raise ResumeRefused for a run whose loop was the user's own: no trainer can build its model again."""
    if plan.trainer.name == OWN_LOOP:
        raise ResumeRefused(
            "this run was made by a loop of its own, and has no trainer that could build its model.",
            where=plan.run_dir,
            hint="Load its checkpoint in your own code, or write a trainer.",
        )


def _folders(plan: Plan, code: Path | None) -> list[Path]:
    if code is not None:
        return [code.resolve()]
    found = [Path(plan.spec_folder).resolve()] if _is_trusted(Path(plan.spec_folder)) else []
    with contextlib.suppress(OSError):  # the current folder may be gone
        found.append(Path.cwd())
    return [one for one in dict.fromkeys(found) if not one.is_relative_to(plan.run_dir)]


def _is_trusted(folder: Path) -> bool:
    """Whether a folder that a plan names is there, ours or root's, and not everybody's to write into."""
    try:
        status = folder.stat()
    except (OSError, ValueError):
        return False
    is_ours = status.st_uid in (os.geteuid(), 0)
    return stat.S_ISDIR(status.st_mode) and is_ours and not status.st_mode & stat.S_IWOTH


def _places(plan: Plan, folders: list[Path], *, is_given: bool) -> list[_Place]:
    """Where the trainer is found; what the user gave comes before what is installed, and that before the rest."""
    installed = _others(folders)
    beyond = [*map(str, folders), *installed]
    places = []
    for folder in (*folders, None) if is_given else (None, *folders):
        path = installed if folder is None else [str(folder)]
        by = _asked_for(plan.trainer.name)
        foreseen = foresee(plan.trainer.module, path, beyond=beyond, by=by, is_installed=folder is None)
        if foreseen is not None:
            places.append(_Place(folder, foreseen))
    return places


def _others(folders: list[Path]) -> list[str]:
    """The import path without these folders."""
    return [entry for entry in sys.path if entry and Path(entry).resolve() not in folders]


def _asked_for(name: str) -> str:
    """The module that is imported for a trainer of this name; its class may come from another one."""
    named = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return (name if ":" in name else named.get(name, name)).partition(":")[0]


def _use(place: _Place, folders: list[Path], module_name: str) -> None:
    """Let the import find that file and no other of its name; helpers may lie in any of the folders."""
    rest = _others(folders)
    if place.folder is None:
        sys.path[:] = [*rest, *map(str, folders)]
        return
    own = [str(place.folder), *(str(folder) for folder in folders if folder != place.folder)]
    is_hidden = PathFinder.find_spec(module_name.partition(".")[0], rest) is not None
    sys.path[:] = [*own, *rest] if is_hidden else [*rest, *own]


def _gone(plan: Plan, folders: list[Path], code: Path | None) -> ResumeRefused:
    looked = ", ".join(["what is installed", *map(str, folders)])
    name = plan.trainer.name
    is_named = any(point.name == name for point in entry_points(group=ENTRY_POINT_GROUP))
    own = Path(plan.spec_folder)
    why = ""
    if code is None and not own.is_dir():
        why = f" The folder of its spec, {own}, is not there."
    elif code is None and own.resolve() not in folders:
        why = f" The folder of its spec, {own}, is not used: it must be yours, closed to others, and not in the run's."
    way = "Install the package that it comes from." if is_named or ":" not in name else ""
    return ResumeRefused(
        f"there is no module {plan.trainer.module!r} in {looked}.{why}",
        where=f"trainer {name!r}",
        hint=way or "Say where its code is: --code DIR.",
    )


def _other_code(plan: Plan, file: str, digest: str) -> ResumeRefused:
    return ResumeRefused(
        f"this is not the code that the run was made with: its sha256 is {digest[:12]}, "
        f"the plan has {plan.trainer.code_sha256[:12]}.",
        where=file,
        hint="Say where that code is with --code DIR, or go on with --allow-change code.",
    )
