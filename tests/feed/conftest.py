"""Parquet files for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trn.feed import Dataset, open_dataset

WriteParquet = Callable[..., str]
GROUPS = {"a.parquet": [3, 0, 7, 1], "b.parquet": [0], "c.parquet": [5, 5, 2], "d.parquet": []}


@pytest.fixture
def write(tmp_path: Path) -> WriteParquet:
    """write("a.parquet", [3, 0, 5], first=10): a file with row groups of these sizes, `id` counting from `first`."""

    def write_one(name: str, groups: Sequence[int], *, first: int = 0, **options: object) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(path, _table(0, 0).schema, **options) as writer:
            for rows in groups:
                writer.write_table(_table(first, rows), row_group_size=max(rows, 1))
                first += rows
        return str(path)

    return write_one


@pytest.fixture
def dataset(write: WriteParquet) -> Dataset:
    """23 rows in odd row groups over four files, `id` being the row number."""
    first, paths = 0, []
    for name, groups in GROUPS.items():
        paths.append(write(name, groups, first=first))
        first += sum(groups)
    return open_dataset(paths, columns=["id", "pair", "name"])


def _table(first: int, rows: int) -> pa.Table:
    ids = np.arange(first, first + rows, dtype=np.int64)
    pairs = np.stack([ids, ids * 2], axis=1).astype(np.int32).reshape(-1)
    return pa.table(
        {
            "id": ids,
            "pair": pa.FixedSizeListArray.from_arrays(pa.array(pairs), 2),
            "name": pa.array([f"row {one}" for one in ids.tolist()], pa.string()),
        }
    )
