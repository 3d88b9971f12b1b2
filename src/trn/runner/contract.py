"""The resume contract: what a run was planned to be, and what is here now, must be the same, key by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trn.errors import ResumeRefused
from trn.feed import Dataset, check_unchanged
from trn.plan import make_plan, use_spec_folder
from trn.provenance.code import code_sha256, library_versions
from trn.ranks import World
from trn.records import Json
from trn.spec import LoadedSpec
from trn.spec.plan_model import UNFINGERPRINTED, Plan
from trn.trainer import Trainer, load_trainer

__all__ = ["plan_differences", "require_same_plan", "require_same_world"]


def require_same_plan(plan: Plan, loaded: LoadedSpec) -> Trainer:
    """The trainer, if the spec still plans to what the run is. Raises ResumeRefused naming every difference."""
    world = World(world_size=plan.world_size)
    wanted, trainer = make_plan(loaded, run_id=plan.run_id, runs_dir=Path(plan.runs_dir), world=world)
    _refuse(plan_differences(plan, wanted), plan)
    return trainer


def require_same_world(plan: Plan) -> Trainer:
    """The trainer, if code, libraries and data are what the plan recorded. Raises ResumeRefused, DataError."""
    use_spec_folder(Path(plan.spec_folder))
    trainer = load_trainer(plan.trainer.name)
    module = type(trainer).__module__
    code = code_sha256(module)
    differences = []
    if code != plan.trainer.code_sha256:
        differences.append(("trainer.code_sha256", plan.trainer.code_sha256[:12], code[:12]))
    versions = library_versions(name for name in plan.versions if name not in ("python", "trn"))
    differences += [
        (f"versions.{name}", was, versions.get(name, "absent"))
        for name, was in plan.versions.items()
        if versions.get(name, "absent") != was
    ]
    _refuse(differences, plan)
    for part in (plan.dataset, plan.validation):
        if part is not None:
            check_unchanged(Dataset.from_json(part.data))
    return trainer


def plan_differences(plan: Plan, wanted: Plan) -> list[tuple[str, Any, Any]]:
    """(dotted key, value in the run, value asked for), for all that decides what a run computes."""
    return _differences("", _computing(plan), _computing(wanted))


def _computing(plan: Plan) -> Json:
    value = plan.model_dump(mode="json", exclude=set(UNFINGERPRINTED))
    for part in (value["dataset"], value["validation"]):
        if part is not None:
            part["data"] = part["data"]["fingerprint"][:12]
    return value


def _differences(path: str, was: Any, now: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(was, dict) and isinstance(now, dict):
        return [
            difference
            for key in sorted({*was, *now})
            for difference in _differences(f"{path}.{key}" if path else key, was.get(key), now.get(key))
        ]
    return [] if was == now else [(path, was, now)]


def _refuse(differences: list[tuple[str, Any, Any]], plan: Plan) -> None:
    if differences:
        listed = "; ".join(f"{key}: the run has {was!r}, now {now!r}" for key, was, now in differences)
        raise ResumeRefused(
            f"it is not the same any more: {listed}.",
            where=plan.run_dir,
            hint="Restore what the run was made with, or start a new run with another --run-id.",
        )
