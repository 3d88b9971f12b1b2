"""What the user has in hand inside `with trn.open_run(...) as run:`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch

from trn.errors import UsageError
from trn.feed.tensors import to_tensors
from trn.records import Outcome
from trn.session.job import OwnJob
from trn.session.own_loop import Evaluate, OwnLoop
from trn.session.steps import Steps
from trn.spec.plan_model import Plan
from trn.trainer import Context

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Run"]

_Kind = Literal["feed", "raw", "steps"]


class Run:
    """A run around your own loop; a batch of `feed`, an update, a `log`: that is a step.

    `feed` gives the columns of each global batch as tensors, `raw` its rows as a pyarrow.RecordBatch, `steps` only the
    number of the step, for a loop that brings its own data; choose one. Each ends where the run ends: budget, gate,
    signal. What is due after a step (evaluation, checkpoint) is done when the next one is asked for.
    """

    def __init__(self, job: OwnJob, loop: OwnLoop, finished: Outcome | None) -> None:
        self._job, self._loop, self._finished = job, loop, finished
        self._stop, self._steps = job.stop, job.steps
        self._kind: _Kind | None = None
        self.ctx: Context = job.made.ctx
        """What a trainer's hooks would know: `row_ids`, `rng(row_id)`, `report(...)`, folders."""
        self.outcome: Outcome | None = finished
        """How the run ended; None until the block is left."""
        self.feed: Iterator[dict[str, torch.Tensor]] = _Batches(self, "feed", to_tensors)
        self.raw: Iterator[pa.RecordBatch] = _Batches(self, "raw", lambda rows: rows)
        self.steps: Iterator[int] = _Batches(self, "steps", lambda rows: self.step)

    def track(self, **objects: Any) -> None:
        """Let these survive a kill: whatever has `state_dict` and `load_state_dict`. A run that goes on restores them.

        Before the first batch; several times, if need be, under other names. Random streams of python, numpy and torch
        and the place in the data are kept anyway. Raises UsageError, ResumeRefused.
        """
        self._require_not_begun("run.track")
        for name, value in objects.items():
            self._job.tracked.add(name, value)

    def evaluation(self, function: Evaluate) -> Evaluate:
        """Let `function(batches)` evaluate wherever the spec's `validation` says; it returns `{"val_loss": ...}`.

        It is given what the loop is given: tensors, or rows. Its random draws change no stream. Also a decorator.
        """
        self._require_not_begun("run.evaluation")
        self._loop.evaluation = function
        return function

    def gate(self, **values: Any) -> None:
        """Call it before the update: raises NumericalInstability where a value is not finite, and the run ends.

        Values are numbers or 0-d tensors, and stand in the step's line without being given to `log` again.
        """
        (self._steps or self._not_begun("run.gate")).take(values, "run.gate")

    def log(self, *, tokens: int | None = None, **metrics: Any) -> None:
        """The update of this step is made: its line, its gates. Once for each batch, after the optimizer's step.

        `tokens` is how many the step consumed, where that means anything.
        """
        (self._steps or self._not_begun("run.log")).made(metrics, tokens)

    def checkpoint(self) -> None:
        """Make a checkpoint at the end of this step, whatever the cadence says."""
        (self._steps or self._not_begun("run.checkpoint")).wants_checkpoint = True

    @property
    def should_stop(self) -> bool:
        """Whether the run was asked to end, or has ended: for long work inside a step. The feed ends by itself."""
        return self._is_over or self._stop.requested()

    @property
    def step(self) -> int:
        """The step that is being made, from 1; 0 before the first."""
        return self.ctx.step

    @property
    def epoch(self) -> int:
        """Its epoch, from 0."""
        return self.ctx.epoch

    @property
    def device(self) -> torch.device:
        """The spec's. Batches come in the memory of the CPU."""
        return self.ctx.device

    @property
    def hyperparams(self) -> dict[str, Any]:
        """The spec's."""
        return dict(self.ctx.params)

    @property
    def plan(self) -> Plan:
        return self._job.plan

    @property
    def run_dir(self) -> Path:
        return self.ctx.run_dir

    @property
    def exact(self) -> bool:
        """Whether this run, killed and resumed, comes to the same bits, as far as can be seen; see the outcome."""
        return not self._job.inexact_because

    @property
    def exit_code(self) -> int:
        """For sys.exit: that of the outcome. Raises UsageError before the block is left."""
        if self.outcome is None:
            raise UsageError("the run has not ended.", where="run.exit_code", hint="Ask after the `with` block.")
        return self.outcome.exit_code

    @property
    def _is_over(self) -> bool:
        return self._finished is not None or (self._steps is not None and self._steps.ending is not None)

    def _steps_of(self, kind: _Kind) -> Steps | None:
        """The steps of the run that is taken as `kind`, from now on; None where the run is finished."""
        if self._finished is not None or (self._steps is None and self._job.is_left):
            return None
        if self._steps is None:
            self._stop.breakable = False
            self._kind, self._loop.takes_rows = kind, kind == "raw"
            self._steps = self._job.begin(with_data=kind != "steps")
        if kind != self._kind:
            raise UsageError(
                f"this run is on run.{self._kind}.", where=f"run.{kind}", hint="Take batches from one of them only."
            )
        return self._steps

    def _not_begun(self, asked: str) -> NoReturn:
        hint = "Call it in the loop over run.feed, once a batch."
        raise UsageError("there is no step under way.", where=asked, hint=hint)

    def _require_not_begun(self, where: str) -> None:
        if self._job.is_left:
            raise UsageError("the block is left.", where=where, hint="Call it inside, before the first batch.")
        if self._steps is not None:
            raise UsageError("the loop has begun.", where=where, hint="Call it before the first batch.")


class _Batches:
    """One of the ways to take steps."""

    def __init__(self, run: Run, kind: _Kind, give: Callable[[pa.RecordBatch], Any]) -> None:
        self._run, self._kind, self._give = run, kind, give
        self._steps: Steps | None = None

    def __iter__(self) -> _Batches:
        return self

    def __next__(self) -> Any:
        if self._steps is None:
            self._steps = self._run._steps_of(self._kind)
        raw = None if self._steps is None else self._steps.begin()
        if raw is None:
            raise StopIteration
        return self._give(raw.record_batch)
