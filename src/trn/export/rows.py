"""A few real rows, kept in the run's folder: what an export is traced and compared with, wherever the folder lies."""

from __future__ import annotations

import io
from contextlib import closing
from pathlib import Path

import pyarrow as pa

from trn.errors import DataError
from trn.feed import Dataset, read_sequential
from trn.files import write_atomic
from trn.spec.plan_model import Plan

__all__ = ["ROWS_NAME", "keep_rows", "read_rows"]

ROWS_NAME = "reports/export_rows.arrow"
_ROWS = 8
_LARGEST_BYTES = 8 << 20


def keep_rows(plan: Plan, run_dir: Path) -> bool:
    """Write the first rows of the validation data, else of the training data, as Arrow IPC; False where none fits.

    At most 8 rows and 8 MB. What the plan says of nulls is applied. Raises DataError, StorageError.
    """
    batch = _first_rows(plan)
    if batch is None:
        return False
    write_atomic(run_dir / ROWS_NAME, _to_bytes(batch))
    return True


def read_rows(run_dir: Path, plan: Plan | None = None) -> pa.RecordBatch:
    """The rows that were kept; where none were, the plan's data are asked for them.

    Raises DataError where there are none, or where the file is not what `keep_rows` writes.
    """
    path = run_dir / ROWS_NAME
    if not path.exists():
        batch = None if plan is None else _first_rows(plan)
        if batch is None:
            raise DataError("there is no row to export with.", where=str(path))
        return batch
    try:
        with pa.ipc.open_file(path.read_bytes()) as reader:
            table = reader.read_all().combine_chunks()
        batch = table.to_batches()[0]
    except (pa.ArrowInvalid, OSError, IndexError, ValueError) as error:
        raise DataError(f"cannot be read: {error}.", where=str(path), hint="Copy the run's folder again.") from error
    if odd := next((one.name for one in batch.schema if isinstance(one.type, pa.BaseExtensionType)), None):
        raise DataError(f"column {odd!r} has an extension type, which trn does not write.", where=str(path))
    return batch


def _first_rows(plan: Plan) -> pa.RecordBatch | None:
    part = plan.validation or plan.dataset
    batches = read_sequential(Dataset.from_json(part.data), part.columns, _ROWS, 1, fills=plan.dataset.fills)
    with closing(batches):  # type: ignore[type-var]  # a generator, typed as an iterator
        batch = next(iter(batches), None)
    if batch is None or not batch.num_rows:
        return None
    for rows in range(batch.num_rows, 0, -1):
        some = batch.slice(0, rows)
        if some.get_total_buffer_size() <= _LARGEST_BYTES or len(_to_bytes(some)) <= _LARGEST_BYTES:
            return some
    return None


def _to_bytes(batch: pa.RecordBatch) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()
