"""Taking a checkpoint between two steps: the trainer's state, its own folder where it has one, the random streams."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trn.checkpoint import rng
from trn.checkpoint.folder import Filled, discard, look_through, stage
from trn.checkpoint.saver import Moment
from trn.checkpoint.writers import open_for_writing
from trn.errors import NumericalInstability, StorageError, TrainerError
from trn.files import free_bytes
from trn.loop.cadences import epoch_metadata, epoch_of, is_artifact_due
from trn.loop.debug import plain_json
from trn.loop.evaluation import enter_settled
from trn.loop.hooks import call_hook
from trn.loop.verdicts import is_used_up, report_refusal
from trn.provenance.process import clean_event
from trn.records import Json, canonical_json, deterministic_part

if TYPE_CHECKING:
    from trn.loop.loop import Parts
    from trn.loop.progress import Progress

__all__ = ["checkpoint"]

_MOST_BYTES = 16 << 10
_SPARE_BYTES = 1 << 20
_OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})


def checkpoint(parts: Parts, progress: Progress, last_line: Json) -> None:
    """Take the whole state now; it is committed beside the loop."""
    with parts.pulse.during("save"):
        _checkpoint(parts, progress, last_line)


def _checkpoint(parts: Parts, progress: Progress, last_line: Json) -> None:
    streams = rng.capture()
    folder = _own_folder(parts, progress)
    try:
        state = _state(parts, progress)
        rng.restore(streams)  # a hook that draws must not make a run depend on how often it is saved
        moment = Moment(
            step=progress.step,
            epoch=epoch_of(parts.plan, progress.step),
            metrics=deterministic_part(last_line),
            journal={log.path.name: log.position for log in (parts.metrics, parts.val_metrics)},
            progress=progress.to_json(),
            rng=parts.agreement.gather(streams),
            best_step=progress.best_step,
            epoch_metadata=epoch_metadata(parts, progress) if is_artifact_due(parts.plan, progress) else None,
            folder=folder,
        )
    except BaseException:
        discard(folder)
        raise
    parts.saver.save(state, moment)


def _state(parts: Parts, progress: Progress) -> dict[str, Any]:
    try:
        state = call_hook(parts, "state_dict", lambda: parts.trainer.state_dict(parts.state))
    except NumericalInstability as error:
        report_refusal(parts.events, error, [])
        raise
    if not isinstance(state, dict):
        raise TrainerError(
            f"expected a dict, found {type(state).__name__}.", where=f"state_dict at step {progress.step}"
        )
    return state


def _own_folder(parts: Parts, progress: Progress) -> Filled | None:
    """What the trainer's `save_checkpoint` writes at this step, looked through; None where it has no such hook.

    Rank 0 asks it. Raises TrainerError, StorageError; then nothing of the folder is left.
    """
    hook: Any = getattr(parts.trainer, "save_checkpoint", None)
    if not callable(hook) or parts.ctx.rank:
        return None
    enter_settled(parts.ctx, parts.plan, progress)
    folder = stage(parts.ctx.checkpoints_dir, progress.step)
    where = f"save_checkpoint at step {progress.step}"
    asked = {
        "state": parts.state,
        "step": progress.step,
        "output_dir": folder,
        "final": is_used_up(parts.plan, progress),
        "ctx": parts.ctx,
    }
    try:
        parts.watchdog.step_ended()  # it may take its time
        given = call_hook(parts, "save_checkpoint", lambda: _written(hook, asked, folder))
        parts.watchdog.step_ended()
        files = look_through(folder, where)
        if left_open := open_for_writing(folder):
            raise TrainerError(
                f"it left {left_open[:80]!r} open.", where=where, hint="Close it before the hook returns."
            )
        return Filled(folder, files, _returned(given, folder, files, where))
    except BaseException:
        discard(folder)
        raise


def _written(hook: Any, asked: dict[str, Any], folder: Path) -> Any:
    """What the hook returns. A failure that is the disk's is a StorageError, whatever was made of it on its way."""
    try:
        return hook(**asked)
    except Exception as error:
        is_of_the_disk = isinstance(error, OSError) and error.errno in _OF_THE_DISK
        if is_of_the_disk or free_bytes(folder.parent) < _SPARE_BYTES:
            said = " ".join(str(error).split())
            raise StorageError(
                f"save_checkpoint cannot write: {said}.",
                where=str(folder.parent),
                hint="Free some space and resume; nothing was lost.",
            ) from error
        raise


def _returned(given: Any, folder: Path, files: tuple[str, ...], where: str) -> Json | None:
    """What the hook returned, as the meta keeps it: JSON, without secrets. Raises TrainerError for anything else."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise TrainerError(f"it returned a {type(given).__name__}; expected a mapping, or None.", where=where)
    said = dict(given)
    if "primary_path" in said:
        said["primary_path"] = _primary(said["primary_path"], folder, files, where)
    told: Json = clean_event(plain_json(said, where, most_bytes=_MOST_BYTES))
    if len(canonical_json(told)) > _MOST_BYTES:
        raise TrainerError(f"it returned more than {_MOST_BYTES:,} bytes of JSON.", where=where)
    return told


def _primary(path: Any, folder: Path, files: tuple[str, ...], where: str) -> str:
    """`primary_path` relative to the folder: it is one of its files."""
    try:
        text = os.fspath(path)
        name = os.path.relpath(text, folder) if os.path.isabs(text) else os.path.normpath(text)
    except (TypeError, ValueError):
        name = ""
    if name not in files:
        shown = ", ".join(files[:4])
        raise TrainerError(
            f"primary_path is {str(path)[:200]!r}, which it did not write into output_dir.",
            where=where,
            hint=f"Name one of its files: {shown}{' ...' if len(files) > 4 else ''}.",
        )
    return name
