"""A checkpoint of another run, with all of that run that belongs to it, brought here from elsewhere.

    BASE/checkpoints/step-N.pt      named by the job, with its digest if that is known
    BASE/checkpoints/step-N.meta.json, step-N.files/*                 what was committed with it
    BASE/reports/resolved_config.json, {train,val}_metrics.jsonl      the plan, and the lines up to there

Laid out as the run's folder was, in `.trn/worker/<run_id>/origin/` beside the runs, it is what a fork begins from. All
files but the plan and the journal have their digests in the meta; those two are held against it by the fork itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from trn.checkpoint.meta import CheckpointMeta, meta_name
from trn.errors import DataError
from trn.files import link_atomic, make_folder, remove_tree
from trn.records import JsonError
from trn.spec.job_form import Input
from trn.transfer.download import Fetched, Wanted
from trn.transfer.wanted import is_web, local_path

__all__ = ["Fetch", "bring_origin"]

Fetch = Callable[[Sequence[Wanted]], list[Fetched]]

_CHECKPOINT = re.compile(r"(?P<base>.+/)checkpoints/step-(?P<step>\d{8,})\.pt")
_REPORTS = ("resolved_config.json", "train_metrics.jsonl", "val_metrics.jsonl")


def bring_origin(wanted: Input, folder: Path, fetch: Fetch) -> Path:
    """The checkpoint's file, in the folder of a run: where it lies, or below `folder`. Raises DataError."""
    named = _CHECKPOINT.fullmatch(wanted.source)
    if named is None:
        raise DataError(
            "expected the file of a checkpoint in the folder of a run, .../checkpoints/step-00000200.pt.",
            where=f"inputs.{wanted.name}",
            hint="A checkpoint alone does not say what its run was: plan and metrics belong to it.",
        )
    whole = Wanted(wanted.name, wanted.source, wanted.sha256, wanted.size_bytes)
    if (path := local_path(whole)) is not None:
        fetch([whole])  # is it what was meant?
        return path
    return _bring(wanted, named["base"], int(named["step"]), folder, fetch)


def _bring(wanted: Input, base: str, step: int, folder: Path, fetch: Fetch) -> Path:
    (found,) = fetch([Wanted(f"{wanted.name}/meta", f"{base}checkpoints/{meta_name(step)}")])
    make_folder(folder.parent)
    remove_tree(folder)  # of an earlier start: what is fetched comes from the cache again
    make_folder(folder / "checkpoints")
    make_folder(folder / "reports")
    link_atomic(found.path, folder / "checkpoints" / meta_name(step))
    try:
        meta = CheckpointMeta.read(folder / "checkpoints" / meta_name(step))
    except JsonError as error:
        raise DataError(f"the meta of the checkpoint is none: {error}.", where=f"inputs.{wanted.name}") from error
    if wanted.sha256 not in (None, meta.sha256):
        raise DataError(
            f"expected sha256 {wanted.sha256}, and its meta says {meta.sha256}.", where=f"inputs.{wanted.name}"
        )
    if wanted.size_bytes not in (None, meta.size_bytes):
        raise DataError(
            f"expected {wanted.size_bytes} bytes, and its meta says {meta.size_bytes}.", where=f"inputs.{wanted.name}"
        )
    parts = {f"checkpoints/{meta.file}": (meta.sha256, meta.size_bytes)}
    for one in meta.files or ():
        parts[f"checkpoints/{meta.folder}/{one['path']}"] = (str(one["sha256"]), int(one["size_bytes"]))
    known = [Wanted(f"{wanted.name}/{name}", _below(base, name), *sizes) for name, sizes in parts.items()]
    reports = [Wanted(f"{wanted.name}/{name}", f"{base}reports/{name}") for name in _REPORTS]
    for brought in fetch([*known, *reports]):
        name = brought.name.removeprefix(f"{wanted.name}/")
        target = folder / name if name in parts else folder / "reports" / name
        make_folder(target.parent)
        link_atomic(brought.path, target)
    return folder / "checkpoints" / meta.file


def _below(base: str, name: str) -> str:
    """Trainers name their files as they like; in the URL of a store such a name stands as it is."""
    return base + (quote(name) if is_web(base) else name)
