"""Which rows are evaluated: the plan's own validation data, or what the user names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trn.errors import DataError, UsageError
from trn.feed import Dataset, check_unchanged, open_dataset, open_manifest
from trn.records import JsonError, read_json
from trn.spec import load_spec
from trn.spec.plan_model import Plan

__all__ = ["ValidationData", "given_data", "planned_data"]

_SPECS = (".yaml", ".yml", ".toml")


@dataclass(frozen=True)
class ValidationData:
    """Rows in their natural order, and how they are cut."""

    source: Literal["plan", "given"]
    dataset: Dataset
    columns: tuple[str, ...]
    batch_size: int
    max_batches: int
    """0: all of them."""


def planned_data(plan: Plan, *, batch_size: int | None, max_batches: int | None) -> ValidationData:
    """The run's validation data, unchanged. Raises DataError where they are gone or others, UsageError without any."""
    part = plan.validation
    if part is None:
        raise UsageError("this run has no validation data.", where="--data", hint="Name some: --data PATH.")
    dataset = Dataset.from_json(part.data)
    try:
        check_unchanged(dataset)
    except DataError as error:
        hint = "Bring the original back, or name data with --data."
        raise DataError(error.message, where=error.where, hint=hint) from error
    return ValidationData(
        "plan",
        dataset,
        tuple(part.columns),
        part.batch_size if batch_size is None else batch_size,
        part.max_batches if max_batches is None else max_batches,
    )


def given_data(plan: Plan, names: Sequence[str], *, batch_size: int | None, max_batches: int | None) -> ValidationData:
    """Parquet files, folders, globs and URLs; or one manifest; or one spec, of which the validation data are meant.

    They need the columns of the run, of the same types, and get its fills. All rows, unless `max_batches` says less.
    Raises DataError; SpecError; UsageError for a spec without validation data.
    """
    planned = plan.dataset if plan.validation is None else plan.validation
    dataset = _open(names, planned.columns, plan)
    for name, kind in Dataset.from_json(plan.dataset.data).columns.items():
        found = dataset.columns.get(name)
        if found is not None and found != kind:
            raise DataError(
                f'column "{name}" is {found} here, the run was trained with {kind}.',
                where=dataset.files[0].path,
                hint="Write it with the same type.",
            )
    return ValidationData(
        "given",
        dataset,
        tuple(planned.columns),
        planned.batch_size if batch_size is None else batch_size,
        max_batches or 0,
    )


def _open(names: Sequence[str], columns: Sequence[str], plan: Plan) -> Dataset:
    only = names[0] if len(names) == 1 else ""
    fills = plan.dataset.fills
    if only.endswith(_SPECS) or (only.endswith(".json") and _is_spec(Path(only))):
        part = load_spec(Path(only)).spec.validation
        if part is None:
            raise UsageError("this spec names no validation data.", where=only, hint="Name the data themselves.")
        if part.manifest is not None:
            return open_manifest(part.manifest, columns=columns, fills=fills)
        return open_dataset(part.parquet_paths or (), columns=columns, fills=fills)
    if only.endswith(".json"):
        return open_manifest(only, columns=columns, fills=fills)
    return open_dataset(names, columns=columns, fills=fills)


def _is_spec(path: Path) -> bool:
    """Whether a JSON document is a spec or a job; any other is read, or refused, as a manifest."""
    try:
        return not {"config_version", "trainer_api_version"}.isdisjoint(read_json(path))
    except (JsonError, OSError):
        return False
