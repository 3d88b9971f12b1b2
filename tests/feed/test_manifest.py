"""dataset.json: written whole, read strictly, and never believed over the files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trn.errors import DataError, StorageError
from trn.feed import Cursor, Feed, Order, check_unchanged, open_dataset, open_manifest, write_manifest
from trn.records import sha256_json

WriteParquet = Callable[..., str]


def edit(path: Path, change: Callable[[dict[str, Any]], object], *, seal: bool = True) -> None:
    value = json.loads(path.read_text())
    change(value)
    if seal:
        value["sha256"] = sha256_json({key: value[key] for key in value if key != "sha256"})
    path.write_text(json.dumps(value))


def test_a_manifest_opens_as_the_same_data_set(write: WriteParquet, tmp_path: Path) -> None:
    paths = [write("d/b.parquet", [3, 0, 5]), write("d/a.parquet", [2])]
    written = write_manifest(paths, tmp_path / "dataset.json")
    opened = open_manifest(tmp_path / "dataset.json", columns=["id"])
    plain = open_dataset(paths, columns=["id"])
    assert opened.fingerprint == plain.fingerprint == written.fingerprint
    assert opened.columns == plain.columns
    assert [file.path for file in opened.files] == paths
    assert [file.digests for file in opened.files] == [file.digests for file in written.files]
    assert check_unchanged(opened) == ()


def test_a_manifest_holds_the_digests_of_files_and_row_groups(write: WriteParquet, tmp_path: Path) -> None:
    path = Path(write("a.parquet", [300, 0, 50]))
    write_manifest([str(path)], tmp_path / "dataset.json")
    value = json.loads((tmp_path / "dataset.json").read_text())
    (file,) = value["files"]
    data = path.read_bytes()
    assert file["path"] == "a.parquet"
    assert file["sha256"] == hashlib.sha256(data).hexdigest()
    assert [group["rows"] for group in file["row_groups"]] == [300, 0, 50]
    for group in file["row_groups"]:
        piece = data[group["offset"] : group["offset"] + group["size_bytes"]]
        assert hashlib.sha256(piece).hexdigest() == group["sha256"]
    assert value["columns"][0] == {"name": "id", "type": "int64"}


def test_writing_a_manifest_twice_gives_the_same_bytes(write: WriteParquet, tmp_path: Path) -> None:
    path = write("a.parquet", [3])
    write_manifest([path], tmp_path / "one.json")
    write_manifest([path], tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_a_data_set_can_be_moved_with_its_manifest(write: WriteParquet, tmp_path: Path) -> None:
    write("old/a.parquet", [3])
    before = write_manifest([str(tmp_path / "old")], tmp_path / "old" / "dataset.json")
    shutil.move(tmp_path / "old", tmp_path / "new")
    after = open_manifest(tmp_path / "new" / "dataset.json", columns=None)
    assert after.fingerprint == before.fingerprint
    assert after.files[0].path == str(tmp_path / "new" / "a.parquet")


def test_a_manifest_may_name_files_above_it_and_by_absolute_path(write: WriteParquet, tmp_path: Path) -> None:
    path = write("a.parquet", [3])
    (tmp_path / "deep").mkdir()
    manifest = tmp_path / "deep" / "dataset.json"
    write_manifest([path], manifest)
    assert json.loads(manifest.read_text())["files"][0]["path"] == "../a.parquet"
    edit(manifest, lambda value: value["files"][0].update(path=path))
    assert open_manifest(manifest, columns=None).files[0].path == path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.update(schema_version=2), "schema_version: expected 1, found 2"),
        (lambda value: value.pop("schema_version"), "schema_version: expected 1, found None"),
        (lambda value: value.update(extra=1), "unknown extra"),
        (lambda value: value.pop("rows"), "missing rows"),
        (lambda value: value.update(rows=4), "rows do not follow from its files"),
        (lambda value: value.update(fingerprint="00" * 32), "fingerprint or rows do not follow"),
        (lambda value: value.update(files=[]), "files: expected at least one"),
        (lambda value: value["files"].append(value["files"][0]), "a file is named twice"),
        (lambda value: value["files"][0].update(more=1), r"files\[0\]: unknown more"),
        (lambda value: value["files"][0].update(path=""), r"files\[0\]\.path: expected the path"),
        (lambda value: value["files"][0].update(path="a\0b"), r"files\[0\]\.path: expected the path"),
        (lambda value: value["files"][0].update(path="s3://me:word@x/a.parquet"), "a password or a key in it"),
        (lambda value: value["files"][0].update(path="gone.parquet"), r"gone\.parquet: the file does not exist"),
        (lambda value: value["files"][0].update(path="/dev/zero"), "/dev/zero: not a regular file"),
        (lambda value: value["files"][0].update(size_bytes=12), r"bytes, .*dataset\.json says 12"),
        (lambda value: value["files"][0].update(size_bytes=-12), "expected no negative number"),
        (lambda value: value["files"][0].update(size_bytes="12"), "expected int, found str"),
        (lambda value: value["files"][0].update(rows=9), r"files\[0\]\.rows: 9, its row groups have 3"),
        (lambda value: value["files"][0].update(footer_sha256="00" * 32), "footer is not the one in"),
        (lambda value: value["files"][0]["row_groups"][0].update(rows=3.0), "expected int, found float"),
        (lambda value: value["files"][0]["row_groups"][0].update(sha256="zz"), "expected 64 hex digits"),
        (lambda value: value["columns"].append("id"), r"columns\[3\]: expected an object"),
    ],
)
def test_a_manifest_that_is_not_strictly_right_is_refused(
    write: WriteParquet, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    manifest = tmp_path / "dataset.json"
    write_manifest([write("a.parquet", [3])], manifest)
    edit(manifest, change)
    with pytest.raises(DataError, match=message) as caught:
        open_manifest(manifest, columns=None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [4, 100, 600])
def test_a_file_that_has_lost_data_before_its_footer_is_not_indexed(
    write: WriteParquet, tmp_path: Path, keep: int
) -> None:
    path = Path(write("a.parquet", [500]))
    whole = path.read_bytes()
    length = int.from_bytes(whole[-8:-4], "little") + 8
    path.write_bytes(whole[:keep] + whole[-length:])
    with pytest.raises(DataError, match=r"a\.parquet"):
        write_manifest([str(path)], tmp_path / "dataset.json")
    assert not (tmp_path / "dataset.json").exists()


def test_a_manifest_that_was_changed_by_hand_is_refused(write: WriteParquet, tmp_path: Path) -> None:
    manifest = tmp_path / "dataset.json"
    write_manifest([write("a.parquet", [3])], manifest)
    edit(manifest, lambda value: value["columns"][0].update(type="int32"), seal=False)
    with pytest.raises(DataError, match="not the digest of the other fields"):
        open_manifest(manifest, columns=None)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"rows": NaN}', b'{"rows": 1, "rows": 1}', b"\xff\xfe"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(DataError, match=r"dataset\.json: not a manifest"):
        open_manifest(tmp_path / "dataset.json", columns=None)


def test_a_manifest_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.json: the manifest cannot be read: No such file"):
        open_manifest(tmp_path / "dataset.json", columns=None)


def test_a_manifest_is_not_written_into_a_missing_folder(write: WriteParquet, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere/dataset\.json"):
        write_manifest([write("a.parquet", [3])], tmp_path / "nowhere" / "dataset.json")


def test_bytes_changed_behind_the_footer_are_found_when_the_row_group_is_first_read(
    write: WriteParquet, tmp_path: Path
) -> None:
    path = Path(write("a.parquet", [4, 4, 4], compression="none", use_dictionary=False))
    write_manifest([str(path)], tmp_path / "dataset.json")
    data = path.read_bytes()
    at = data.index((5).to_bytes(8, "little"))
    stamp = os.stat(path)
    path.write_bytes(data[:at] + b"\xee" + data[at + 1 :])
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    dataset = open_manifest(tmp_path / "dataset.json", columns=["id"])
    order = Order(dataset.fingerprint, dataset.block_rows, seed=1, batch_size=4, shuffle=False)
    with Feed(dataset, order, None, Cursor()) as feed:
        assert feed.next() is not None
        for _ in range(2):
            with pytest.raises(DataError, match=r"a\.parquet, row group 1: its bytes have sha256 .* the manifest says"):
                feed.next()
