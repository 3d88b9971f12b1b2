"""Which checkpoint of a run, verified before anything of it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trn.checkpoint.discover import find_named, find_newest_good, load_payload
from trn.checkpoint.meta import CheckpointMeta, checkpoint_name, listed_steps, meta_name
from trn.checkpoint.named import has_best, named_step
from trn.errors import NoGoodCheckpoint, ResumeRefused
from trn.loop.progress import Progress
from trn.records import JsonError, read_lines
from trn.reopen.state import cannot_load
from trn.spec.plan_model import Plan

__all__ = ["announced_steps", "chosen_checkpoint", "open_checkpoint", "progress_of"]

_TRIES = 20
"""A run that is training may take away what was just listed, or verified: it keeps at least two."""


def open_checkpoint(plan: Plan, name: str) -> tuple[CheckpointMeta, dict[str, Any]]:
    """The checkpoint that `name` means, verified, and its content, mapped: it stays whole where the file goes.

    Raises what `chosen_checkpoint` raises; ResumeRefused where it cannot be loaded.
    """
    for is_last in (False,) * _TRIES + (True,):
        meta = chosen_checkpoint(plan, name)
        try:
            return meta, load_payload(Path(plan.run_dir), meta)
        except Exception as error:  # whatever a file may do to the loader
            if is_last or not isinstance(error, FileNotFoundError):
                raise cannot_load(meta, error) from error
    raise AssertionError("the loop above returns or raises")


def chosen_checkpoint(plan: Plan, name: str) -> CheckpointMeta:
    """The checkpoint that `name` means: best, last, a step or a file; where there is no best, best means last.

    That one and no other. Raises ResumeRefused where it is not there or does not hold, NoGoodCheckpoint where none is
    good.
    """
    run_dir = Path(plan.run_dir)
    if not listed_steps(run_dir / "checkpoints"):
        raise NoGoodCheckpoint(
            "it has no checkpoint.",
            where=str(run_dir),
            hint="Wait for its first one, or resume the run.",
        )
    if name == "best" and (plan.checkpoint.best_metric is None or not has_best(run_dir)):
        name = "last"
    refusal: ResumeRefused | None = None
    for _ in range(_TRIES):
        step = None
        try:
            step = named_step(run_dir, name)
            return find_named(run_dir, step, lineage=plan.lineage)
        except ResumeRefused as error:
            refusal = error
            if step is None or (run_dir / "checkpoints" / meta_name(step)).exists():
                break
    find_newest_good(run_dir, lineage=plan.lineage, announced=set())  # raises where not one holds
    assert refusal is not None, "each try returns or is refused"
    if step is not None:
        refusal.hint = "Name another one with --checkpoint."
    raise refusal


def progress_of(meta: CheckpointMeta) -> Progress:
    """Where the run stood. Raises ResumeRefused for what this version does not write."""
    try:
        return Progress.from_json(meta.progress)
    except JsonError as error:
        raise ResumeRefused(
            f"{error}.", where=f"checkpoints/{meta.file}", hint="Another version of trn made it."
        ) from error


def announced_steps(run_dir: Path) -> set[int]:
    """Steps whose commit the events tell of and that no later resume went back behind."""
    steps: set[int] = set()
    try:
        for event in read_lines(run_dir / "reports/events.jsonl"):
            if event.get("event") == "checkpoint":
                steps.add(int(event["step"]))
            elif event.get("event") == "checkpoint_rejected":
                steps -= {step for step in steps if checkpoint_name(step) == event.get("file")}
            elif event.get("event") == "resumed":
                steps = {step for step in steps if step <= int(event["from_step"])}
    except (JsonError, KeyError, TypeError, ValueError):
        return steps  # a damaged line hides what came after it; the metas still speak for themselves
    return steps
