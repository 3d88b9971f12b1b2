"""`trn data validate`: all that is wrong with data, not the first of it, as findings that name file and column.

    names -> files -> footers, columns and types -> row groups: digests, decoding, nulls, NaN -> settings -> overlap

Every byte of the columns that are asked for is read, one row group at a time. What a run would refuse is an error;
what it would take, but hardly anybody wants, is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

from trn.errors import DataError
from trn.feed.blocks import ParquetBlocks
from trn.feed.cache import find_cache, has_manifest, verify_cache
from trn.feed.dataset import DataFile, Dataset, dataset_of, refuse_changed, schema_of
from trn.feed.footer import Footer, read_footer
from trn.feed.manifest import manifest_files
from trn.feed.nulls import Fills, check_fills
from trn.feed.overlap import UInt64, find_overlap, row_hashes
from trn.feed.sources import expand, identity
from trn.feed.subject import Named, Subject

__all__ = ["Finding", "validate_data"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where, and what."""

    level: Literal["error", "warning"]
    where: str
    message: str
    column: str | None = None

    def __str__(self) -> str:
        column = f', column "{self.column}"' if self.column and f'"{self.column}"' not in self.message else ""
        return f"{self.level}: {self.where}{column}: {self.message}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Read:
    """What could be read of one data set, for the comparison of two."""

    files: list[_File] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def place(self, row: int) -> str:
        """The file and row of a row of the data set, among the row groups that could be read."""
        for file in self.files:
            if row < file.read_rows:
                return f"row {row:,} of {file.footer.path}"
            row -= file.read_rows
        return f"row {row:,}"


@dataclass
class _File:
    footer: Footer
    described: DataFile | None
    columns: list[str] = field(default_factory=list)
    """Those that can be read here."""
    bad_groups: set[int] = field(default_factory=set)

    @property
    def rows(self) -> int:
        return sum(self.footer.row_groups)

    @property
    def read_rows(self) -> int:
        return sum(rows for group, rows in enumerate(self.footer.row_groups) if group not in self.bad_groups)


def validate_data(subject: Subject) -> list[Finding]:
    """All findings, in the order of the files; an empty list says that a run can read all of it."""
    found: list[Finding] = []
    training = _check_set(subject.training, subject.columns, subject.fills, found)
    _check_settings(subject, training, found)
    _check_cache(subject, training, found)
    if subject.validation is not None:
        columns = subject.columns or tuple(training.files[0].columns if training.files else ()) or None
        like = training.files[0].footer if training.files else None
        validation = _check_set(subject.validation, columns, subject.fills, found, like)
        _check_overlap(training, validation, found)
    return found


def _check_set(
    given: Named, columns: Sequence[str] | None, fills: Fills | None, found: list[Finding], like: Footer | None = None
) -> _Read:
    """Check files one by one; their columns have the types of `like`, else those of the first file."""
    read = _Read()
    label = given.manifest or ", ".join(given.paths)
    for path, described in _files(given, found):
        try:
            footer = read_footer(path)
            if described is not None:
                refuse_changed(described, footer)
        except DataError as error:
            found.append(_of(error))
            continue
        read.files.append(_File(footer, described))
    if not read.files:
        found.append(Finding("error", label, "no file of it can be read."))
        return read
    for file in read.files:
        file.columns = _check_columns(file.footer, like or read.files[0].footer, columns, found)
        if file.columns != read.files[0].columns:  # a part of a row has no content to be compared
            file.bad_groups.update(range(len(file.footer.row_groups)))
    if fills:
        _check_fills(fills, read.files[0], found)
    for file in read.files:
        if file.columns and file.rows:
            _check_rows(file, fills, found)
        elif not file.rows:
            found.append(Finding("warning", file.footer.path, "there are no rows in this file."))
    if not read.rows:
        found.append(Finding("error", label, "there are no rows, expected at least one."))
    return read


def _files(given: Named, found: list[Finding]) -> list[tuple[str, DataFile | None]]:
    """Each file that is named, with what a manifest says of it. One name that is wrong does not hide the others."""
    if given.manifest is not None:
        try:
            return [(file.path, file) for file in manifest_files(given.manifest)]
        except DataError as error:
            found.append(_of(error))
            return []
    named_before: set[str] = set()
    files: dict[str, str] = {}
    for given_path in given.paths:
        try:
            paths = expand([given_path])
        except DataError as error:
            found.append(_of(error))
            continue
        for path in paths:
            if files.setdefault(identity(path), path) != path or path in named_before:
                found.append(Finding("error", path, f"this file is named twice, again by {given_path!r}."))
            named_before.add(path)
    return [(path, None) for path in files.values()]


def _of(error: DataError) -> Finding:
    return Finding("error", str(error.where), _words(error))


def _words(error: DataError) -> str:
    return f"{error.message} {error.hint}" if error.hint else error.message


def _check_columns(footer: Footer, first: Footer, columns: Sequence[str] | None, found: list[Finding]) -> list[str]:
    """The columns that can be read as in the first file."""
    good = []
    for name in dict.fromkeys(first.schema.names if columns is None else columns):
        try:
            schema_of([footer], [name])
            schema_of([first, footer], [name])
            good.append(name)
        except DataError as error:
            # a column that the first file has not is said where it lies, in each file once
            if error.where == footer.path:
                found.append(Finding("error", footer.path, _words(error), name))
    if columns is None:
        for name in (one for one in footer.schema.names if one not in first.schema.names):
            found.append(Finding("error", footer.path, f"it is not in {first.path}; all files need the same.", name))
    return good


def _check_fills(fills: Fills, file: _File, found: list[Finding]) -> None:
    schema = schema_of([file.footer], file.columns) if file.columns else pa.schema([])
    for name, value in fills.items():
        try:
            check_fills({name: value}, schema)
        except DataError as error:
            found.append(_of(error))


def _check_rows(file: _File, fills: Fills | None, found: list[Finding]) -> None:
    """Decode every row group once: digests, nulls, and numbers that are none."""
    nulls: dict[str, int] = {}
    strange: dict[str, int] = {}
    for group, table in _row_groups(file, found):
        for name in file.columns:
            if table is None:
                continue
            column = table.column(name)
            values, missing = _leaves(column)
            if missing and fills is not None and name not in fills:
                nulls[name] = nulls.get(name, 0) + missing
            if count := _not_finite(values):
                strange[name] = strange.get(name, 0) + count
        if table is None:
            file.bad_groups.add(group)
    path = file.footer.path
    for name, count in nulls.items():
        hint = f"Fill them with dataset.nulls: {{{name}: VALUE}}, or let them through with {{{name}: null}}."
        found.append(Finding("error", path, f"{count:,} values are null. {hint}", name))
    for name, count in strange.items():
        found.append(Finding("warning", path, f"{count:,} values are NaN or infinite.", name))


def _row_groups(file: _File, found: list[Finding]) -> Iterator[tuple[int, pa.Table | None]]:
    """Number and rows of each row group that is not empty; None in place of rows that cannot be had."""
    dataset = _dataset([file], file.columns)
    reader = ParquetBlocks(dataset, file.columns)
    try:
        for index, block in enumerate(dataset.blocks):
            try:
                yield block.row_group, reader.read(index)
            except DataError as error:
                found.append(_of(error))
                yield block.row_group, None
    finally:
        reader.close()


def _dataset(files: Sequence[_File], columns: Sequence[str]) -> Dataset:
    """The data set of these files, with the digests of those that a manifest describes. Raises DataError."""
    dataset = dataset_of([file.footer for file in files], columns)
    described = (
        one if file.described is None else replace(one, digests=file.described.digests)
        for one, file in zip(dataset.files, files, strict=True)
    )
    return replace(dataset, files=tuple(described))


def _leaves(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, int]:
    """The innermost values of lists, and how many are null at any depth."""
    missing = column.null_count
    while kinds.is_fixed_size_list(column.type) or kinds.is_list(column.type) or kinds.is_large_list(column.type):
        column = pc.list_flatten(column)
        missing += column.null_count
    return column, missing


def _not_finite(values: pa.ChunkedArray) -> int:
    if not kinds.is_floating(values.type):
        return 0
    return sum(int((~np.isfinite(chunk.drop_null().to_numpy(zero_copy_only=False))).sum()) for chunk in values.chunks)


def _check_settings(subject: Subject, training: _Read, found: list[Finding]) -> None:
    if not subject.is_planned or not training.rows:
        return
    size, rows = subject.batch_size, training.rows
    if size <= rows:
        return
    message = f"a batch has {size:,} rows, the data have {rows:,}"
    if subject.remainder == "drop":
        found.append(Finding("error", "dataset.batch_size", f"{message}, and remainder is drop: there is no batch."))
    elif subject.remainder == "carry" and subject.passes is not None and subject.passes * rows < size:
        found.append(Finding("error", "dataset.batch_size", f"{message}: there is no whole batch."))
    else:
        found.append(Finding("warning", "dataset.batch_size", f"{message}: a batch holds rows more than once or few."))


def _check_cache(subject: Subject, training: _Read, found: list[Finding]) -> None:
    """Where the cache of these data is there, read all of it."""
    if subject.cache is None or not training.rows or any(not file.columns for file in training.files):
        return
    try:
        columns = training.files[0].columns
        dataset = _dataset(training.files, columns)
        if has_manifest(dataset, columns, Path(subject.cache)):
            verify_cache(find_cache(dataset, columns, Path(subject.cache)))
    except DataError as error:
        found.append(_of(error))


def _check_overlap(training: _Read, validation: _Read, found: list[Finding]) -> None:
    common = [
        name for name in (training.files[0].columns if training.files else []) if _is_everywhere(name, validation)
    ]
    if not common or not training.rows or not validation.rows:
        return
    overlap = find_overlap(_hashes(training, common), _hashes(validation, common), rows=training.rows + validation.rows)
    if overlap.rows:
        message = (
            f"{overlap.rows:,} of {validation.rows:,} rows of the validation data are in the training data too,"
            f" this one as {training.place(overlap.same_as)}."
        )
        found.append(Finding("error", validation.place(overlap.first_row), message))


def _is_everywhere(name: str, read: _Read) -> bool:
    return bool(read.files) and all(name in file.columns for file in read.files)


def _hashes(read: _Read, columns: list[str]) -> Iterator[UInt64]:
    for file in read.files:
        if file.read_rows:
            dataset: Dataset = dataset_of([file.footer], columns)
            reader = ParquetBlocks(dataset, columns)
            try:
                for index, block in enumerate(dataset.blocks):
                    if block.row_group not in file.bad_groups:
                        for batch in reader.read(index).to_batches():
                            yield row_hashes(batch)
            finally:
                reader.close()
