"""A run's folder appears whole: filled aside under its lock, then made visible by one rename, which decides a race."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from trn.errors import PlanRefused, StorageError
from trn.files import Lock, Note, is_locked, make_folder, move, publish_folder, remove_tree, write_atomic
from trn.spec.plan_model import Plan

__all__ = ["LOCK_NAME", "PLAN_NAME", "publish_run", "refuse_taken", "withdraw_run"]

LOCK_NAME = ".lock"
PLAN_NAME = "reports/resolved_config.json"
_FOLDERS = ("checkpoints", "reports", "samples", "logs")
_STAGING = ".trn/staging"


def publish_run(
    plan: Plan,
    artifacts: Mapping[str, bytes],
    *,
    job_id: str,
    note: Note,
    fill: Callable[[Path], None] | None = None,
) -> Lock:
    """Publish the folder of `plan` with `artifacts` (relative path -> content) in it; returns its lock, held.

    `fill` puts more into the folder, which nobody sees yet: what is too large to be handed over as bytes. A file is
    durable before the folder is visible. Raises PlanRefused when the run id is taken, StorageError, and what `fill`
    raises; then nothing is left behind.
    """
    target = Path(plan.run_dir)
    refuse_taken(target)
    staging = make_folder(Path(plan.runs_dir) / _STAGING)
    staged = staging / job_id
    lock = Lock(staged / LOCK_NAME)
    try:
        with Lock(staging.with_name("staging.lock")):  # nobody clears a folder between its making and its locking
            _clear_dead(staging)
            make_folder(staged)
            lock.acquire(note)
        for name in _FOLDERS:
            make_folder(staged / name)
        for name, content in {**artifacts, PLAN_NAME: plan.to_bytes()}.items():
            write_atomic(staged / name, content)
        if fill is not None:
            fill(staged)
        if not publish_folder(staged, target):
            refuse_taken(target)
            raise PlanRefused(
                "another job made this run at the same moment, and took it back.",
                where=str(target),
                hint="Start it again.",
            )
        lock.path = target / LOCK_NAME
    except BaseException:
        lock.release()
        with contextlib.suppress(OSError, StorageError):
            remove_tree(staged)
        raise
    return lock


def withdraw_run(plan: Plan, lock: Lock, *, job_id: str) -> None:
    """Take back a folder that was published just now, and release its lock: a refusal leaves nothing."""
    aside = make_folder(Path(plan.runs_dir) / _STAGING) / job_id
    move(Path(plan.run_dir), aside)
    lock.release()
    remove_tree(aside)


def refuse_taken(target: Path) -> None:
    """Raise PlanRefused if the folder is a run, or holds anything; an empty folder may be taken."""
    if not target.exists() and not target.is_symlink():
        return
    if (target / PLAN_NAME).is_file():
        raise PlanRefused(
            f"the run {target.name!r} exists.",
            where=str(target),
            hint="Continue it with --resume or `trn resume`, or choose another --run-id.",
        )
    if not target.is_dir() or any(target.iterdir()):
        raise PlanRefused(
            "this is in the way, and it is not a run.", where=str(target), hint="Choose another --run-id."
        )


def _clear_dead(staging: Path) -> None:
    """Remove what planners that died left aside: folders whose lock nobody holds."""
    if not staging.is_dir():
        return
    for folder in staging.iterdir():
        # one without a lock file died between the two: the maker of a living one still holds the lock of the staging
        if folder.is_dir() and is_locked(folder / LOCK_NAME) is None:
            remove_tree(folder)
