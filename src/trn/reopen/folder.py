"""The plan of a run's folder, wherever that folder lies now."""

from __future__ import annotations

import os
from pathlib import Path

from trn.errors import ResumeRefused
from trn.plan.publish import PLAN_NAME
from trn.spec.plan_model import Plan

__all__ = ["read_run", "refuse_foreign"]


def read_run(run_dir: Path) -> Plan:
    """The plan in `run_dir`, which is where it lies now. Raises ResumeRefused: no run, links in it, a changed plan."""
    refuse_foreign(run_dir)
    path = run_dir / PLAN_NAME
    if not path.is_file():
        raise ResumeRefused("this folder is no run: it has no plan.", where=str(run_dir))
    plan = Plan.read(path.read_bytes(), str(path))
    return plan.model_copy(update={"run_dir": str(run_dir), "runs_dir": str(run_dir.parent)})


def refuse_foreign(run_dir: Path) -> None:
    """Refuse links, pipes and devices where something is read; files may come and go meanwhile."""
    for folder in (run_dir, run_dir / "reports", run_dir / "reports/plans", run_dir / "checkpoints"):
        if folder.is_symlink():
            raise _foreign(run_dir, folder, "a symbolic link")
        for entry in os.scandir(folder) if folder.is_dir() else ():
            if entry.is_symlink():
                raise _foreign(run_dir, Path(entry.path), "a symbolic link")
            if not entry.is_file(follow_symlinks=False) and not entry.is_dir(follow_symlinks=False):
                raise _foreign(run_dir, Path(entry.path), "no plain file")


def _foreign(run_dir: Path, path: Path, what: str) -> ResumeRefused:
    name = path.name if path == run_dir else path.relative_to(run_dir)
    return ResumeRefused(
        f"{name} is {what}.", where=str(run_dir), hint="A run is made of plain files and folders only."
    )
