"""What a run relies on, proven by runs: each function makes some in folders of their own, and compares their ends."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from trn.feed import Dataset, read_sequential
from trn.testing.compare import final_payload, first_difference, lines, own_files
from trn.testing.promise import BrokenPromise, breaks
from trn.testing.promises import is_restored
from trn.testing.steps import Ran, bad_batch, go_on, start_run
from trn.testing.subject import ALL_STATE, Subject
from trn.testing.workspace import Workspace
from trn.trainer import TorchTrainer
from trn.trainer.torch_schedules import PLATEAU

__all__ = ["learns", "makes_steps", "refuses", "resumes", "survives_watching"]


def makes_steps(subject: Subject) -> None:
    """A run to its end, each step with finite numbers; what is proven later is held against it."""
    plan, trainer = subject.plan("straight")
    subject.straight = start_run(plan, trainer)
    made = len(subject.straight.lines)
    if made != subject.steps:
        ending = subject.straight.ending
        raise BrokenPromise(
            "steps",
            f"expected {subject.steps} steps, found {made}: the run ended as {ending.status}, {ending.reason}.",
            hint="Give rows or a spec with which no gate ends the run so early.",
        )


def learns(subject: Subject, factor: float, steps: int) -> None:
    """The loss of one batch, trained on again and again, falls to `factor` of what it was."""
    # one epoch: an artifact of each would be a checkpoint each step
    sets = {**subject.sets, "dataset.shuffle": False, "steps_per_epoch": steps}
    ran = start_run(*_on_one_batch(subject).plan("learns", max_steps=steps, sets=sets))
    losses = ran.losses
    if None in losses:
        raise BrokenPromise(
            "learns",
            "expected train_loss in the metrics of each step, found none.",
            where=f"step {losses.index(None) + 1}",
            hint="Return it, or say learns=False.",
        )
    first, last = losses[0], sum(losses[-_LAST:]) / len(losses[-_LAST:])
    if not (last <= first * factor if first > 0 else last < first):
        raise BrokenPromise(
            "learns",
            f"expected a loss of at most {factor} x {first:.6g} after {steps} steps on one batch, found {last:.6g}.",
            hint="Look at the learning rate, at whether the loss reaches every parameter, and at the targets;"
            " or give learns=FACTOR, learn_steps=N, or learns=False.",
        )
    subject.losses = first, last


def _on_one_batch(subject: Subject) -> Workspace:
    """The same spec over the first rows alone, which begin again at each step."""
    plan, _ = subject.plan("first")
    part, space = plan.dataset, subject.space
    rows = next(iter(read_sequential(Dataset.from_json(part.data), part.columns, part.batch_size)))
    return space.over(pa.Table.from_batches([rows]), "first_batch.parquet", batch_size=rows.num_rows)


_SAME_FILES = (
    "Let load_checkpoint give back all that save_checkpoint wrote, and write nothing that a clock or a name of its own"
    " is in."
)

_LAST = 3
"""So many last losses are averaged: dropout makes one of them uneven."""


def resumes(subject: Subject) -> None:
    """A run stopped within an epoch, and taken up by fresh objects, ends as one that was not, to the bit."""
    is_restored(subject)
    stop_after = subject.epoch_steps + 1
    plan, trainer = subject.plan("resumed")
    stopped = start_run(plan, trainer, stop_after=stop_after)
    if stopped.progress.step != stop_after:
        raise BrokenPromise("resume", f"expected a stop after step {stop_after}, found {stopped.progress.step}.")
    go_on(*subject.plan("resumed"))
    _same(
        "resume",
        subject.ran().run_dir,
        stopped.run_dir,
        meaning=f"without a stop, and stopped after step {stop_after} and resumed",
        hint=ALL_STATE,
    )


def survives_watching(subject: Subject) -> None:
    """Evaluating and saving after every step leads to the same weights as doing it at the end only."""
    straight, watched = subject.ran(), {"checkpoint_every": 1}
    if straight.ctx.plan.validation is not None and not _follows_evaluations(straight):
        watched["validation.every_steps"] = 1
    ran = start_run(*subject.plan("watched", watched))
    _same(
        "watching",
        straight.run_dir,
        ran.run_dir,
        meaning="evaluated and saved now and then, and after every step",
        hint="evaluate, sample and state_dict must leave the training as it was: weights, modes, gradients, counters.",
        parts=("trainer", "rng"),
    )


def _follows_evaluations(ran: Ran) -> bool:
    """Whether what is trained depends on what was evaluated, by the plan's schedule or a hook of the trainer's own."""
    schedule, own = ran.ctx.plan.schedule, getattr(type(ran.trainer), "evaluated", None)
    return own not in (None, TorchTrainer.evaluated) or (schedule is not None and schedule.kind == PLATEAU)


def refuses(subject: Subject) -> str | None:
    """A batch with a NaN leaves no trace where guard.policy is skip; why it was not tried, where no NaN gets there."""
    skipping = {"guard.policy": "skip", "guard.lr_decay": 1.0, "guard.max_skips": 3}
    try:
        spoiled = start_run(*subject.plan("spoiled", skipping), faults=[bad_batch(2)])
    except TypeError:
        return "no column can hold a NaN"
    if not spoiled.progress.gates.skips:
        return "a NaN in the rows does not reach the loss"
    without = start_run(*subject.plan("without", skipping), leave_out=2)
    _same(
        "refuses",
        without.run_dir,
        spoiled.run_dir,
        meaning="without the second batch, and with a NaN in it",
        hint="Raise NumericalInstability before anything is changed: weights, buffers, moments, averages, counters.",
        parts=("trainer", "rng"),
    )
    return None


def _same(promise: str, expected: Path, found: Path, *, meaning: str, hint: str, parts: tuple[str, ...] = ()) -> None:
    """The metrics line by line, which name the step, then the last checkpoint: `parts` of it, or all."""
    ours, theirs = lines(expected, "train_metrics.jsonl"), lines(found, "train_metrics.jsonl")
    for one, other in zip(ours, theirs, strict=False):
        breaks(promise, first_difference(one, other), where=f"step {one['step']}", meaning=meaning, hint=hint)
    breaks(promise, first_difference(len(ours), len(theirs)), where="the number of steps", meaning=meaning, hint=hint)
    if not parts:
        validations = [lines(run_dir, "val_metrics.jsonl") for run_dir in (expected, found)]
        breaks(
            promise,
            first_difference(validations[0], validations[1]),
            where="val_metrics.jsonl",
            meaning=meaning,
            hint=hint,
        )
    ends = [final_payload(run_dir) for run_dir in (expected, found)]
    if parts:
        ends = [{part: end[part] for part in parts} for end in ends]
    breaks(promise, first_difference(ends[0], ends[1]), where="the state at the end", meaning=meaning, hint=hint)
    written = first_difference(own_files(expected), own_files(found))
    breaks(promise, written, where="what save_checkpoint wrote at the end", meaning=meaning, hint=_SAME_FILES)
