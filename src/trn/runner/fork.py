"""A fork: a new run that begins with a checkpoint of another. The other is only read, also while it is running.

    origin ──plan, checkpoint: verified──> contract ──> the fork's plan ──filled aside──rename──> a new run, resumed

The new folder has the checkpoint and the best one before it, with the trainer's own folders of both, the metrics up to
it, the epochs that were over, and `reports/forked_from.json`. All are copies, hashed again as they are written: no file
ever belongs to two runs. The events begin anew. The lock of the other run is not taken: what goes or changes meanwhile
refuses the fork.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from trn.checkpoint.epochs import listed_epochs, metadata_name, weights_name
from trn.checkpoint.meta import CheckpointMeta, checkpoint_name, meta_name
from trn.errors import ResumeRefused, Stopped, StorageError, UsageError
from trn.files import Note, atomic_file, free_bytes, link_atomic, make_folder, write_atomic
from trn.loop.progress import Progress
from trn.loop.stop import StopRequest
from trn.loop.verdicts import is_used_up
from trn.plan import publish_run
from trn.plan.publish import refuse_taken
from trn.reopen import prepare_torch
from trn.runner.artifacts import start_artifacts
from trn.runner.company import Company
from trn.runner.contract import compare_with_spec, compare_with_world, revise
from trn.runner.execute import Job, Resume, execute
from trn.runner.origin import FORKED_FROM_NAME, Origin, forked_from_bytes, gone, kept_sources, open_file, read_origin
from trn.spec import LoadedSpec
from trn.spec.plan_model import Plan

__all__ = ["Fork", "copy_state", "fork"]

_CHUNK_BYTES = 1 << 20
_SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Fork:
    """What is asked for."""

    source: Path
    """The folder of the run to begin from."""
    checkpoint: str | None
    """What the user calls the checkpoint; None: the newest that holds."""
    runs_dir: Path
    run_id: str
    loaded: LoadedSpec | None
    """The spec of the new run; None: the plan of the other."""
    allowed: Sequence[str]
    plan_only: bool = False
    """Make the folder, and leave it for a later job to begin."""


def fork(asked: Fork, *, job_id: str, note: Note, stop: StopRequest, company: Company) -> int:
    """Make the new run and bring it forward; returns the exit status.

    Raises TrnError for whatever is refused; then nothing is left of the new run, and the other is as it was.
    """
    target = asked.runs_dir / asked.run_id
    if target == asked.source:
        raise _no_id_of_its_own(asked.run_id)
    refuse_taken(target)
    origin = read_origin(asked.source, asked.checkpoint)
    if asked.run_id == origin.plan.run_id:
        raise _no_id_of_its_own(asked.run_id)
    if asked.loaded is None:
        now, trainer = compare_with_world(origin.plan, company.world, allowed=asked.allowed)
    else:
        now, trainer = compare_with_spec(origin.plan, asked.loaded, company.world)
    revised, changes = revise(origin.plan, now, allowed=asked.allowed)
    plan = _plan_of_fork(revised, asked)
    _refuse_finished(origin, plan)
    sources = asked.loaded.sources if asked.loaded is not None else kept_sources(asked.source)
    prepare_torch(plan)
    artifacts = start_artifacts(plan, sources, job_id=job_id) | {FORKED_FROM_NAME: forked_from_bytes(origin)}
    fill = partial(copy_state, origin, plan, job_id, partial(_refuse_stopped, stop))
    lock = publish_run(plan, artifacts, job_id=job_id, note=note, fill=fill)
    if asked.plan_only:
        lock.release()
        return 0
    resume = Resume(published=plan, is_fork=True)
    return execute(Job(plan, trainer, job_id, resume=resume, changes=changes), lock, stop, company)


def _no_id_of_its_own(run_id: str) -> UsageError:
    return UsageError(
        f"a fork needs an id of its own, and {run_id!r} is that of the run it begins from.",
        where="--run-id",
        hint="Choose another one; to continue the run itself, resume it.",
    )


def _plan_of_fork(revised: Plan, asked: Fork) -> Plan:
    """The plan of the new run: its first revision, whatever was allowed to differ from the other's."""
    own = {"run_id": asked.run_id, "run_dir": str(asked.runs_dir / asked.run_id), "runs_dir": str(asked.runs_dir)}
    return revised.model_copy(update={**own, "revision": 0, "earlier_fingerprints": []}).sealed()


def _refuse_finished(origin: Origin, plan: Plan) -> None:
    if is_used_up(plan, Progress.from_json(origin.meta.progress)):
        raise ResumeRefused(
            f"{origin.meta.file} stands at step {origin.meta.step} of a budget of {plan.budget.max_steps}: "
            "nothing would be left to train.",
            where=str(origin.run_dir),
            hint="Name an older one with --checkpoint, or fork with a spec of a longer budget and "
            "--allow-change max_steps.",
        )


def _refuse_stopped(stop: StopRequest) -> None:
    if stop.requested():
        raise Stopped("preempted" if stop.outcome is None else stop.outcome, f"{stop.reason}, before the run began.")


def copy_state(origin: Origin, plan: Plan, job_id: str, go_on: Callable[[], None], staged: Path) -> None:
    """Put into the folder of the new run, which nobody sees yet, all that it goes on from.

    `go_on` is asked between two chunks, and raises where the user does not want to wait any longer.
    """
    own_files = sum(file["size_bytes"] for one in origin.taken for file in one.meta.files or ())
    _require_space(staged, own_files + sum(one.meta.size_bytes for one in origin.taken))
    for one in origin.taken:
        meta = one.meta
        _require_same(meta.file, _copy(one.weights, staged / "checkpoints" / meta.file, go_on), meta.sha256)
        _copy_folder(origin, meta, staged / "checkpoints", go_on)
        own = replace(meta, run_id=plan.run_id, job_id=job_id, plan_fingerprint=plan.fingerprint)
        write_atomic(staged / "checkpoints" / meta_name(meta.step), own.to_bytes())
    for name, position in origin.meta.positions().items():
        log = open_file(origin.run_dir / "reports" / name)
        digest = _copy(log, staged / "reports" / name, go_on, size_bytes=position.offset)
        _require_same(name, digest, position.sha256)
    _copy_epochs(origin, plan, staged / "checkpoints", go_on)


def _copy_folder(origin: Origin, meta: CheckpointMeta, target: Path, go_on: Callable[[], None]) -> None:
    """The trainer's own folder beside the checkpoint, where it has one."""
    for file in meta.files or ():
        name = f"{meta.folder}/{file['path']}"
        place = target / name
        make_folder(place.parent)
        _require_same(name, _copy(open_file(origin.run_dir / "checkpoints" / name), place, go_on), file["sha256"])


def _copy_epochs(origin: Origin, plan: Plan, target: Path, go_on: Callable[[], None]) -> None:
    """The artifacts of the epochs that were over: all metadata, and the weights that retention has left of them."""
    folder = origin.run_dir / "checkpoints"
    for epoch in listed_epochs(folder):
        step = (epoch + 1) * plan.budget.steps_per_epoch
        if step > origin.meta.step:
            continue
        weights = weights_name(epoch)
        if (target / checkpoint_name(step)).exists():
            link_atomic(target / checkpoint_name(step), target / weights)
        elif (folder / weights).exists():
            _copy(open_file(folder / weights), target / weights, go_on)
        _copy(open_file(folder / metadata_name(epoch)), target / metadata_name(epoch), go_on)


def _copy(source: BinaryIO, target: Path, go_on: Callable[[], None], *, size_bytes: int = sys.maxsize) -> str:
    """Copy an open file, or its first bytes, and close it; returns the sha256 of what was written."""
    with source, atomic_file(target) as file:
        while chunk := _read(source, target, min(size_bytes - file.size_bytes, _CHUNK_BYTES)):
            go_on()
            file.write(chunk)
    return file.sha256


def _read(source: BinaryIO, target: Path, size_bytes: int) -> bytes:
    try:
        return source.read(size_bytes)
    except OSError as error:  # on a network file system also for a file that was removed
        raise gone(target, error) from error


def _require_same(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise ResumeRefused(f"{name} changed while it was copied.", where=name, hint="Fork again.")


def _require_space(folder: Path, needed: int) -> None:
    free = free_bytes(folder)
    if free < needed + _SPARE_BYTES:
        raise StorageError(
            f"the fork needs about {needed + _SPARE_BYTES:,} bytes, {free:,} are free.",
            where=str(folder),
            hint="Free some space; nothing was made.",
        )
