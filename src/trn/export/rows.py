"""A few real rows, kept in the run's folder: what an export is traced and compared with, wherever the folder lies."""

from __future__ import annotations

import io
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa

from trn.errors import DataError
from trn.feed import Dataset, read_sequential
from trn.files import write_atomic
from trn.spec.plan_model import Plan

__all__ = ["ROWS_NAME", "keep_rows", "read_rows"]

ROWS_NAME = "reports/export_rows.arrow"
_ROWS = 8
_LARGEST_BYTES = 8 << 20
_LARGEST_FILE_BYTES = 2 * _LARGEST_BYTES
_MAGIC = b"ARROW1\0\0"


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
        batch = _from_file(path)
    except (pa.ArrowException, OSError, EOFError, ValueError, struct.error) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"cannot be read: {told}.", where=str(path), hint="Copy the run's folder again.") from error
    if odd := next((one.name for one in batch.schema if _is_extension(one.type)), None):
        raise DataError(f"column {odd!r} has an extension type, which trn does not write.", where=str(path))
    return batch


def _from_file(path: Path) -> pa.RecordBatch:
    """The one batch in a file that may come from anywhere: within our limits, not compressed, whole."""
    with open(path, "rb") as stream:
        data = stream.read(_LARGEST_FILE_BYTES + 1)
    if len(data) > _LARGEST_FILE_BYTES:
        raise ValueError(f"it has more than {_LARGEST_FILE_BYTES} bytes")
    if not data.startswith(_MAGIC):
        raise ValueError("it is no Arrow file")
    messages = pa.py_buffer(data).slice(len(_MAGIC))  # a stream; the footer that follows is for random access
    for message in pa.ipc.MessageReader.open_stream(messages):
        if _is_compressed(message):
            raise ValueError("it is compressed, which trn does not do")
    with pa.ipc.open_stream(messages) as reader:
        batch, *more = [one for one, _ in zip(reader, range(2), strict=False)] or [None]
    if batch is None or more or not 0 < batch.num_rows <= _ROWS:
        raise ValueError(f"expected one batch of 1 to {_ROWS} rows")
    batch.validate(full=True)
    return batch


def _is_compressed(message: Any) -> bool:
    """Whether a record batch, or the one of a dictionary, names a compression: a few bytes could become any number.

    Source: Message.fbs of the Arrow format, read as FlatBuffers lay tables out. Arrow itself has checked the bytes.
    """
    data = message.metadata.to_pybytes()
    header = _table(data, struct.unpack_from("<I", data)[0], 2)
    if message.type == "dictionary" and header is not None:
        header = _table(data, header, 1)
    return message.type != "schema" and (header is None or _place(data, header, 3) is not None)


def _table(data: bytes, table: int, field: int) -> int | None:
    place = _place(data, table, field)
    return None if place is None else place + int(struct.unpack_from("<I", data, place)[0])


def _place(data: bytes, table: int, field: int) -> int | None:
    """Where a field of a table stands; None where it is left out."""
    fields = table - int(struct.unpack_from("<i", data, table)[0])
    if 4 + 2 * field >= struct.unpack_from("<H", data, fields)[0]:
        return None
    offset = int(struct.unpack_from("<H", data, fields + 4 + 2 * field)[0])
    return table + offset if offset else None


def _is_extension(kind: pa.DataType) -> bool:
    """Whether a type is one, or is made of one."""
    parts = [kind.field(index).type for index in range(kind.num_fields)]
    if pa.types.is_dictionary(kind):
        parts.append(kind.value_type)
    return isinstance(kind, pa.BaseExtensionType) or any(map(_is_extension, parts))


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
