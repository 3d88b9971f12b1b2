"""Which checkpoint a user means: by a word, a step, a file's name or a path in the run's folder of checkpoints.

Here a name becomes a step that is listed, or is refused with what there is. Whether that checkpoint holds is
`discover`'s to say: one that was named is used or refused, and no other ever takes its place.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from trn.checkpoint.meta import CheckpointMeta, listed_steps, meta_name
from trn.errors import ResumeRefused
from trn.records import JsonError

__all__ = ["has_best", "named_step", "parse_name"]

_NAME = re.compile(r"(?:(last|best)|step-([0-9]{1,18}))(?:\.pt|\.meta\.json)?|([0-9]{1,18})")
_SHOWN = 8
_LOOKS = 3
"""A run that is training may have a new best, and drop the one before it, while the folder is listed."""
_UNREADABLE = (JsonError, OSError, KeyError, TypeError, ValueError, AttributeError)


def parse_name(text: str) -> str | int | None:
    """`last`, `best`, or the step of `200`, `step-00000200` and of a file's name; None where `text` names none."""
    found = _NAME.fullmatch(text)
    return None if found is None else found[1] or int(found[2] or found[3])


def named_step(run_dir: Path, text: str) -> int:
    """The step of the checkpoint that `text` means: a name, or the path of a file in `run_dir`/checkpoints.

    `last` is the newest, `best` the one that the newest says was the best. Raises ResumeRefused.
    """
    folder = run_dir / "checkpoints"
    steps = listed_steps(folder)
    name = parse_name(_own_name(folder, text) if os.sep in text else text)
    if name == "best" and steps:
        name = _best_step(folder, steps)
    step = steps[0] if name == "last" and steps else name
    if step not in steps:
        raise ResumeRefused(
            f"there is no checkpoint {text!r}{_set_aside(folder, step)}; {_listing(steps)}.",
            where=str(folder),
            hint="Name one that is there.",
        )
    assert isinstance(step, int), "what is listed are steps"
    return step


def _own_name(folder: Path, text: str) -> str:
    """The name of the file at the path `text`, which must lie in `folder`; links on the way there may be followed."""
    path = Path(text)
    parent, own = Path(os.path.realpath(path.parent)), Path(os.path.realpath(folder))
    if parent.parent == own and parent.name.startswith("abandoned-"):
        raise ResumeRefused(
            f"it lies in {parent.name}: a resume went back behind it and cut its metrics.",
            where=text,
            hint="Name a checkpoint directly in checkpoints/.",
        )
    if parent != own:
        raise ResumeRefused(
            f"expected a checkpoint of this run, in {own}.",
            where=text,
            hint="To begin a new run from another run's checkpoint, fork it: --run-id NEW --resume-from PATH.",
        )
    return path.name


def has_best(run_dir: Path) -> bool:
    """Whether the newest checkpoint calls one the best, and it is kept; True where that cannot be read.

    There is none before the first validation that counts, and after a way back behind all that retention has left.
    """
    folder = run_dir / "checkpoints"
    try:
        for _ in range(_LOOKS):
            steps = listed_steps(folder)
            best = _best_of(folder / meta_name(steps[0]))
            if best in steps:
                return True
    except (*_UNREADABLE, IndexError):
        return True
    return False


def _best_step(folder: Path, steps: list[int]) -> int:
    """The best so far, as the newest checkpoint has it: the files best.* are hints and can lag behind."""
    path = folder / meta_name(steps[0])
    try:
        step = _best_of(path)
    except _UNREADABLE as error:
        raise ResumeRefused(
            f"it cannot be read, so nobody knows which checkpoint is the best: {error}.",
            where=str(path),
            hint="Name the checkpoint by its step.",
        ) from error
    if step is None:
        raise ResumeRefused("none is the best yet: no validation has counted.", where=str(folder), hint=_by_step(steps))
    if step not in steps:
        raise ResumeRefused(f"the best, of step {step}, is not kept.", where=str(folder), hint=_by_step(steps))
    return step


def _best_of(meta: Path) -> int | None:
    best = CheckpointMeta.read(meta).progress.get("best")
    return None if best is None else int(best["step"])


def _by_step(steps: list[int]) -> str:
    return f"Name one by its step: {_listing(steps)}."


def _listing(steps: list[int]) -> str:
    if not steps:
        return "there is none"
    shown = ", ".join(f"step-{step:08d}" for step in steps[:_SHOWN])
    return f"there are {shown}{f' and {len(steps) - _SHOWN} older' if len(steps) > _SHOWN else ''}"


def _set_aside(folder: Path, step: str | int | None) -> str:
    if not isinstance(step, int):
        return ""
    found = sorted(path.parent.name for path in folder.glob(f"abandoned-*/{meta_name(step)}"))
    return f", but for the one in {found[-1]} that a resume went back behind" if found else ""
