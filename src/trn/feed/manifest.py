"""`dataset.json`: a data set written down with the sha256 of every file and row group; docs/formats/dataset.md.

paths -> footers -> one read of every byte -> dataset.json          (write_manifest, `trn data index`)
dataset.json -> footers compared with it -> Dataset with digests    (open_manifest, at planning)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from trn.errors import DataError
from trn.feed.dataset import DataFile, Dataset, RowGroupDigest, dataset_of, open_dataset, refuse_changed
from trn.feed.footer import Footer, byte_ranges, read_footer_of, read_footers
from trn.feed.nulls import Fills
from trn.feed.sources import READ_BYTES, identity, open_source
from trn.feed.stores import is_url, parse_url
from trn.feed.strict import fields
from trn.files import write_atomic
from trn.records import JsonError, from_json, pretty_json, read_json, sha256_json

__all__ = ["MANIFEST_VERSION", "content_sha256", "manifest_files", "open_manifest", "write_manifest"]

MANIFEST_VERSION = 1
_TOP: dict[str, type] = {
    "schema_version": int,
    "fingerprint": str,
    "rows": int,
    "columns": list,
    "files": list,
    "sha256": str,
}
_FILE: dict[str, type] = {
    "path": str,
    "size_bytes": int,
    "sha256": str,
    "footer_sha256": str,
    "rows": int,
    "row_groups": list,
}
_GROUP: dict[str, type] = {"rows": int, "offset": int, "size_bytes": int, "sha256": str}


def write_manifest(paths: Sequence[str], out: Path) -> Dataset:
    """Read every byte of the files that `paths` name and publish their manifest at `out`; returns the data set.

    All columns of all files have to agree. Raises DataError for the data, StorageError for `out`.
    """
    dataset = open_dataset(paths, columns=None)
    folder = Path(os.path.abspath(out)).parent
    described = []
    files = []
    for file in dataset.files:
        whole, digests = _hash_file(file)
        files.append(replace(file, digests=digests))
        described.append(
            {
                "path": file.path if is_url(file.path) else os.path.relpath(os.path.abspath(file.path), folder),
                "size_bytes": file.size_bytes,
                "sha256": whole,
                "footer_sha256": file.footer_sha256,
                "rows": file.rows,
                "row_groups": [
                    {"rows": rows, **asdict(digest)} for rows, digest in zip(file.row_groups, digests, strict=True)
                ],
            }
        )
    value: dict[str, Any] = {
        "schema_version": MANIFEST_VERSION,
        "fingerprint": dataset.fingerprint,
        "rows": dataset.rows,
        "columns": [{"name": name, "type": kind} for name, kind in dataset.columns.items()],
        "files": described,
    }
    write_atomic(out, pretty_json({**value, "sha256": sha256_json(value)}))
    return replace(dataset, files=tuple(files))


def content_sha256(dataset: Dataset) -> str:
    """The digest of all rows as they lie in the files; they are read for it, but where a manifest gave digests.

    Raises DataError.
    """
    digests = (_hash_file(file)[1] if file.digests is None else file.digests for file in dataset.files)
    return sha256_json([[one.sha256 for one in groups] for groups in digests])


def _hash_file(file: DataFile) -> tuple[str, tuple[RowGroupDigest, ...]]:
    """sha256 of the file and of each of its row groups, in one read. Raises DataError."""
    with open_source(file.path) as source:
        footer = read_footer_of(source, file.path)
        refuse_changed(file, footer)
        spans = byte_ranges(source, footer)
        whole = hashlib.sha256()
        groups = [hashlib.sha256() for _ in spans]
        at = 0
        for index in sorted(range(len(spans)), key=lambda one: spans[one].offset):
            for chunk in _chunks(source, at, spans[index].offset, file.path):
                whole.update(chunk)
            for chunk in _chunks(source, spans[index].offset, spans[index].end, file.path):
                whole.update(chunk)
                groups[index].update(chunk)
            at = max(at, spans[index].end)
        for chunk in _chunks(source, at, file.size_bytes, file.path):
            whole.update(chunk)
    digests = (
        RowGroupDigest(span.offset, span.size_bytes, group.hexdigest())
        for span, group in zip(spans, groups, strict=True)
    )
    return whole.hexdigest(), tuple(digests)


def _chunks(source: pa.NativeFile, begin: int, end: int, path: str) -> Iterator[bytes]:
    while begin < end:
        try:
            chunk: bytes = source.read_at(min(READ_BYTES, end - begin), begin)
        except OSError as error:
            raise DataError(f"cannot read at byte {begin}: {error}.", where=path) from error
        if not chunk:
            raise DataError(f"the file ends at byte {begin}, expected {end} at least.", where=path)
        yield chunk
        begin += len(chunk)


def open_manifest(path: Path | str, columns: Sequence[str] | None, fills: Fills | None = None) -> Dataset:
    """The data set that a manifest describes, with the digests of its row groups.

    Footers are read and compared with the manifest; other bytes are not (the feed verifies each row group when it is
    first read). Raises DataError: a manifest that is not strict, of another version, or damaged; a file that is gone or
    differs; and what `open_dataset` raises.
    """
    manifest = _manifest_at(path)
    footers = read_footers([_place(file.path, str(path)) for file in manifest.files], count_nulls=fills is not None)
    for file, footer in zip(manifest.files, footers, strict=True):
        _refuse_other(file, footer, str(path))
    if len({identity(footer.path) for footer in footers}) < len(footers):
        raise DataError("a file is named twice.", where=str(path), hint="Write it again with `trn data index`.")
    dataset = dataset_of(footers, columns, fills)
    if (dataset.fingerprint, dataset.rows) != (manifest.fingerprint, manifest.rows):
        raise DataError(
            "its fingerprint or rows do not follow from its files.",
            where=str(path),
            hint="Write it again with `trn data index`.",
        )
    return replace(
        dataset,
        files=tuple(
            replace(opened, digests=file.digests) for opened, file in zip(dataset.files, manifest.files, strict=True)
        ),
    )


def _read(path: str) -> dict[str, Any]:
    if not is_url(path):
        return read_json(Path(path))
    with open_source(path) as source:
        value = from_json(source.read())
    if not isinstance(value, dict):
        raise JsonError("expected an object")
    return value


def _place(path: str, manifest: str) -> str:
    """Where a file of a manifest lies: relative paths begin at the manifest's own folder, on a disk or in a store."""
    if is_url(path):
        return path
    if is_url(manifest) and not path.startswith("/"):
        url = parse_url(manifest)
        return url.at(os.path.normpath(os.path.join(os.path.dirname(url.path), path)))
    return os.path.normpath(Path(os.path.abspath(manifest)).parent / path)


def manifest_files(path: str) -> tuple[DataFile, ...]:
    """The files as a manifest describes them, none of them opened; times are 0. Raises DataError for the manifest."""
    return tuple(
        DataFile(
            path=_place(file.path, path),
            size_bytes=file.size_bytes,
            mtime_ns=0,
            footer_sha256=file.footer_sha256,
            rows=sum(file.row_groups),
            row_groups=file.row_groups,
            digests=file.digests,
        )
        for file in _manifest_at(path).files
    )


def _manifest_at(path: Path | str) -> _Manifest:
    try:
        return _parse(_read(str(path)))
    except OSError as error:
        raise DataError(f"the manifest cannot be read: {error.strerror or error}.", where=str(path)) from error
    except JsonError as error:
        raise DataError(
            f"not a manifest of version {MANIFEST_VERSION}: {error}.",
            where=str(path),
            hint="Write it again with `trn data index`.",
        ) from error


@dataclass(frozen=True)
class _ManifestFile:
    path: str
    size_bytes: int
    footer_sha256: str
    row_groups: tuple[int, ...]
    digests: tuple[RowGroupDigest, ...]


@dataclass(frozen=True)
class _Manifest:
    fingerprint: str
    rows: int
    files: tuple[_ManifestFile, ...]


def _parse(value: dict[str, Any]) -> _Manifest:
    """The part of a manifest that is compared with the files. Raises JsonError."""
    version = value.get("schema_version")
    if version != MANIFEST_VERSION:
        raise JsonError(f"schema_version: expected {MANIFEST_VERSION}, found {version!r}")
    top = fields(value, "manifest", _TOP)
    if sha256_json({key: top[key] for key in top if key != "sha256"}) != top["sha256"]:
        raise JsonError("sha256: it is not the digest of the other fields; the manifest was changed or damaged")
    for index, column in enumerate(top["columns"]):
        fields(column, f"columns[{index}]", {"name": str, "type": str})
    if not top["files"]:
        raise JsonError("files: expected at least one")
    files = tuple(_parse_file(file, f"files[{index}]") for index, file in enumerate(top["files"]))
    return _Manifest(top["fingerprint"], top["rows"], files)


def _parse_file(value: Any, name: str) -> _ManifestFile:
    file = fields(value, name, _FILE)
    if not file["path"] or "\0" in file["path"]:
        raise JsonError(f"{name}.path: expected the path or URL of a file, found {file['path'][:80]!r}")
    groups = [fields(group, f"{name}.row_groups[{index}]", _GROUP) for index, group in enumerate(file["row_groups"])]
    if sum(group["rows"] for group in groups) != file["rows"]:
        raise JsonError(f"{name}.rows: {file['rows']}, its row groups have {sum(group['rows'] for group in groups)}")
    return _ManifestFile(
        path=file["path"],
        size_bytes=file["size_bytes"],
        footer_sha256=file["footer_sha256"],
        row_groups=tuple(group["rows"] for group in groups),
        digests=tuple(RowGroupDigest(group["offset"], group["size_bytes"], group["sha256"]) for group in groups),
    )


def _refuse_other(file: _ManifestFile, footer: Footer, manifest: str) -> None:
    """Raise DataError where the file on disk is not the one that the manifest describes."""
    again = "Bring the original back, or write the manifest again with `trn data index`."
    if footer.size_bytes != file.size_bytes:
        raise DataError(
            f"the file has {footer.size_bytes} bytes, {manifest} says {file.size_bytes}.", where=footer.path, hint=again
        )
    if footer.sha256 != file.footer_sha256 or footer.row_groups != file.row_groups:
        raise DataError(f"the file's footer is not the one in {manifest}.", where=footer.path, hint=again)
