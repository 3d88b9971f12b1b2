"""What a run will take, worked out before it begins: rows, tokens, memory, disk. Arithmetic only.

    Plan, Sizes (measure.py), free space ──forecast_of──> Forecast ──> to_json for programs, lines for people

What was not measured is null, and `unknown` says why: nothing here is a guess. Memory is what model, optimizer and
checkpoints hold; activations come on top of it, and time is not foretold at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from trn.records import Json
from trn.spec.plan_model import DatasetPlan, Plan
from trn.spec.words import printable

__all__ = ["Files", "Forecast", "Sizes", "few_tokens", "files_of", "forecast_of", "row_length", "rows_read"]

_ENOUGH_TOKENS = 20
"""A parameter. Source: Hoffmann et al. 2022, table 3: a model trained to the best use of compute saw about so many."""
_BYTES_PER_TENSOR = 200
_BYTES_BESIDE = 80_000
"""What a checkpoint holds beside its tensors, measured: 140 to 300 bytes a tensor, and 80 kB of random streams, which
stand in the file and once more in its meta."""
_LIST = re.compile(r"fixed_size_list<.*>\[(\d+)\]")


@dataclass(frozen=True)
class Sizes:
    """What a model and its optimizer are made of. A tensor with several names counts once."""

    parameters: int
    trainable: int
    weights_bytes: int
    """Of parameters and buffers."""
    gradients_bytes: int
    optimizer_bytes: int
    average_bytes: int
    """Of the moving average, 0 without one."""
    saved_bytes: int
    """Of all tensors in a checkpoint, and so of the copy in memory that it is written from."""
    saved_tensors: int
    file_bytes: int
    """Of the same tensors in the file of a checkpoint, where each begins at a page."""

    @property
    def memory_bytes(self) -> int:
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes + self.average_bytes + self.saved_bytes

    @property
    def checkpoint_bytes(self) -> int:
        """One checkpoint and its meta, within a few per cent; more exactly the larger it is."""
        return self.file_bytes + _BYTES_PER_TENSOR * self.saved_tensors + _BYTES_BESIDE


@dataclass(frozen=True)
class Files:
    """How many checkpoints lie on the disk at the same time, at most; one file may be two of these."""

    newest: int
    best: int
    epochs: int
    written: int
    """The one that is being written while the others are still there."""

    @property
    def most(self) -> int:
        return self.newest + self.best + self.epochs + self.written


@dataclass(frozen=True)
class Forecast:
    """What one run will take."""

    plan: Plan
    sizes: Sizes | None
    files: Files
    rows: int
    """In the data."""
    rows_read: int
    """By the steps of the budget; a row counts each time it is read."""
    tokens: int | None
    """That the steps of the budget are trained on."""
    free_bytes: int
    """On the disk of the runs."""
    unknown: Mapping[str, str]
    """Why a value is null, by its name."""
    notes: tuple[str, ...] = ()
    """How the sizes were found, and what they leave out, where that needs a word."""

    @property
    def disk_bytes(self) -> int | None:
        """Of all checkpoints together, at most."""
        return None if self.sizes is None else self.files.most * self.sizes.checkpoint_bytes

    @property
    def tokens_per_parameter(self) -> float | None:
        return None if self.sizes is None or self.tokens is None else self.tokens / self.sizes.parameters

    def warnings(self) -> list[str]:
        """What may turn out badly, a sentence each."""
        found = []
        if self.disk_bytes is not None and self.disk_bytes > self.free_bytes:
            found.append(
                f"checkpoints take up to {_size(self.disk_bytes)}, {_size(self.free_bytes)} are free in"
                f" {printable(self.plan.runs_dir)}; free some space, or lower checkpoint.keep or keep_epochs."
            )
        if self.sizes is not None and self.tokens is not None:
            found += [said for said in [few_tokens(self.plan, self.tokens, self.sizes.parameters)] if said]
        return found

    def to_json(self) -> Json:
        budget, sizes = self.plan.budget, self.sizes
        return {
            "steps": budget.max_steps,
            "batches_per_pass": budget.batches_per_pass,
            "rows": self.rows,
            "passes": round(self.rows_read / self.rows, 4),
            "tokens": self.tokens,
            "tokens_per_parameter": None if (ratio := self.tokens_per_parameter) is None else float(f"{ratio:.4g}"),
            "parameters": None if sizes is None else {"total": sizes.parameters, "trainable": sizes.trainable},
            "memory": None if sizes is None else _memory(sizes),
            "disk": {
                "checkpoint_bytes": None if sizes is None else sizes.checkpoint_bytes,
                "files": {**asdict(self.files), "most": self.files.most},
                "most_bytes": self.disk_bytes,
                "free_bytes": self.free_bytes,
            },
            "seconds": None,
            "unknown": dict(self.unknown),
            "notes": list(self.notes),
            "warnings": self.warnings(),
        }

    def lines(self) -> Iterator[str]:
        """The same for people."""
        budget, sizes = self.plan.budget, self.sizes
        yield f"what run {self.plan.run_id} will take; nothing was started and nothing written"
        if sizes is None:
            yield f"  model   unknown: {self.unknown['parameters']}"
        else:
            frozen = sizes.parameters - sizes.trainable
            yield f"  model   {sizes.parameters:,} parameters" + (f", {frozen:,} of them frozen" if frozen else "")
            yield (
                f"  memory  {_size(sizes.memory_bytes)} and the activations: weights {_size(sizes.weights_bytes)},"
                f" gradients {_size(sizes.gradients_bytes)}, optimizer {_size(sizes.optimizer_bytes)},"
                + (f" average {_size(sizes.average_bytes)}," if sizes.average_bytes else "")
                + f" a copy to save {_size(sizes.saved_bytes)}"
            )
        yield f"  disk    {self._disk_line()}"
        yield f"  steps   {budget.max_steps:,} of {self.plan.dataset.batch_size:,} rows"
        yield (
            f"  data    {self.rows:,} rows, {budget.batches_per_pass:,} batches a pass;"
            f" read {self.rows_read / self.rows:.3g} times"
        )
        if self.tokens is not None:
            ratio = self.tokens_per_parameter
            yield f"  tokens  {self.tokens:,}" + ("" if ratio is None else f", {ratio:.3g} a parameter")
        elif self.plan.trainer.counts == "tokens":
            yield f"  tokens  unknown: {self.unknown['tokens']}"
        yield f"  time    unknown: {self.unknown['seconds']}"
        yield from (f"note: {said}" for said in self.notes)
        yield from (f"warning: {said}" for said in self.warnings())

    def _disk_line(self) -> str:
        files = self.files
        parts = {"newest": files.newest, "best": files.best, "of epochs": files.epochs, "in writing": files.written}
        shown = ", ".join(f"{count} {name}" for name, count in parts.items() if count)
        count = f"{files.most} checkpoint{'s' if files.most > 1 else ''}"
        free = f"{_size(self.free_bytes)} free"
        if self.sizes is None:
            return f"up to {count} ({shown}) of unknown size; {free}"
        each = _size(self.sizes.checkpoint_bytes)
        return f"up to {_size(self.disk_bytes or 0)}: {count} of {each} ({shown}); {free}"


def forecast_of(
    plan: Plan,
    sizes: Sizes | None,
    *,
    tokens_per_row: int | None,
    free_bytes: int,
    unknown: Mapping[str, str],
    notes: Sequence[str] = (),
) -> Forecast:
    """The forecast of a plan whose model has these sizes; `unknown` says why a value is not there."""
    read = rows_read(plan)
    return Forecast(
        plan=plan,
        sizes=sizes,
        files=files_of(plan),
        rows=_rows(plan),
        rows_read=read,
        tokens=None if tokens_per_row is None else read * tokens_per_row,
        free_bytes=free_bytes,
        unknown={**unknown, "seconds": "not measured"},
        notes=tuple(notes),
    )


def rows_read(plan: Plan) -> int:
    """How many rows the steps of the budget read. Only with `keep` is the last batch of a pass a short one."""
    part, budget = plan.dataset, plan.budget
    if part.remainder != "keep":
        return budget.max_steps * part.batch_size
    passes, more = divmod(budget.max_steps, budget.batches_per_pass)
    return passes * _rows(plan) + more * part.batch_size


def _rows(plan: Plan) -> int:
    return int(plan.dataset.data["rows"])


def files_of(plan: Plan) -> Files:
    """The checkpoints that stay: see trn.checkpoint.retention and trn.checkpoint.epochs."""
    kept, steps, per_epoch = plan.checkpoint, plan.budget.max_steps, plan.budget.steps_per_epoch
    epochs = _times(steps, kept.every_epochs * per_epoch)
    evaluations = 0
    if kept.best_metric is not None and plan.validation is not None:
        part = plan.validation
        evaluations = _times(steps, part.every_steps) + _times(steps, part.every_epochs * per_epoch) + 1
    made = min(_times(steps, kept.every_steps) + epochs + evaluations + 1, steps)
    newest = made if kept.keep == 0 else min(made, kept.keep)
    best = min(made - newest, 1 if evaluations else 0)
    artifacts = min(made - newest - best, epochs if kept.keep_epochs == 0 else min(epochs, kept.keep_epochs))
    return Files(newest, best, artifacts, min(made - newest - best - artifacts, 1))


def _times(steps: int, cadence: int) -> int:
    return steps // cadence if cadence else 0


def row_length(part: DatasetPlan) -> int | None:
    """How long the lists of a row are, where the data have columns of lists of one fixed length; else None."""
    lengths = {int(match[1]) for one in part.data["columns"] if (match := _LIST.fullmatch(one["type"]))}
    return lengths.pop() if len(lengths) == 1 else None


def few_tokens(plan: Plan, tokens: int, parameters: int) -> str | None:
    """A sentence where a model that starts from nothing sees little text for its size; None where it sees enough."""
    if plan.gates.regime != "from_scratch" or tokens >= _ENOUGH_TOKENS * parameters:
        return None
    return (
        f"{tokens:,} tokens for {parameters:,} parameters are {tokens / parameters:.3g} a parameter; below"
        f" {_ENOUGH_TOKENS}, more text or a smaller model gives a lower loss for the same work."
    )


def _memory(sizes: Sizes) -> Json:
    return {
        "weights_bytes": sizes.weights_bytes,
        "gradients_bytes": sizes.gradients_bytes,
        "optimizer_bytes": sizes.optimizer_bytes,
        "average_bytes": sizes.average_bytes,
        "staging_bytes": sizes.saved_bytes,
        "total_bytes": sizes.memory_bytes,
    }


def _size(size_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} GB"
