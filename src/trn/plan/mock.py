"""Batches that stand in the spec become a parquet file, so that everything else reads them like any other data.

    dataset.mock_batches -> a row group a batch -> FOLDER/<sha256>.parquet     FOLDER is RUNS_DIR/.trn/mock

The name follows from the rows and their types, not from the bytes: a later version of the library, which writes other
bytes, finds the file that is there, and the run keeps its data. A file that does not hold these rows is replaced.
What is wrong with batches was said by `trn.spec.mock_batches`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trn.feed import Dataset, Fills, open_dataset
from trn.files import Lock, make_folder, sweep, write_atomic
from trn.records import sha256_json
from trn.spec.mock_batches import ColumnKind, column_kinds
from trn.spec.plan_model import Plan

__all__ = ["MOCK_FOLDER", "MockFile", "make_mock", "moved_mock"]

MOCK_FOLDER = ".trn/mock"
"""Below the folder of all runs."""

_LOCK_NAME = ".lock"
_VERSION = 1
_TIME_NS = 10**18
"""Time of every such file, so that one that was made again is the same to a cache: 2001-09-09."""


@dataclass(frozen=True)
class MockFile:
    """The file that batches become; it need not be there yet."""

    path: Path
    table: pa.Table
    rows: int
    """Of a batch, which is a row group."""

    def open(self, columns: Sequence[str] | None, fills: Fills) -> Dataset:
        """The data set of the file, as if it were in its place. Writes nothing there. Raises DataError."""
        if self._is_there():
            return open_dataset([str(self.path)], columns=columns, fills=fills)
        with tempfile.TemporaryDirectory(prefix="trn-mock-") as folder:
            aside = replace(self, path=Path(folder) / self.path.name)
            aside.write()
            opened = open_dataset([str(aside.path)], columns=columns, fills=fills)
        return replace(opened, files=(replace(opened.files[0], path=str(self.path)),))

    def write(self) -> None:
        """Put the file in its place, whole or not at all, unless it is there. Raises StorageError."""
        if self._is_there():
            return
        sink = pa.BufferOutputStream()
        pq.write_table(self.table, sink, row_group_size=self.rows)
        with Lock(make_folder(self.path.parent) / _LOCK_NAME):
            sweep(self.path.parent)
            write_atomic(self.path, sink.getvalue().to_pybytes())
            os.utime(self.path, ns=(_TIME_NS, _TIME_NS))

    def _is_there(self) -> bool:
        try:
            with pq.ParquetFile(self.path) as file:
                groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
                return file.read().equals(self.table) and set(groups) == {self.rows}
        except (OSError, pa.ArrowException):
            return False


def make_mock(batches: Sequence[Mapping[str, Any]], folder: Path) -> MockFile:
    """The file in `folder` for batches that the spec has checked. Touches no disk."""
    kinds = column_kinds(batches)
    schema = pa.schema([pa.field(name, _type_of(kind)) for name, kind in kinds.items()])
    columns = {name: [row for batch in batches for row in batch[name]] for name in kinds}
    table = pa.table({name: pa.array(columns[name], schema.field(name).type) for name in kinds}, schema=schema)
    rows = table.num_rows // len(batches)
    # not by the library's words for a type, which may change
    described = [{"name": name, "type": kind.word, "shape": list(kind.shape)} for name, kind in kinds.items()]
    content = {"columns": described, "rows": table.to_pydict(), "batch_rows": rows, "version": _VERSION}
    return MockFile(folder / f"{sha256_json(content)}.parquet", table, rows)


def moved_mock(plan: Plan, before: Path, after: Path) -> Plan:
    """The plan with its mock batches in the folder `after` instead of `before`; it is the same for all else."""
    data = plan.dataset.data
    files = [
        {**file, "path": str(after / Path(file["path"]).name)} if Path(file["path"]).parent == before else file
        for file in data["files"]
    ]
    return plan.model_copy(update={"dataset": plan.dataset.model_copy(update={"data": {**data, "files": files}})})


def _type_of(kind: ColumnKind) -> pa.DataType:
    found = {"int64": pa.int64(), "float32": pa.float32(), "bool": pa.bool_(), "string": pa.string()}[kind.word]
    for length in reversed(kind.shape):
        found = pa.list_(found, length)
    return found
