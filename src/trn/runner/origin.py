"""Where a fork begins: the run it is taken from, which is only read, and the record of it that the fork keeps.

Everything is verified here, before anything is made. The files of the checkpoints stay open: the run may still be
training, and its retention can take their names away, but not what is open.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trn.checkpoint.discover import find_named, find_newest_good
from trn.checkpoint.meta import CheckpointMeta, checkpoint_name, meta_name
from trn.checkpoint.named import named_step
from trn.errors import ResumeRefused
from trn.loop.progress import Progress
from trn.records import SCHEMA_VERSION, Json, JsonError, pretty_json, read_json
from trn.reopen import announced_steps, read_run
from trn.runner.console import say
from trn.spec import Source
from trn.spec.plan_model import Plan

__all__ = [
    "FORKED_FROM_NAME",
    "Origin",
    "Taken",
    "forked_from_bytes",
    "gone",
    "kept_sources",
    "open_file",
    "read_forked_from",
    "read_origin",
]

FORKED_FROM_NAME = "reports/forked_from.json"


@dataclass(frozen=True)
class Taken:
    """A verified checkpoint. Its file is open: it can be read to its end, also when its name is gone by then."""

    meta: CheckpointMeta
    weights: BinaryIO


@dataclass(frozen=True)
class Origin:
    """What a fork takes from the run in `run_dir`."""

    run_dir: Path
    plan: Plan
    taken: tuple[Taken, ...]
    """The checkpoint that was asked for, and the best before it, where that is another one and still there."""

    @property
    def meta(self) -> CheckpointMeta:
        return self.taken[0].meta


def read_origin(run_dir: Path, name: str | None) -> Origin:
    """The run in `run_dir` at the checkpoint called `name`, or at its newest that holds. Raises ResumeRefused."""
    plan = read_run(run_dir)
    meta = _find(run_dir, plan, name)
    if meta is None:
        raise ResumeRefused(
            "it has no checkpoint yet, so there is nothing to fork.",
            where=str(run_dir),
            hint="Wait for its first one, or start a new run from the spec.",
        )
    asked = Taken(meta, open_file(run_dir / "checkpoints" / meta.file))
    best = _find_best(run_dir, plan, meta)
    return Origin(run_dir, plan, (asked,) if best is None else (asked, best))


def _find(run_dir: Path, plan: Plan, name: str | None) -> CheckpointMeta | None:
    if name is not None:
        return find_named(run_dir, named_step(run_dir, name), lineage=plan.lineage)
    found = find_newest_good(run_dir, lineage=plan.lineage, announced=announced_steps(run_dir))
    for file, reason in found.rejected:
        say(f"{run_dir / 'checkpoints' / file} was passed over: {reason}")
    return found.meta


def _find_best(run_dir: Path, plan: Plan, meta: CheckpointMeta) -> Taken | None:
    """The checkpoint that was the best at `meta`. One that is gone or damaged is left out, as a resume would."""
    folder = run_dir / "checkpoints"
    try:
        step = Progress.from_json(meta.progress).best_step
    except JsonError as error:
        raise ResumeRefused(f"{error}.", where=str(folder / meta_name(meta.step))) from error
    if step is None or step == meta.step or not (folder / meta_name(step)).exists():
        return None
    try:
        best = find_named(run_dir, step, lineage=plan.lineage)
        return Taken(best, open_file(folder / checkpoint_name(step)))
    except ResumeRefused as error:
        say(f"the best checkpoint is left out of the fork: {error}")
        return None


def kept_sources(run_dir: Path) -> list[Source]:
    """The files that the run's spec was made from, as its folder has them, with the spec of its last revision."""
    revised = [
        path for path in (run_dir / "reports/plans").glob("*.source*") if path.name.partition(".")[0].isdecimal()
    ]
    revised.sort(key=lambda path: int(path.name.partition(".")[0]))
    config = revised[-1:] or sorted(run_dir.glob("config_source*"))[:1]
    if not config:
        raise ResumeRefused(
            "it has no config_source.*, so nobody knows its spec.", where=str(run_dir), hint="Fork it with --config."
        )
    # base_config_source, -2, -3 ... -10: in the order in which they were read
    bases = sorted(run_dir.glob("base_config_source*"), key=lambda path: (len(path.stem), path.stem))
    return [Source(path, path.read_bytes()) for path in (*config, *bases)]


def open_file(path: Path) -> BinaryIO:
    """A file of the run, to be read. Raises ResumeRefused where it is gone."""
    try:
        return open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb")
    except OSError as error:
        raise gone(path, error) from error


def gone(path: Path, error: OSError) -> ResumeRefused:
    return ResumeRefused(
        f"{path.name} cannot be read any more: {error.strerror}.",
        where=str(path),
        hint="The run it belongs to may have removed it meanwhile: fork again.",
    )


# forked_from.json, in the fork's own folder


def forked_from_bytes(origin: Origin) -> bytes:
    """The content of the file: which run, and which checkpoint of it."""
    return pretty_json(
        {
            "schema_version": SCHEMA_VERSION,
            "run_id": origin.plan.run_id,
            "plan_fingerprint": origin.plan.fingerprint,
            "checkpoint": origin.meta.file,
            "sha256": origin.meta.sha256,
            "step": origin.meta.step,
        }
    )


def read_forked_from(run_dir: Path) -> Json | None:
    """What the file says, without its version; None for a run that is no fork. Raises ResumeRefused."""
    path = run_dir / FORKED_FROM_NAME
    try:
        value = read_json(path)
    except FileNotFoundError:
        return None
    except (JsonError, OSError) as error:
        raise ResumeRefused(f"it is damaged: {error}.", where=str(path), hint="Restore it from a backup.") from error
    return {key: item for key, item in value.items() if key != "schema_version"}
