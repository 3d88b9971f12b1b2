"""The resume contract: what a run was planned to be and what is here now are compared key by key.

    same            the run goes on by its plan
    safe            cadences, retention, limits: a new revision of the plan, without being asked
    allowed         what the user named with --allow-change: a new revision
    anything else   refused, with every difference

A revision keeps the run's identity and the fingerprints before it, so that its checkpoints stay its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trn.errors import ResumeRefused, UsageError
from trn.feed import Dataset, check_unchanged
from trn.plan import (
    NOT_LIBRARIES,
    make_plan,
    refuse_unfit_world,
    require_inputs,
    use_spec_folder,
    versions_here,
)
from trn.provenance.code import code_sha256
from trn.ranks import World
from trn.records import Json
from trn.reopen import other_code
from trn.spec import LoadedSpec
from trn.spec.plan_model import UNFINGERPRINTED, Plan
from trn.trainer import Trainer, load_trainer
from trn.trainer.torch_schedules import PLATEAU

__all__ = ["ALLOWABLE", "Difference", "compare_with_spec", "compare_with_world", "plan_differences", "revise"]

SAFE = frozenset(
    {
        "checkpoint.every_steps",
        "checkpoint.every_epochs",
        "checkpoint.keep",
        "checkpoint.keep_epochs",
        "checkpoint.save_delay_steps",
        "export.atol",
        "export.onnx",
        "export.opset",
        "export.parity_policy",
        "export.reason",
        "grace_s",
        "hang_s",
        "dataset.cache",
        "dataset.readahead",
        "dataset.workers",
        "max_runtime_s",
        "metric_every",
        "owner",
        "release_ref",
        "sample_every",
        "validation.every_epochs",
        "validation.every_steps",
    }
)
_WHEN_EVALUATED = {"validation.every_epochs", "validation.every_steps"}
"""Not safe where the learning rate follows the evaluations."""
ALLOWABLE = {
    "max_steps": ("budget.max_steps", "budget.by_passes", "dataset.passes"),
    "lr": ("optimizer.arguments.lr", "schedule.lr_max", "schedule.lr_min"),
    "threads": ("threads",),
    "versions": ("versions.",),
    "code": ("trainer.code_sha256",),
    "gates": ("gates.",),
    "guard": ("guard.",),
    "ranks": ("world_size",),
}
"""What --allow-change takes, and the keys of the plan that it covers; one that ends with a dot covers those below."""


@dataclass(frozen=True)
class Difference:
    """One key of the plan, with what the run has and what was asked for now."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: the run has {self.was!r}, now {self.now!r}"

    @property
    def name(self) -> str | None:
        """What --allow-change calls it, None where nothing allows it."""
        for name, covered in ALLOWABLE.items():
            if any(self.key == one or (one.endswith(".") and self.key.startswith(one)) for one in covered):
                return name
        return None


def compare_with_spec(
    plan: Plan, loaded: LoadedSpec, world: World, trainer: Trainer | None = None
) -> tuple[Plan, Trainer]:
    """What the spec plans to now, with this run's identity, and the trainer. Raises what planning raises.

    The schedule keeps the length that the run began with: a longer budget goes on at its last learning rate instead
    of climbing again.
    """
    wanted, trainer = make_plan(loaded, run_id=plan.run_id, runs_dir=Path(plan.runs_dir), world=world, trainer=trainer)
    if not loaded.spec.threads:  # left to the machine; the run has made its choice, on whatever cores it goes on
        wanted = wanted.model_copy(update={"threads": plan.threads})
    if wanted.schedule is not None and plan.schedule is not None:
        schedule = wanted.schedule.model_copy(update={"total_steps": plan.schedule.total_steps})
        wanted = wanted.model_copy(update={"schedule": schedule})
    return wanted.model_copy(update={"run_dir": plan.run_dir}), trainer


def compare_with_world(plan: Plan, world: World, *, allowed: Collection[str]) -> tuple[Plan, Trainer]:
    """The run's plan with the code, the libraries and the ranks that are here now, and the trainer.

    Raises DataError; PlanRefused where the batch cannot be shared out among the ranks; ResumeRefused for other code of
    the trainer that is not allowed, before it runs, where that can be foreseen.
    """
    use_spec_folder(Path(plan.spec_folder))
    for part in (plan.dataset, plan.validation):
        if part is not None:
            check_unchanged(Dataset.from_json(part.data))
    require_inputs(plan)
    versions = versions_here(tuple(name for name in plan.versions if name not in NOT_LIBRARIES))
    here = plan.model_copy(update={"versions": versions, "world_size": world.world_size})
    if other := other_code(plan):
        revise(plan, _with_code(here, other), allowed=allowed)
    trainer = load_trainer(plan.trainer.name)
    refuse_unfit_world(plan, trainer, world)
    return _with_code(here, code_sha256(type(trainer).__module__)), trainer


def _with_code(plan: Plan, digest: str) -> Plan:
    return plan.model_copy(update={"trainer": plan.trainer.model_copy(update={"code_sha256": digest})})


def revise(plan: Plan, wanted: Plan, *, allowed: Collection[str]) -> tuple[Plan, tuple[Difference, ...]]:
    """The plan to go on with, and how it differs from `plan`: nothing, or a new revision.

    Raises UsageError for a name that cannot be allowed, ResumeRefused naming every difference that is not.
    """
    if unknown := sorted(set(allowed) - set(ALLOWABLE)):
        known = ", ".join(ALLOWABLE)
        raise UsageError(f"{unknown[0]!r} cannot be allowed; expected {known}.", where="--allow-change")
    differences = plan_differences(plan, wanted)
    is_followed = plan.schedule is not None and plan.schedule.kind == PLATEAU
    safe = SAFE - _WHEN_EVALUATED if is_followed else SAFE
    refused = [one for one in differences if one.key not in safe and one.name not in allowed]
    if refused:
        raise ResumeRefused(
            f"it is not the same any more: {'; '.join(map(str, refused))}.", where=plan.run_dir, hint=_hint(refused)
        )
    if not differences:
        # the same run, but code, data and first weights may lie elsewhere now
        here = (
            "config_path",
            "base_config_path",
            "spec_folder",
            "dataset",
            "validation",
            "weights",
            "inputs",
            "experiment",
            "log",
            "heartbeat_s",
            "events",
            "sample_prompts",
            "sample_seed",
        )
        return plan.model_copy(update={key: getattr(wanted, key) for key in here}), ()
    changes = {
        "revision": plan.revision + 1,
        "earlier_fingerprints": [*plan.earlier_fingerprints, plan.fingerprint],
    }
    return wanted.model_copy(update=changes).sealed(), tuple(differences)


def _hint(refused: Sequence[Difference]) -> str:
    names = {one.name for one in refused}
    if None in names:
        return "Restore what the run was made with, or start a new run, under another run id."
    options = " ".join(f"--allow-change {name}" for name in ALLOWABLE if name in names)
    return f"Restore what the run was made with, or go on with {options}."


def plan_differences(plan: Plan, wanted: Plan) -> list[Difference]:
    """All keys in which two plans differ, of those that decide what a run computes."""
    return _differences("", _computing(plan), _computing(wanted))


def _computing(plan: Plan) -> Json:
    value = plan.model_dump(mode="json", exclude=set(UNFINGERPRINTED))
    for part in (value["dataset"], value["validation"]):
        if part is not None:
            part["data"] = part["data"]["fingerprint"][:12]
    if value["weights"] is not None:
        del value["weights"]["path"]  # what counts is the content
    for one in value["inputs"]:
        del one["path"]
    value["trainer"]["code_sha256"] = value["trainer"]["code_sha256"][:12]
    return value


def _differences(path: str, was: Any, now: Any) -> list[Difference]:
    if isinstance(was, dict) and isinstance(now, dict):
        return [
            difference
            for key in sorted({*was, *now})
            for difference in _differences(f"{path}.{key}" if path else key, was.get(key), now.get(key))
        ]
    return [] if was == now else [Difference(path, was, now)]
