"""What the checks work on, and what they yield."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trn.errors import VerificationFailed
from trn.spec.plan_model import Plan

__all__ = ["PLAN_NAME", "Finding", "Run"]

PLAN_NAME = "reports/resolved_config.json"


@dataclass(frozen=True)
class Finding:
    """One thing that was checked; `problem` is None where it holds."""

    what: str
    problem: str | None = None


@dataclass(frozen=True)
class Run:
    """A run's folder with the plan that was read from it."""

    folder: Path
    plan: Plan

    @property
    def reports(self) -> Path:
        return self.folder / "reports"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def inside(self, name: str) -> Path:
        """The path of a name that a record gives. Raises VerificationFailed where it leads out of the folder."""
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise VerificationFailed("it leads out of the run's folder.", where=name)
        return path
