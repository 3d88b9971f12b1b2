"""Files that the trainer reads by itself, settled by their content: what it is given later is these bytes."""

from __future__ import annotations

from pathlib import Path

from trn.errors import PlanRefused, ResumeRefused
from trn.files import sha256_file
from trn.spec import Spec
from trn.spec.plan_model import InputPlan, Plan

__all__ = ["plan_inputs", "require_inputs"]


def plan_inputs(spec: Spec) -> list[InputPlan]:
    """Each with its digest. Raises PlanRefused for one that is no file, or cannot be read."""
    return [_plan_input(name, Path(path)) for name, path in sorted(spec.inputs.items())]


def _plan_input(name: str, path: Path) -> InputPlan:
    where = f"inputs.{name}"
    try:
        if not path.is_file():
            found = "is a folder" if path.is_dir() else "is no file" if path.exists() else "is not there"
            raise PlanRefused(f"expected a file, and {str(path)!r} {found}.", where=where)
        return InputPlan(name=name, path=str(path), sha256=sha256_file(path), size_bytes=path.stat().st_size)
    except OSError as error:
        raise PlanRefused(f"{str(path)!r} cannot be read: {error.strerror or error}.", where=where) from error


def require_inputs(plan: Plan) -> None:
    """Raise ResumeRefused where a file is not the one that the plan was made with."""
    for one in plan.inputs:
        path, where = Path(one.path), f"inputs.{one.name}"
        try:
            is_same = path.stat().st_size == one.size_bytes and sha256_file(path) == one.sha256
        except OSError as error:
            raise ResumeRefused(f"{one.path!r} cannot be read: {error.strerror or error}.", where=where) from error
        if not is_same:
            raise ResumeRefused(
                f"{one.path!r} is not the file that the run began with (sha256 {one.sha256[:12]}).",
                where=where,
                hint="Put that one back, or start a new run.",
            )
