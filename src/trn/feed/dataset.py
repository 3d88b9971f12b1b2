"""What data a run reads, settled once as a value: files, row groups, column types, and one fingerprint.

    paths -> expand -> footers -> check columns and types -> Dataset -> (the plan, as JSON) -> check_unchanged -> Feed

The plan holds the whole value, so the process that trains opens exactly these files and never looks for others.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from trn.errors import DataError
from trn.feed.footer import Footer, read_footers
from trn.feed.nulls import Fills, check_fills, refuse_known_nulls
from trn.feed.sources import expand
from trn.feed.strict import fields, list_of
from trn.records import JsonError, sha256_json

__all__ = [
    "Block",
    "DataFile",
    "Dataset",
    "check_unchanged",
    "dataset_of",
    "open_dataset",
    "refuse_changed",
    "schema_of",
]

_FINGERPRINT_VERSION = 1

_INSTEAD_OF_VIEWS = {
    "string_view": "string or large_string",
    "binary_view": "binary or large_binary",
    "list_view": "list or large_list",
    "large_list_view": "list or large_list",
}
"""Types that are not read, and what to write. Arrow 26.0 cannot take rows of them, and nulls inside go unseen."""


@dataclass(frozen=True)
class RowGroupDigest:
    """The bytes of a row group and what their sha256 must be."""

    offset: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class DataFile:
    """One parquet file as it was when the data set was opened."""

    path: str
    size_bytes: int
    mtime_ns: int
    footer_sha256: str
    rows: int
    row_groups: tuple[int, ...]
    """Rows of each row group; a row group may be empty."""
    digests: tuple[RowGroupDigest, ...] | None = None
    """One for each row group, known where the data set came from a manifest."""


@dataclass(frozen=True)
class Block:
    """The unit of decoding and of the shuffle: a row group that is not empty."""

    file: int
    row_group: int
    rows: int
    first_row: int
    """Number of its first row in the whole data set, counted over all files in order."""


@dataclass(frozen=True)
class Dataset:
    """Parquet files that are read as one table. `columns` maps names to Arrow types, in the order asked for.

    `fingerprint` is the identity of the content, see `fingerprint_of`.
    """

    files: tuple[DataFile, ...]
    columns: dict[str, str]
    rows: int = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", sum(file.rows for file in self.files))
        object.__setattr__(self, "fingerprint", fingerprint_of(self.files))

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All row groups that hold rows, in the order of the files."""
        found = []
        first_row = 0
        for file_index, file in enumerate(self.files):
            for group_index, rows in enumerate(file.row_groups):
                if rows:
                    found.append(Block(file_index, group_index, rows, first_row))
                first_row += rows
        return tuple(found)

    @property
    def block_rows(self) -> tuple[int, ...]:
        """Rows of each block: what the order of the data is made from, beside the fingerprint."""
        return tuple(block.rows for block in self.blocks)

    def to_json(self) -> dict[str, Any]:
        """For the plan; columns are a list, since the keys of canonical JSON have no order."""
        return {
            "columns": [{"name": name, "type": kind} for name, kind in self.columns.items()],
            "files": [_file_to_json(file) for file in self.files],
            "fingerprint": self.fingerprint,
            "rows": self.rows,
        }

    @classmethod
    def from_json(cls, value: Any) -> Dataset:
        """Raises JsonError for missing, unknown or ill-typed fields, and where the numbers contradict each other."""
        kinds = {"columns": list, "files": list, "fingerprint": str, "rows": int}
        outer = fields(value, "dataset", kinds)
        columns = [
            fields(column, f"dataset.columns[{index}]", {"name": str, "type": str})
            for index, column in enumerate(outer["columns"])
        ]
        dataset = cls(
            files=tuple(_file_of(file, f"dataset.files[{index}]") for index, file in enumerate(outer["files"])),
            columns={column["name"]: column["type"] for column in columns},
        )
        if len(dataset.columns) != len(columns):
            raise JsonError("dataset.columns: a column is named twice")
        if (dataset.rows, dataset.fingerprint) != (outer["rows"], outer["fingerprint"]):
            raise JsonError("dataset: rows or fingerprint do not follow from its files")
        return dataset


def _file_to_json(file: DataFile) -> dict[str, Any]:
    digests = None if file.digests is None else [asdict(digest) for digest in file.digests]
    return {**asdict(file), "row_groups": list(file.row_groups), "digests": digests}


def _file_of(value: Any, name: str) -> DataFile:
    kinds: dict[str, type] = {
        "path": str,
        "size_bytes": int,
        "mtime_ns": int,
        "footer_sha256": str,
        "rows": int,
        "row_groups": list,
    }
    has_digests = isinstance(value, dict) and value.get("digests") is not None
    found = fields(value, name, kinds | {"digests": list if has_digests else type(None)})
    row_groups = list_of(found["row_groups"], f"{name}.row_groups", int)
    digests = tuple(
        RowGroupDigest(**fields(digest, f"{name}.digests[{index}]", {"offset": int, "size_bytes": int, "sha256": str}))
        for index, digest in enumerate(found["digests"] or ())
    )
    if has_digests and len(digests) != len(row_groups):
        raise JsonError(f"{name}.digests: expected {len(row_groups)}, found {len(digests)}")
    if sum(row_groups) != found["rows"]:
        raise JsonError(f"{name}: {found['rows']} rows, {sum(row_groups)} in its row groups")
    return DataFile(**{**found, "row_groups": row_groups, "digests": digests if has_digests else None})


def fingerprint_of(files: Iterable[DataFile]) -> str:
    """The identity of the content of `files` in this order, as hex sha256.

    It covers size, footer digest and the rows of each row group of each file. Names and types of all columns are in
    the footers, so they are covered as bytes and not as the words that one version of a library has for them. Paths,
    times, and which columns are read have no part in it: the same data gives the same order wherever it lies.
    """
    described = [
        {"footer_sha256": file.footer_sha256, "row_groups": list(file.row_groups), "size_bytes": file.size_bytes}
        for file in files
    ]
    return sha256_json({"files": described, "version": _FINGERPRINT_VERSION})


def open_dataset(paths: Sequence[str], *, columns: Sequence[str] | None, fills: Fills | None = None) -> Dataset:
    """The data set of files, folders, globs and URLs, in the order given; None takes all columns of the first file.

    Only footers are read. Raises DataError naming file and column: nothing matches, not parquet, a column that is
    missing or of another type in one of the files, an Arrow extension type or view type, no rows. With `fills` (see
    `nulls`) also a fill that its column cannot hold, and nulls that a footer knows of in a column without one.
    """
    return dataset_of(read_footers(expand(paths), count_nulls=fills is not None), columns, fills)


def dataset_of(footers: Sequence[Footer], columns: Sequence[str] | None, fills: Fills | None = None) -> Dataset:
    """The data set of files whose footers are read already. Raises DataError."""
    schema = schema_of(footers, columns)
    if fills is not None:
        check_fills(fills, schema)
        for footer in footers:
            refuse_known_nulls(footer.nulls, schema.names, fills, footer.path)
    files = tuple(
        DataFile(
            path=footer.path,
            size_bytes=footer.size_bytes,
            mtime_ns=footer.mtime_ns,
            footer_sha256=footer.sha256,
            rows=sum(footer.row_groups),
            row_groups=footer.row_groups,
        )
        for footer in footers
    )
    dataset = Dataset(files=files, columns={one.name: str(one.type) for one in schema})
    if not dataset.rows:
        others = f" nor in {len(files) - 1} more files" if len(files) > 1 else ""
        raise DataError(f"there are no rows in this file{others}, expected at least one.", where=files[0].path)
    return dataset


def schema_of(footers: Sequence[Footer], columns: Sequence[str] | None) -> pa.Schema:
    """Names and types of the columns asked for, equal in all files and of types that are read. Raises DataError.

    With None the columns are those of the first file, and no file may have others.
    """
    first = footers[0]
    names = list(first.schema.names if columns is None else columns)
    if not names:
        raise DataError("no columns are asked for, or the file has none.", where=first.path)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f'column "{twice}" is there or asked for twice, expected once.', where=first.path)
    schema = pa.schema([pa.field(name, _field(first, name).type) for name in names])
    for footer in footers:
        for expected in schema:
            _refuse_conflict(expected, _field(footer, expected.name), footer.path, first.path)
        if columns is None and (more := [name for name in footer.schema.names if name not in names]):
            raise DataError(
                f'column "{more[0]}" is not in {first.path}; without a list of columns all files need the same.',
                where=footer.path,
                hint="Name the columns to read.",
            )
    return schema


def _refuse_conflict(expected: pa.Field, found: pa.Field, path: str, first_path: str) -> None:
    if extension := _extension_in(found):
        raise DataError(
            f'column "{found.name}" has the Arrow extension type {extension}, which is not read.',
            where=path,
            hint="Store it as its plain storage type, or leave the column out.",
        )
    if view := _view_in(found.type):
        raise DataError(
            f'column "{found.name}" is {found.type}; Arrow\'s {view} is not read.',
            where=path,
            hint=f"Write it as {_INSTEAD_OF_VIEWS[view]}, or leave the column out with dataset.columns.",
        )
    if found.type != expected.type:
        raise DataError(
            f'column "{found.name}" is {found.type} here, and {expected.type} in {first_path}.',
            where=path,
            hint="Write both files with the same type.",
        )


def _field(footer: Footer, name: str) -> pa.Field:
    places = footer.schema.get_all_field_indices(name)
    if len(places) > 1:
        raise DataError(f'column "{name}" is there {len(places)} times, expected once.', where=footer.path)
    if not places:
        names = footer.schema.names
        shown = ", ".join(f'"{one}"' for one in names[:20]) + (" ..." if len(names) > 20 else "")
        near = difflib.get_close_matches(name, names, 1)
        raise DataError(
            f'there is no column "{name}"; the file has {shown}.',
            where=footer.path,
            hint=f'Did you mean "{near[0]}"?' if near else "Name a column that is there.",
        )
    return footer.schema.field(places[0])


def _extension_in(one: pa.Field) -> str | None:
    """The name of the first extension type in a field or below it; None where all types are plain."""
    kind = one.type
    if isinstance(kind, pa.BaseExtensionType):
        return str(kind)
    if one.metadata and b"ARROW:extension:name" in one.metadata:
        return repr(one.metadata[b"ARROW:extension:name"].decode(errors="replace"))
    return next((found for child in _children(kind) if (found := _extension_in(child))), None)


def _view_in(kind: pa.DataType) -> str | None:
    """The name of the first view type that a type is or has below it; None where there is none."""
    name = str(kind).partition("<")[0]
    if name in _INSTEAD_OF_VIEWS:
        return name
    return next((found for child in _children(kind) if (found := _view_in(child.type))), None)


def _children(kind: pa.DataType) -> list[pa.Field]:
    if pa.types.is_struct(kind):
        return [kind.field(index) for index in range(kind.num_fields)]
    if pa.types.is_map(kind):
        return [kind.key_field, kind.item_field]
    if pa.types.is_dictionary(kind):
        return [pa.field("values", kind.value_type)]
    return [kind.value_field] if kind.num_fields else []


def check_unchanged(dataset: Dataset) -> tuple[str, ...]:
    """Compare sizes and footers of the files with those in `dataset`; returns the paths where only the time differs.

    Another time alone is no error: a copy has it, and so has a file that was rewritten in place with the same size and
    the same footer, which only the row group digests of a manifest can tell. Raises DataError naming the first file
    that is gone or differs.
    """
    touched = []
    footers = read_footers([file.path for file in dataset.files])
    for file, footer in zip(dataset.files, footers, strict=True):
        refuse_changed(file, footer)
        if footer.mtime_ns != file.mtime_ns:
            touched.append(file.path)
    return tuple(touched)


def refuse_changed(file: DataFile, footer: Footer) -> None:
    """Raise DataError where a footer, read now, is not the one that `file` describes."""
    if footer.size_bytes != file.size_bytes:
        raise DataError(
            f"the file has changed: it has {footer.size_bytes} bytes, the data set was opened with {file.size_bytes}.",
            where=file.path,
            hint="Bring the original back, or start a new run.",
        )
    if footer.sha256 != file.footer_sha256 or footer.row_groups != file.row_groups:
        raise DataError(
            "the file has changed: same size, but another footer than when the data set was opened.",
            where=file.path,
            hint="Bring the original back, or start a new run.",
        )
