"""What is being proven something of: a trainer over a workspace, and its objects as a run makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trn.checkpoint.discover import Found
from trn.checkpoint.snapshot import Snapshots
from trn.errors import TrainerError
from trn.loop.stop import StopRequest
from trn.runner.make import Made
from trn.spec.plan_model import Plan
from trn.testing.promise import kept_promise
from trn.testing.steps import Ran, make_parts, newest_of
from trn.testing.workspace import Workspace
from trn.trainer import Trainer

__all__ = ["ALL_STATE", "STREAMS", "Subject", "make_objects", "restore_objects", "snapshot"]

ALL_STATE = "All that a step depends on belongs into state_dict, and back out of it in load_state_dict."
STREAMS = (
    "Draw from ctx.rng(row_id) or the global streams of python, numpy and torch; not from time, a counter, the order of"
    " a set, or a generator of your own that state_dict does not hold."
)


@dataclass
class Subject:
    """A trainer over a workspace, and what was found out about it on the way."""

    space: Workspace
    steps: int
    epoch_steps: int
    sets: dict[str, Any] = field(default_factory=dict)
    """Laid over the spec in each run."""
    straight: Ran | None = None
    """The run that nobody interrupts."""
    losses: tuple[float, float] | None = None
    """Of the batch that was learned."""

    def plan(self, run_id: str, sets: Mapping[str, Any] | None = None) -> tuple[Plan, Trainer]:
        return self.space.plan(run_id, max_steps=self.steps, sets={**self.sets, **(sets or {})})

    def ran(self) -> Ran:
        assert self.straight is not None, "the steps are made first"
        return self.straight


def make_objects(plan: Plan, trainer: Trainer, found: Found | None = None) -> Made:
    return make_parts(plan, trainer, found or Found(None, ()), StopRequest())


def restore_objects(subject: Subject, plan: Plan, trainer: Trainer) -> Made:
    """Fresh objects, at the end of the straight run."""
    return make_objects(plan, trainer, newest_of(subject.ran().run_dir, plan))


def snapshot(trainer: Trainer, state: Any) -> Any:
    """A copy of what state_dict gives, as a checkpoint takes it. Where it cannot, that is the promise that breaks."""
    with kept_promise("state"):
        given: Any = trainer.state_dict(state)
        if not isinstance(given, dict):
            raise TrainerError(f"expected a dict, found {type(given).__name__}.", where="state_dict")
        return Snapshots().take(given)
