"""What no single field can decide: rules between fields, on a document that may be wrong in other ways too.

A rule looks only at values that have the right type and leaves the others to the schema, so that all problems of a
spec come out together. No rule needs data, a trainer or a machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from trn.spec.mock_batches import broken_batches
from trn.spec.words import found

__all__ = ["Broken", "broken_rules"]

Broken = tuple[tuple[str | int, ...], str]
Document = Mapping[str, Any]

_DEFAULT_BATCH = 32  # of DatasetSpec
_SOURCES = {
    "dataset": ("parquet_paths", "manifest", "mock_batches"),
    "validation": ("parquet_paths", "manifest"),
}
_HUGE = 1e100  # beyond it the schema refuses, and arithmetic would overflow


def broken_rules(document: Document) -> list[Broken]:
    """Path and message for each broken rule; defaults count where a key is not given."""
    return [
        *_budget(document),
        *_data(document),
        *_learning_rate(document),
        *_switches(document),
        *_json_values(document.get("hyperparams"), ("hyperparams",)),
        *_json_values(document.get("experiment"), ("experiment",)),
        *_json_values(_section(document, "schedule").get("arguments"), ("schedule", "arguments")),
    ]


def _section(document: Document, name: str) -> Document:
    value = document.get(name)
    return value if isinstance(value, Mapping) else {}


def _number(section: Document, key: str) -> float | None:
    """The number at `key`, None for what the schema refuses by itself: no field that a rule looks at is negative."""
    value = section.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not 0 <= value < _HUGE:
        return None
    return int(value) if value == int(value) else value


def _budget(document: Document) -> Iterator[Broken]:
    budgets = [key for key in ("max_steps", "epochs") if document.get(key) is not None]
    if not budgets:
        yield ("max_steps",), "a budget is required, never defaulted: write max_steps or epochs"
    if len(budgets) == 2:
        yield ("max_steps",), "expected one budget, found max_steps and epochs; set one of them to null"
        return
    steps = _number(document, "max_steps")
    epochs, steps_per_epoch = _number(document, "epochs"), _number(document, "steps_per_epoch")
    if epochs is not None and steps_per_epoch is not None:
        steps = epochs * steps_per_epoch
    warmup = _number(_section(document, "schedule"), "warmup_steps")
    if warmup is not None and steps and warmup >= steps:
        yield (
            ("schedule", "warmup_steps"),
            f"expected fewer than the budget's {found(steps)} steps, found {found(warmup)}",
        )


def _data(document: Document) -> Iterator[Broken]:
    for name, sources in _SOURCES.items():
        section = document.get(name)
        if not isinstance(section, Mapping):
            continue
        given = [key for key in sources if section.get(key) is not None]
        if not given:
            yield (name,), "expected parquet_paths or manifest, found neither"
        if len(given) > 1:
            message = f"expected one source, found {given[0]} and {given[1]}; set one of them to null"
            yield (name, given[1]), message
    accumulate = _number(_section(document, "optimizer"), "accumulate")
    dataset = _section(document, "dataset")
    batch = _number(dataset, "batch_size") if "batch_size" in dataset else _DEFAULT_BATCH
    if accumulate is not None and accumulate >= 1 and batch is not None and batch % accumulate:
        message = f"expected a multiple of optimizer.accumulate ({found(accumulate)}), found {found(batch)}"
        yield ("dataset", "batch_size"), message
    if dataset.get("mock_batches") is not None:
        for path, message in broken_batches(dataset["mock_batches"], None if batch is None else int(batch)):
            yield ("dataset", "mock_batches", *path), message


def _learning_rate(document: Document) -> Iterator[Broken]:
    schedule, optimizer = _section(document, "schedule"), _section(document, "optimizer")
    if not schedule:
        return
    lr, lr_max, lr_min = _number(optimizer, "lr"), _number(schedule, "lr_max"), _number(schedule, "lr_min")
    if "lr" not in optimizer and schedule.get("lr_max") is None:
        yield ("schedule", "lr_max"), "a schedule needs a learning rate: write lr_max here, or optimizer.lr"
    if lr is not None and lr_max is not None and lr != lr_max:
        yield ("schedule", "lr_max"), f"expected optimizer.lr ({found(lr)}), found {found(lr_max)}; keep one of them"
    highest = lr if lr_max is None else lr_max
    if lr_min is not None and highest and lr_min > highest:
        yield ("schedule", "lr_min"), f"expected at most the highest rate ({found(highest)}), found {found(lr_min)}"


def _switches(document: Document) -> Iterator[Broken]:
    optimizer = _section(document, "optimizer")
    if optimizer.get("nesterov") is True and optimizer.get("momentum", 0) == 0:
        yield ("optimizer", "nesterov"), "needs optimizer.momentum above 0"
    ema = _section(document, "ema")
    if ema.get("evaluate") is True and ema.get("enabled", False) is False:
        yield ("ema", "evaluate"), "needs ema.enabled: true"
    checkpoint = _section(document, "checkpoint")
    if _number(checkpoint, "save_delay_steps") and _number(checkpoint, "save_delay_epochs"):
        yield ("checkpoint", "save_delay_epochs"), "expected one delay, found save_delay_steps too; keep one of them"
    if document.get("add_version") is True and document.get("run_id") is None:
        yield ("add_version",), "needs a run_id, below which the versions are"
    gates = _section(document, "gates")
    if gates.get("require_target") is True and gates.get("target_val_loss") is None:
        yield ("gates", "require_target"), "needs gates.target_val_loss"


def _json_values(value: object, path: tuple[str | int, ...]) -> Iterator[Broken]:
    """Numbers that JSON cannot hold, and values that it does not have."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _json_values(child, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            yield from _json_values(child, (*path, index))
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, f"expected a finite number, found {found(value)}"
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        yield path, f"expected a number of at most 64 bits, found {found(value)}"
    elif not (value is None or isinstance(value, (str, int, float))):
        yield path, f"expected a JSON value, found {found(value)}"
