"""A run in this process: the loop, the journal and the checkpoints of any run, in a folder of its own.

    plan -> publish -> make (a fresh trainer, seeded) -> restore -> loop -> folder

What ends a run there is raised here: no outcome is written, no signal is heeded, no process is begun.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from trn.checkpoint.discover import Found, find_newest_good
from trn.feed import RawBatch
from trn.files import Lock
from trn.loop.batches import Batches
from trn.loop.loop import Ending, train
from trn.loop.progress import Progress
from trn.loop.stop import StopRequest
from trn.plan.publish import LOCK_NAME, publish_run
from trn.records import Json, new_job_id
from trn.reopen import announced_steps, prepare_torch
from trn.runner.company import Company
from trn.runner.execute import Job, Journal, finish_saving, parts_of
from trn.runner.make import Made, make
from trn.runner.reading import open_feed
from trn.runner.restore import Restored, restore_folder
from trn.runner.transforming import open_batches
from trn.spec.plan_model import Plan
from trn.testing.compare import lines
from trn.testing.memory import Rows
from trn.testing.workspace import Workspace, kept_settings
from trn.trainer import Context, Trainer

__all__ = ["Fault", "Ran", "bad_batch", "go_on", "make_parts", "newest_of", "run_steps", "start_run"]

Fault = Callable[[int, pa.RecordBatch], pa.RecordBatch]
"""Which batch of the run it is, from 1, and its rows, to the rows that the trainer is given instead."""


@dataclass(frozen=True)
class Ran:
    """What a run left: its folder, and the live objects as they stood at its end."""

    run_dir: Path
    trainer: Trainer
    state: Any
    ctx: Context
    progress: Progress
    ending: Ending

    @property
    def lines(self) -> list[Json]:
        """A line each step, without what a clock gave."""
        return lines(self.run_dir, "train_metrics.jsonl")

    @property
    def losses(self) -> list[Any]:
        return [line["train_loss"] for line in self.lines]


def run_steps(
    trainer: type | str | None,
    rows: Rows | None = None,
    steps: int = 10,
    *,
    params: Mapping[str, Any] | None = None,
    columns: Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | str | Path | None = None,
    faults: Sequence[Fault] = (),
    folder: Path | None = None,
) -> Ran:
    """Train so many steps on these rows, which begin anew where they end; returns where that led.

    `spec` is the path of a spec, or some of its keys. `folder` holds the run, by default one that goes with this
    process. Raises what ends a run: TrainerError, NumericalInstability, PlanRefused, DataError ...
    """
    with kept_settings():
        space = Workspace.make(trainer, rows, folder=folder, columns=columns, params=params, spec=spec)
        plan, made = space.plan("run", max_steps=steps)
        return start_run(plan, made, faults=faults)


def bad_batch(step: int, *, value: float = float("nan"), column: str | None = None) -> Fault:
    """A fault for `run_steps`: the first number of that batch is `value`, in `column` or the first that can hold it."""

    def spoil(number: int, rows: pa.RecordBatch) -> pa.RecordBatch:
        if number != step:
            return rows
        fitting = [name for name in rows.schema.names if _holds_floats(rows.schema.field(name).type)]
        if not fitting or (column is not None and column not in fitting):
            raise TypeError(
                f"bad_batch: expected a column of floating point numbers, found {', '.join(fitting) or 'none'}"
            )
        return _with_first(rows, column or fitting[0], value)

    return spoil


def start_run(
    plan: Plan,
    trainer: Trainer,
    *,
    stop_after: int | None = None,
    leave_out: int | None = None,
    faults: Sequence[Fault] = (),
) -> Ran:
    """Publish the run's folder and train.

    `stop_after` asks it to stop once so many batches are given; `leave_out` is the number of one that is passed over.
    """
    publish_run(plan, {}, job_id=new_job_id(), note="trn.testing").release()
    return _run(plan, trainer, _Course(stop_after, leave_out, tuple(faults)), is_resume=False)


def go_on(plan: Plan, trainer: Trainer) -> Ran:
    """Take the run up from its newest checkpoint, with a trainer that has no memory of it."""
    return _run(plan, trainer, _Course(), is_resume=True)


def make_parts(plan: Plan, trainer: Trainer, found: Found, stop: StopRequest) -> Made:
    """Setup and configure as a run does them, then the state of the checkpoint found. Raises what they raise."""
    prepare_torch(plan)
    made = make(plan, trainer, found.meta, stop, Company())
    if made.error is not None:
        raise made.error
    return made


@dataclass(frozen=True)
class _Course:
    """What is done to a run on its way; batches are counted from 1."""

    stop_after: int | None = None
    leave_out: int | None = None
    faults: tuple[Fault, ...] = ()


def _run(plan: Plan, trainer: Trainer, course: _Course, *, is_resume: bool) -> Ran:
    run_dir, job, stop, company = Path(plan.run_dir), Job(plan, trainer, new_job_id()), StopRequest(), Company()
    with Lock(run_dir / LOCK_NAME):
        found = newest_of(run_dir, plan) if is_resume else Found(None, ())
        made = make_parts(plan, trainer, found, stop)
        journal, restored = Journal.open(plan, job.job_id), Restored(None, Progress(), {})
        if is_resume:
            logs = (journal.events, journal.metrics, journal.val_metrics)
            restored = restore_folder(plan, found, job.job_id, *logs)
        feed = open_batches(plan, trainer, made.ctx, open_feed(plan, restored.progress, company, stop), stop)
        parts = parts_of(job, journal, made, _Between(feed, stop, course), stop, company)
        ended = False
        try:
            ending = train(parts, restored.progress, restored.last_line)
            ended = True
        finally:
            feed.close()
            finish_saving(parts.saver, journal, must_hold=ended)
            journal.sync()
            journal.close_metrics()
            journal.events.close()
    return Ran(run_dir, trainer, made.state, made.ctx, restored.progress, ending)


def newest_of(run_dir: Path, plan: Plan) -> Found:
    """The newest checkpoint that holds. Raises NoGoodCheckpoint."""
    return find_newest_good(run_dir, lineage=plan.lineage, announced=announced_steps(run_dir))


class _Between(Batches):
    """The batches of a run, as its course wants them; the stop comes as a signal would, in the midst of a step."""

    def __init__(self, batches: Batches, stop: StopRequest, course: _Course) -> None:
        self._batches, self._stop, self._course = batches, stop, course
        self._given = 0
        self.is_raw = batches.is_raw

    def next(self) -> RawBatch | None:
        raw = self._batches.next()
        self._given += 1
        if raw is not None and self._given == self._course.leave_out:
            return self.next()
        if raw is None:
            return None
        for fault in self._course.faults:
            raw = raw._replace(record_batch=fault(self._given, raw.record_batch))
        if self._given == self._course.stop_after:
            self._stop.ask("preempted", "trn.testing: to be resumed")
        return raw

    def ready(self, raw: RawBatch, ctx: Context) -> Any:
        return self._batches.ready(raw, ctx)

    def close(self) -> None:
        self._batches.close()


def _holds_floats(kind: pa.DataType) -> bool:
    while pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_floating(kind))


def _with_first(rows: pa.RecordBatch, name: str, value: float) -> pa.RecordBatch:
    """A copy in which the first number of a column is `value`; nothing else of it changes."""
    column = rows.column(name)
    values = column.to_pylist()
    place = values
    while isinstance(place[0], list):
        place = place[0]
    place[0] = value
    at = rows.schema.get_field_index(name)
    return rows.set_column(at, rows.schema.field(name), pa.array(values, column.type))
