"""A data set decoded once into uncompressed, memory-mapped Arrow: docs/formats/cache.md.

    Dataset, columns -> KEY -> FOLDER/KEY.arrow, then FOLDER/KEY.json  (make_cache, under FOLDER/.trn-cache.lock)
    FOLDER/KEY.json -> sizes, schema and rows compared -> MappedRows           (open_cache, no lock)
    KEY.arrow, as it was handed over -> the same, some columns of it -> MappedRows            (open_cache_at, no lock)

The manifest is written last: without it, or where it does not fit, nothing is used. The key stands for the columns and
the content of the data set, so one folder holds the caches of many. Content is the fingerprint and, since files of one
size can share a footer, the digests of the row groups where a manifest gave them, else the files' times.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from trn.errors import DataError
from trn.feed.blocks import ParquetBlocks
from trn.feed.dataset import Dataset
from trn.feed.gather import plain_type
from trn.feed.mapped import MappedRows
from trn.feed.sources import of_each, stat_source
from trn.feed.strict import fields
from trn.files import TEMP_MARK, Lock, atomic_file, make_folder, remove, sha256_file, write_atomic
from trn.records import JsonError, pretty_json, read_json, sha256_json

__all__ = [
    "CACHE_VERSION",
    "Cache",
    "find_cache",
    "find_cache_at",
    "has_cache",
    "has_manifest",
    "make_cache",
    "open_cache",
    "open_cache_at",
    "refuse_uncacheable",
    "verify_cache",
]

CACHE_VERSION = 1
_PIECE_BYTES = 64 << 20
_MOST_PADDING = 1 << 20
_LOCK_NAME = ".trn-cache.lock"
_WAIT_S = 0.5
_TOP: dict[str, type] = {
    "schema_version": int,
    "fingerprint": str,
    "content_sha256": str,
    "columns": list,
    "rows": int,
    "size_bytes": int,
    "data_sha256": str,
    "sha256": str,
}


@dataclass(frozen=True)
class Cache:
    """A cache that is there, as its manifest describes it."""

    path: Path
    """The Arrow IPC file."""
    rows: int
    size_bytes: int
    sha256: str


def _key(dataset: Dataset, columns: Sequence[str]) -> str:
    return _key_of(_columns(dataset, columns), dataset)


def _key_of(columns: list[dict[str, str]], dataset: Dataset) -> str:
    return sha256_json({"columns": columns, "content": _content(dataset)})[:32]


def _content(dataset: Dataset) -> str:
    marks = [
        [file.mtime_ns] if file.digests is None else [one.sha256 for one in file.digests] for file in dataset.files
    ]
    return sha256_json({"fingerprint": dataset.fingerprint, "marks": marks})


def refuse_uncacheable(dataset: Dataset, columns: Sequence[str]) -> None:
    """Raise DataError for columns that cannot be mapped, and where nothing says whether a file is still the same."""
    for name in columns:
        if "dictionary<" in dataset.columns[name]:
            raise DataError(
                f'column "{name}" is a dictionary or holds one, which differs between row groups and cannot be mapped.',
                where=dataset.files[0].path,
                hint="Leave the column out, write it as plain values, or use no dataset.cache.",
            )
    for file in dataset.files:
        if file.digests is None and not file.mtime_ns:
            raise DataError(
                "nobody says when this file was changed, so no cache can be known to be of it.",
                where=file.path,
                hint="Write a manifest with digests (`trn data index`), or use no dataset.cache.",
            )


def _columns(dataset: Dataset, columns: Sequence[str]) -> list[dict[str, str]]:
    return [{"name": name, "type": dataset.columns[name]} for name in columns]


def has_cache(dataset: Dataset, columns: Sequence[str], folder: Path) -> bool:
    """Whether `find_cache` finds one. Raises DataError where a file is gone."""
    return _is_there(_as_now(dataset), columns, folder)


def _is_there(dataset: Dataset, columns: Sequence[str], folder: Path) -> bool:
    try:
        _find(dataset, columns, folder)
    except DataError:
        return False
    return True


def has_manifest(dataset: Dataset, columns: Sequence[str], folder: Path) -> bool:
    """Whether there is one, whole or not. Raises DataError where a file is gone."""
    return (folder / f"{_key(_as_now(dataset), columns)}.json").exists()


def find_cache(dataset: Dataset, columns: Sequence[str], folder: Path) -> Cache:
    """The cache of these columns of a data set. Raises DataError: there is none, or not one that is whole."""
    return _find(_as_now(dataset), columns, folder)


def _as_now(dataset: Dataset) -> Dataset:
    """With the times that the files have now. Raises DataError.

    A data set can be older than its files: of a plan, when the run is resumed. Rows that are decoded now are those of
    the files as they are now, and that is what a cache is named after.
    """
    timed = [file.path for file in dataset.files if file.digests is None]
    found = iter(of_each(timed, stat_source))
    files = (replace(one, mtime_ns=next(found).mtime_ns) if one.digests is None else one for one in dataset.files)
    return replace(dataset, files=tuple(files))


def _find(dataset: Dataset, columns: Sequence[str], folder: Path) -> Cache:
    path = folder / f"{_key(dataset, columns)}.arrow"
    found = _manifest_of(path)
    if found is None:
        raise DataError(
            "there is no cache of this data set and these columns.",
            where=str(folder),
            hint="Make it with `trn data cache`.",
        )
    if not _is_of(found, dataset) or found["columns"] != _columns(dataset, columns):
        raise _damaged(folder / f"{path.stem}.json", "it describes another data set or version")
    return _whole(found, path)


def find_cache_at(path: Path, dataset: Dataset, columns: Sequence[str]) -> Cache:
    """The cache that this very file is: of this data set, with these columns and perhaps more.

    Raises DataError: it is not there, not whole, of other data, or lacks a column.
    """
    dataset = _as_now(dataset)
    found = _manifest_of(path)
    if found is None:
        raise DataError("there are no decoded data.", where=str(path), hint="Decode them again, with `trn data cache`.")
    if not _is_of(found, dataset) or path.name != f"{_key_of(found['columns'], dataset)}.arrow":
        raise DataError(
            "it was not decoded from the data of this run, as they are now.",
            where=str(path),
            hint="Decode them again, with `trn data cache`.",
        )
    for column in _columns(dataset, columns):
        if column not in found["columns"]:
            raise DataError(
                f'it has no column "{column["name"]}" of type {column["type"]}.',
                where=str(path),
                hint="Name the columns in dataset.columns, and decode the data again.",
            )
    return _whole(found, path)


def _manifest_of(path: Path) -> dict[str, Any] | None:
    """What the manifest of an Arrow file says; None where one of the two is missing. Raises DataError."""
    manifest = path.parent / f"{path.stem}.json"
    try:
        found = fields(read_json(manifest), "cache", _TOP)
        if sha256_json({name: value for name, value in found.items() if name != "sha256"}) != found["sha256"]:
            raise JsonError("sha256: it is not the digest of the other fields")
        path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"the cache cannot be read: {error.strerror or error}.", where=str(manifest)) from error
    except JsonError as error:
        raise _damaged(manifest, str(error)) from error
    return found


def _is_of(found: dict[str, Any], dataset: Dataset) -> bool:
    expected = {
        "schema_version": CACHE_VERSION,
        "fingerprint": dataset.fingerprint,
        "content_sha256": _content(dataset),
        "rows": dataset.rows,
    }
    return all(found[name] == value for name, value in expected.items())


def _whole(found: dict[str, Any], path: Path) -> Cache:
    """Raises DataError."""
    size_bytes = path.stat().st_size
    if size_bytes != found["size_bytes"]:
        raise _damaged(path, f"it has {size_bytes} bytes, its manifest says {found['size_bytes']}")
    return Cache(path, found["rows"], size_bytes, found["data_sha256"])


def _damaged(path: Path, problem: str) -> DataError:
    return DataError(f"not a whole cache: {problem}.", where=str(path), hint="Remove it, and it is made again.")


def open_cache(dataset: Dataset, columns: Sequence[str], folder: Path) -> MappedRows:
    """The rows of a cache that is there. Raises DataError.

    Sizes, structure, names, types and the number of rows are compared; the bytes of the rows are not (`verify_cache`).
    """
    return _opened(find_cache(dataset, columns, folder), dataset, columns)


def open_cache_at(path: Path, dataset: Dataset, columns: Sequence[str]) -> MappedRows:
    """The rows of the cache that this very file is (`find_cache_at`), compared as by `open_cache`. Raises DataError."""
    return _opened(find_cache_at(path, dataset, columns), dataset, columns)


def _opened(cache: Cache, dataset: Dataset, columns: Sequence[str]) -> MappedRows:
    try:
        rows = MappedRows(cache.path, columns, size_bytes=cache.size_bytes)
    except DataError as error:
        raise _damaged(cache.path, error.message.rstrip(".")) from error
    found = [(one.name, _kind(str(one.type))) for one in rows.schema]
    if rows.rows != cache.rows or found != [(name, _kind(dataset.columns[name])) for name in columns]:
        rows.close()
        raise _damaged(cache.path, "its rows or columns are not those of its manifest")
    return rows


def _kind(described: str) -> str:
    """A type without the name of a map's entries: in parquet they are called as the column, in Arrow IPC "entries"."""
    return re.sub(r" \('.*?'\)>", ">", described)


def verify_cache(cache: Cache) -> None:
    """Read all of a cache and compare its sha256. Raises DataError."""
    try:
        found = sha256_file(cache.path)
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror or error}.", where=str(cache.path)) from error
    if found != cache.sha256:
        raise _damaged(cache.path, f"it has sha256 {found}, its manifest says {cache.sha256}")


def make_cache(
    dataset: Dataset, columns: Sequence[str], folder: Path, *, each_block: Callable[[int], None] = lambda rows: None
) -> Cache:
    """The cache of these columns, made now unless it is there or becomes whole while another process makes it.

    `each_block` is called with the number of rows that are done, 0 while waiting; what it raises ends the making, and
    nothing is left. Raises DataError for the data, StorageError for the folder.
    """
    dataset = _as_now(dataset)
    refuse_uncacheable(dataset, columns)
    if _is_there(dataset, columns, folder):
        return _find(dataset, columns, folder)
    reader = ParquetBlocks(dataset, columns)
    make_folder(folder)
    lock = Lock(folder / _LOCK_NAME)
    while not lock.acquire("trn data cache", wait_s=_WAIT_S):
        each_block(0)
    try:
        if not _is_there(dataset, columns, folder):
            _clear_torn(dataset, columns, folder)
            _write(dataset, columns, folder, reader, each_block)
    finally:
        reader.close()
        lock.release()
    return _find(dataset, columns, folder)


def _clear_torn(dataset: Dataset, columns: Sequence[str], folder: Path) -> None:
    """Remove what others that died left of this very cache; whatever else lies in the folder is somebody else's."""
    for path in folder.glob(f".{_key(dataset, columns)}.*{TEMP_MARK}*"):
        remove(path)


def _write(
    dataset: Dataset, columns: Sequence[str], folder: Path, reader: ParquetBlocks, each_block: Callable[[int], None]
) -> None:
    key = _key(dataset, columns)
    widest_first = sorted(reader.schema.names, key=lambda name: -_row_bytes(reader.schema.field(name).type))
    schema = pa.schema([reader.schema.field(name) for name in widest_first])
    step = math.lcm(8, *(_row_bytes(one.type) or 1 for one in schema))
    plain = pa.ipc.IpcWriteOptions(compression=None)
    with atomic_file(folder / f"{key}.arrow") as file, pa.ipc.new_file(file, schema, options=plain) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([], schema=schema))  # the head of the file is written by now
        for batch in _pieces(dataset, reader, each_block):
            batch = batch.select(widest_first)
            pad = _padding(batch, file.size_bytes, step) if step <= _MOST_PADDING else 0
            writer.write_batch(batch, custom_metadata={"padding": "0" * pad})
        _refuse_changed(dataset)
    value: dict[str, Any] = {
        "schema_version": CACHE_VERSION,
        "fingerprint": dataset.fingerprint,
        "content_sha256": _content(dataset),
        "columns": _columns(dataset, columns),
        "rows": dataset.rows,
        "size_bytes": file.size_bytes,
        "data_sha256": file.sha256,
    }
    write_atomic(folder / f"{key}.json", pretty_json({**value, "sha256": sha256_json(value)}))


def _refuse_changed(dataset: Dataset) -> None:
    for before, after in zip(dataset.files, _as_now(dataset).files, strict=True):
        if before != after:
            raise DataError("the file was changed while it was decoded.", where=before.path, hint="Start again.")


def _row_bytes(kind: pa.DataType) -> int:
    plain = plain_type(kind)
    return plain.row_bytes if plain else 0


def _padding(batch: pa.RecordBatch, start: int, step: int) -> int:
    """So many characters of metadata let the values of a piece begin at a multiple of `step` bytes in the file.

    Then each column of fixed width is one array over all pieces: what lies between them is a whole number of rows. And
    a row of 4,096 bytes lies in one page of memory instead of two: it is gathered in less than nine tenths of the time.
    """
    row = batch.slice(0, 1)  # of no rows, the metadata would be shorter: what is 0 is left out
    bare = _metadata_bytes(row, 0)
    wanted = (start + bare + step) // step * step - start
    # lengths are rounded up to 8, so that the first of a few is long enough
    near = range(max(wanted - bare - 16, 0), wanted - bare + 16)
    return next((pad for pad in near if _metadata_bytes(row, pad) == wanted), 0)


def _metadata_bytes(row: pa.RecordBatch, padding: int) -> int:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, row.schema) as writer:
        writer.write_batch(row, custom_metadata={"padding": "0" * padding})
    *_, message = pa.ipc.MessageReader.open_stream(sink.getvalue())
    return int(message.serialize().size) - int(message.body.size)


def _pieces(dataset: Dataset, reader: ParquetBlocks, each_block: Callable[[int], None]) -> Iterator[pa.RecordBatch]:
    """All rows in their order, in pieces that are large: a gather looks at each piece where strings are."""
    waiting: list[pa.Table] = []
    size_bytes = rows = 0
    for index, block in enumerate(dataset.blocks):
        waiting.append(reader.read(index))
        size_bytes += waiting[-1].nbytes
        rows += block.rows
        each_block(rows)
        if size_bytes >= _PIECE_BYTES or rows == dataset.rows:
            yield from pa.concat_tables(waiting).combine_chunks().to_batches()
            waiting, size_bytes = [], 0
