"""`check_trainer`: one call that proves what a run relies on, promise by promise, and says which is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trn.testing import promises, promises_of_runs
from trn.testing.exporting import exports
from trn.testing.memory import Rows
from trn.testing.promise import kept_promise
from trn.testing.subject import Subject
from trn.testing.workspace import Workspace, kept_settings
from trn.trainer import Trainer

__all__ = ["CheckReport", "check_trainer"]

_FACTOR = 0.5
_FEWEST = 4


@dataclass(frozen=True)
class CheckReport:
    """What was proven of a trainer, in this order, and what was not looked at, with why."""

    trainer: str
    steps: int
    proven: tuple[str, ...]
    skipped: Mapping[str, str]
    losses: tuple[float, float] | None = None
    """Of the batch it learned: at first, and at last."""

    def __str__(self) -> str:
        left = "".join(f"; not {name}: {why}" for name, why in self.skipped.items())
        return f"{self.trainer}, {self.steps} steps: {', '.join(self.proven)}{left}"


def check_trainer(
    trainer: type | str | None,
    *,
    params: Mapping[str, Any] | None = None,
    rows: Rows | None = None,
    columns: Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | str | Path | None = None,
    steps: int = 8,
    learns: bool | float = True,
    learn_steps: int = 100,
    export: bool = False,
    folder: Path | None = None,
) -> CheckReport:
    """Prove of a trainer, a class or a name as a spec has it, what every run relies on. Raises AssertionError if not.

        hooks      it is found and made, and its hooks can be called as the loop calls them
        build      the same seed gives the same state twice
        batches    the same rows give the same batch, whatever was prepared before
        steps      so many steps with finite metrics
        state      state_dict is plain, changes nothing, and comes back from a checkpoint file
        evaluate   gives the same twice, and leaves weights and modes as they were
        learns     the loss of one batch falls to half, or to the factor `learns`, in `learn_steps` steps
        resume     stopped half-way and resumed by fresh objects: every metric, weight, moment and stream to the bit
        watching   evaluating and saving after every step changes no weight
        refuses    a NaN batch leaves no trace where the trainer honours `guard`
        export     with export=True: the exported file computes what the model does

    Data: `rows`, or `columns` (types by name, from which random rows are drawn), or those of the spec. `spec` is the
    path of a spec, of which the first rows are taken, or some keys of one, such as {"optimizer": {"lr": 0.1}}.
    Everything happens in this process, in `folder` or one that goes with the process. What is no mistake of the trainer
    (no data given, a wrong type) is a TypeError.
    """
    if not isinstance(learns, bool) and not 0 < learns < 1:
        raise TypeError(f"learns: expected True, False or a factor between 0 and 1, found {learns!r}")
    if steps < _FEWEST:
        raise TypeError(f"steps: expected at least {_FEWEST}, found {steps}")
    factor = None if learns is False else _FACTOR if learns is True else float(learns)
    proven: list[str] = []
    skipped: dict[str, str] = {}
    with kept_settings():
        space = Workspace.make(trainer, rows, folder=folder, columns=columns, params=params, spec=spec)
        with kept_promise("hooks"):
            can_evaluate = callable(getattr(space.load(), "evaluate", None))
            space, epoch_steps = space.over_first_rows(), max(steps // 2 - 1, 2)
            subject = Subject(space, steps, epoch_steps, space.cadences(epoch_steps, validates=can_evaluate))
            plan, made = subject.plan("hooks")
        proven.append("hooks")
        for name, proof in _proofs(subject, made, factor, learn_steps, can_evaluate=can_evaluate, export=export):
            with kept_promise(name):
                reason = proof() if callable(proof) else proof
            if reason is None:
                proven.append(name)
            else:
                skipped[name] = reason
    return CheckReport(plan.trainer.qualname, steps, tuple(proven), skipped, subject.losses)


def _proofs(
    subject: Subject, made: Trainer, factor: float | None, learn_steps: int, *, can_evaluate: bool, export: bool
) -> Iterator[tuple[str, Callable[[], str | None] | str]]:
    """What is proven, in order; in place of a proof, why there is none."""
    yield "build", partial(promises.builds_alike, subject)
    yield "batches", partial(promises.prepares_alike, subject)
    yield "steps", partial(promises_of_runs.makes_steps, subject)
    yield "state", partial(promises.stores_its_state, subject)
    yield "evaluate", partial(promises.evaluates, subject) if can_evaluate else "it has no such hook"
    learning = "not asked for" if factor is None else partial(promises_of_runs.learns, subject, factor, learn_steps)
    yield "learns", learning
    yield "resume", partial(promises_of_runs.resumes, subject)
    yield "watching", partial(promises_of_runs.survives_watching, subject)
    honours_guard = "guard" in getattr(made, "honours", ())
    yield (
        "refuses",
        partial(promises_of_runs.refuses, subject) if honours_guard else "it does not list 'guard' in `honours`",
    )
    yield "export", partial(exports, subject) if export else "not asked for"
