"""The data of a plan: which files, in which order, how many steps they give, and what is validated on."""

from __future__ import annotations

from trn.errors import DataError, PlanRefused
from trn.feed import Dataset, Fills, Order, open_dataset, open_manifest, refuse_uncacheable
from trn.plan.mock import MockFile
from trn.spec import DatasetSpec, Spec, ValidationSpec
from trn.spec.plan_model import BudgetPlan, DatasetPlan, FillPlan, Plan, ValidationPlan
from trn.trainer import Trainer, has_own_transform

__all__ = ["plan_data", "plan_order", "plan_validation"]

_WHOLE_BYTES = 256 << 20
"""Of parquet that a window of all row groups may be decoded from; decoded it can be many times that."""


def plan_data(spec: Spec, trainer: Trainer, mock: MockFile | None = None) -> tuple[DatasetPlan, BudgetPlan]:
    """The opened training data and the budget over it; `mock` is what the spec's mock batches become.

    Raises DataError; PlanRefused when the budget needs more than the data give and `end` is stop.
    """
    part = spec.dataset
    columns = list(part.columns or getattr(trainer, "columns", ()))
    data = _open(part, columns, part.fills) if mock is None else mock.open(columns or None, part.fills)
    if part.cache is not None:
        refuse_uncacheable(data, columns or list(data.columns))
    # a budget in passes reads that many; a budget in steps may only begin again with `end: cycle`
    passes = spec.epochs if spec.epochs is not None and spec.steps_per_epoch is None else 1
    dataset = DatasetPlan(
        data=data.to_json(),
        columns=columns or list(data.columns),
        nulls=[FillPlan(column=name, value=value) for name, value in sorted(part.fills.items())],
        batch_size=part.batch_size,
        readahead=part.readahead,
        workers=_workers(spec, trainer),
        shuffle=part.shuffle,
        window=_window(part, data),
        cache=part.cache,
        remainder=part.remainder,
        end=part.end,
        passes=None if part.end == "cycle" else passes,
    )
    order = _order(dataset, data, spec.seed)
    budget = _budget(spec, order)
    given = order.batches_total(passes)
    if part.end == "stop" and budget.max_steps > given:
        raise PlanRefused(
            f"the budget is {budget.max_steps} steps, the data give {given} ({data.rows:,} rows, {passes} passes,"
            f" batches of {part.batch_size}).",
            where="dataset.end",
            hint="Set dataset.end: cycle to go through the data again, or lower the budget.",
        )
    return dataset, budget


def _window(part: DatasetSpec, data: Dataset) -> int:
    """Row groups that are shuffled together; for all of them either a cache, or few enough to be held decoded."""
    if part.window != "all":
        return part.window
    size_bytes = sum(file.size_bytes for file in data.files)
    if part.shuffle and part.cache is None and size_bytes > _WHOLE_BYTES:
        raise PlanRefused(
            f"all would hold the whole data set decoded in memory: {size_bytes:,} bytes as parquet,"
            f" without a cache at most {_WHOLE_BYTES:,}.",
            where="dataset.window",
            hint="Set dataset.cache: FOLDER to shuffle from a mapped copy, or a window of so many row groups.",
        )
    return len(data.blocks)


def _workers(spec: Spec, trainer: Trainer) -> int:
    if spec.dataset.workers and not has_own_transform(trainer):
        raise PlanRefused(
            f"trainer {spec.trainer!r} has no `transform` of its own: there is nothing that a worker could do.",
            where="dataset.workers",
            hint="Move the heavy work of `prepare_batch` into a `transform(raw_batch, ctx)`, or remove the key.",
        )
    return spec.dataset.workers


def plan_order(plan: Plan) -> Order:
    """The order of the training data that the plan stands for."""
    return _order(plan.dataset, Dataset.from_json(plan.dataset.data), plan.seed)


def _order(part: DatasetPlan, data: Dataset, seed: int) -> Order:
    return Order(
        fingerprint=data.fingerprint,
        block_rows=tuple(block.rows for block in data.blocks),
        seed=seed,
        batch_size=part.batch_size,
        window=part.window,
        shuffle=part.shuffle,
        remainder=part.remainder,
        passes=part.passes,
    )


def _budget(spec: Spec, order: Order) -> BudgetPlan:
    per_pass = order.batches_per_pass
    steps_per_epoch = spec.steps_per_epoch or max(per_pass, 1)
    if spec.max_steps is not None:
        max_steps = spec.max_steps
    else:
        assert spec.epochs is not None, "the spec has exactly one budget"
        counted = spec.steps_per_epoch is not None
        max_steps = spec.epochs * steps_per_epoch if counted else order.batches_total(spec.epochs)
    if max_steps < 1:
        raise PlanRefused(f"the data give no whole batch of {order.batch_size} rows.", where="dataset.batch_size")
    return BudgetPlan(
        max_steps=max_steps,
        steps_per_epoch=steps_per_epoch,
        batches_per_pass=per_pass,
        by_passes=spec.epochs is not None and spec.steps_per_epoch is None,
    )


def plan_validation(spec: Spec, trainer: Trainer, training: DatasetPlan) -> ValidationPlan | None:
    """The opened validation data, read in their natural order; None without the key.

    Raises DataError (also for no rows, and for columns of another type than the training's), PlanRefused when the
    trainer cannot evaluate.
    """
    part = spec.validation
    if part is None:
        return None
    if not callable(getattr(trainer, "evaluate", None)):
        raise PlanRefused(
            f"trainer {spec.trainer!r} has no `evaluate`.", where="validation", hint="Add the hook, or remove the key."
        )
    data = _open(part, training.columns, training.fills)
    _refuse_other_types(data, Dataset.from_json(training.data))
    return ValidationPlan(
        data=data.to_json(),
        columns=training.columns,
        batch_size=part.batch_size or training.batch_size,
        every_steps=part.every_steps,
        every_epochs=part.every_epochs,
        max_batches=part.max_batches,
    )


def _refuse_other_types(validation: Dataset, training: Dataset) -> None:
    for name, kind in validation.columns.items():
        if kind != training.columns[name]:
            raise DataError(
                f'column "{name}" is {kind} here, and {training.columns[name]} in the training data'
                f" ({training.files[0].path}).",
                where=validation.files[0].path,
                hint="Write both with the same type.",
            )


def _open(part: DatasetSpec | ValidationSpec, columns: list[str], fills: Fills) -> Dataset:
    if part.manifest is not None:
        return open_manifest(part.manifest, columns=columns or None, fills=fills)
    assert part.parquet_paths is not None, "the spec has one of the two"
    return open_dataset(part.parquet_paths, columns=columns or None, fills=fills)
