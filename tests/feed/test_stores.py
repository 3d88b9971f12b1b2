"""Data behind URLs: read from real servers on loopback, and refused in one line that names the URL and no secret."""

from __future__ import annotations

import http.server
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import boto3
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from support.stores import CREDENTIALS, client_of, put, s3_server, web_server
from trn.errors import DataError
from trn.feed import (
    Cursor,
    Dataset,
    Feed,
    Order,
    check_unchanged,
    make_cache,
    open_cache,
    open_dataset,
    open_manifest,
    read_sequential,
    stores_fsspec,
    write_manifest,
)
from trn.feed.sources import identity, stat_source
from trn.feed.stores import ArrowStore, parse_url, store_of

WriteParquet = Callable[..., str]
S3 = pafs.S3FileSystem


# stores


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> S3:
    """A client of an S3 server that holds nothing but the bucket `data`; the environment names it for everybody."""
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": s3_endpoint}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("trn.feed.stores._TRIES", 1)
    _forget_stores()
    client = client_of(s3_endpoint)
    for bucket in client.get_file_info(pafs.FileSelector("")):
        client.delete_dir(bucket.path)
    client.create_dir("data")
    return client


def _forget_stores() -> None:
    from trn.feed import stores

    stores._store.cache_clear()


@pytest.fixture
def filled(s3: S3, write: WriteParquet) -> S3:
    first = 0
    for key, groups in {"a/1.parquet": [3, 4], "a/2.parquet": [2], "a/deep/3.parquet": [5]}.items():
        put(s3, f"data/{key}", Path(write(key, groups, first=first)).read_bytes())
        first += sum(groups)
    put(s3, "data/a/_tmp/x.parquet", b"hidden")
    put(s3, "data/a/.hidden.parquet", b"hidden")
    put(s3, "data/a/notes.txt", b"no data")
    return s3


class _Ranged(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, in byte ranges; 403 for what is called secret."""

    honours_ranges = True

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = self.headers.get("Range")
        if self._refused() or not (asked and self.honours_ranges and path.is_file()):
            return None if self._refused(tell=True) else super().do_GET()
        data = path.read_bytes()
        begin, _, end = asked.removeprefix("bytes=").partition("-")
        piece = data[int(begin) : int(end) + 1 if end else None]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{int(begin) + len(piece) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        self.wfile.write(piece)
        return None

    def do_HEAD(self) -> None:
        if not self._refused(tell=True):
            super().do_HEAD()

    def end_headers(self) -> None:
        if self.honours_ranges:
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def _refused(self, *, tell: bool = False) -> bool:
        refused = "secret" in self.path
        if refused and tell:
            self.send_error(403)
        return refused

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "web").mkdir()
    with web_server(partial(_Ranged, directory=str(tmp_path / "web"))) as place:
        yield f"http://{place}"


def ids(dataset: Dataset) -> list[int]:
    return [one for batch in read_sequential(dataset, ["id"], 4) for one in batch.column("id").to_pylist()]


# S3


def test_one_object_is_read_like_a_file(filled: S3, write: WriteParquet) -> None:
    far = open_dataset(["s3://data/a/1.parquet"], columns=["id", "pair"])
    near = open_dataset([write("same.parquet", [3, 4])], columns=["id", "pair"])
    assert far.fingerprint == near.fingerprint
    assert far.files[0].path == "s3://data/a/1.parquet"
    assert far.files[0].mtime_ns > 0
    assert ids(far) == ids(near) == list(range(7))
    assert Dataset.from_json(far.to_json()) == far
    assert check_unchanged(far) == ()


def test_folders_and_patterns_name_what_they_would_on_a_disk(filled: S3) -> None:
    def names(*urls: str) -> list[str]:
        return [file.path.removeprefix("s3://data/a/") for file in open_dataset(urls, columns=None).files]

    assert names("s3://data/a") == names("s3://data/a/") == ["1.parquet", "2.parquet", "deep/3.parquet"]
    assert names("s3://data") == names("s3://data/")
    assert names("s3://data/a/*.parquet") == ["1.parquet", "2.parquet"]
    assert names("s3://data/**/[2-3].parquet") == ["2.parquet", "deep/3.parquet"]
    assert names("s3://data/*/deep/*") == ["deep/3.parquet"]
    assert names("s3://data/a/2.parquet", "s3://data/a/[!2].parquet") == ["2.parquet", "1.parquet"]


@pytest.mark.parametrize(
    "pattern", ["[^0].parquet", "[!^0].parquet", "[0^].parquet", "[~~0&&].parquet", "[[0].parquet"]
)
def test_brackets_mean_what_they_do_on_a_disk(filled: S3, tmp_path: Path, write: WriteParquet, pattern: str) -> None:
    for name in "0^1~[":
        write(f"set/{name}.parquet", [1])
        put(filled, f"data/set/{name}.parquet", (tmp_path / "set" / f"{name}.parquet").read_bytes())
    near = sorted(path.name for path in (tmp_path / "set").glob(pattern))
    far = open_dataset([f"s3://data/set/{pattern}"], columns=None)
    assert [file.path.removeprefix("s3://data/set/") for file in far.files] == near


def test_a_pattern_that_is_none_is_named(filled: S3) -> None:
    with pytest.raises(DataError, match=r"s3://data/a/\[z-a\]\.parquet: no pattern: bad character range z-a"):
        open_dataset(["s3://data/a/[z-a].parquet"], columns=None)


def test_a_key_is_taken_as_it_is_written(s3: S3, write: WriteParquet) -> None:
    for key in ("a b.parquet", "part[1].parquet", "100%25.parquet", "è.parquet"):
        put(s3, f"data/{key}", Path(write("x.parquet", [2])).read_bytes())
        assert [file.path for file in open_dataset([f"s3://data/{key}"], columns=None).files] == [f"s3://data/{key}"]


def test_the_feed_gives_the_same_batches_from_a_store_as_from_a_disk(filled: S3, tmp_path: Path) -> None:
    def batches(dataset: Dataset) -> list[dict[str, list[object]]]:
        order = Order(dataset.fingerprint, dataset.block_rows, seed=5, batch_size=3, window=2, passes=2)
        with Feed(dataset, order, None, Cursor()) as feed:
            return [batch.record_batch.to_pydict() for batch in iter(feed.next, None)]

    near = open_dataset([str(tmp_path / "a" / name) for name in ("1.parquet", "2.parquet", "deep")], columns=None)
    assert batches(open_dataset(["s3://data/a"], columns=None)) == batches(near)


def test_two_spellings_of_an_object_are_one(filled: S3) -> None:
    assert identity("s3a://data/x") == identity("s3://data/x?region=eu-west-1") != identity("s3://data/y")
    with pytest.raises(DataError, match="named twice"):
        open_dataset(["s3://data/a/1.parquet", "s3a://data/a/*.parquet"], columns=None)


def test_a_manifest_holds_urls_whole_and_can_lie_in_the_store_itself(filled: S3, tmp_path: Path) -> None:
    written = write_manifest(["s3://data/a/*.parquet"], tmp_path / "dataset.json")
    opened = open_manifest(tmp_path / "dataset.json", columns=["id"])
    assert [file.path for file in opened.files] == ["s3://data/a/1.parquet", "s3://data/a/2.parquet"]
    assert opened.fingerprint == written.fingerprint
    assert ids(opened) == list(range(9))
    near = write_manifest([str(tmp_path / "a" / "1.parquet")], tmp_path / "a" / "dataset.json")
    put(filled, "data/a/dataset.json", (tmp_path / "a" / "dataset.json").read_bytes())
    far = open_manifest("s3://data/a/dataset.json", columns=None)
    assert [file.path for file in far.files] == ["s3://data/a/1.parquet"]
    assert far.fingerprint == near.fingerprint


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://data/a/none.parquet", "no such object, or no such bucket"),
        ("s3://nobucket/a/1.parquet", "no such object, or no such bucket"),
        ("s3://nobucket/a/*.parquet", "the specified bucket does not exist|no object matches"),
        ("s3://data/a/x*.parquet", "no object matches this pattern"),
        ("s3://data/b/", r"the folder holds no \*.parquet file"),
        ("s3://data/a/notes.txt", "not a parquet file"),
    ],
)
def test_what_is_not_there_is_named(filled: S3, url: str, message: str) -> None:
    with pytest.raises(DataError, match=f"(?i){message}") as caught:
        open_dataset([url], columns=None)
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_object_that_vanishes_between_plan_and_read_is_named(filled: S3) -> None:
    dataset = open_dataset(["s3://data/a"], columns=None)
    filled.delete_file("data/a/2.parquet")
    with pytest.raises(DataError, match=r"s3://data/a/2\.parquet: there is no such object"):
        check_unchanged(dataset)
    with pytest.raises(DataError, match=r"s3://data/a/2\.parquet: there is no such object"):
        ids(dataset)


def test_an_object_that_changes_between_plan_and_read_is_named(filled: S3, write: WriteParquet) -> None:
    dataset = open_dataset(["s3://data/a"], columns=None)
    put(filled, "data/a/2.parquet", Path(write("other.parquet", [2], first=90)).read_bytes())
    for read in (check_unchanged, ids):
        with pytest.raises(DataError, match=r"s3://data/a/2\.parquet.*the file has changed"):
            read(dataset)


def test_missing_credentials_are_one_line(s3: S3, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # by AWS's own client: pyarrow's leaves no access rules, and this server then lets everybody in
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    client.put_object(Bucket="data", Key="a/1.parquet", Body=b"something")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    _forget_stores()
    with pytest.raises(DataError, match=r"does not give it: .*ACCESS_DENIED.*credentials in the environment"):
        open_dataset(["s3://data/a/1.parquet"], columns=None)


class _Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_store_that_refuses_is_one_line_without_the_secret(s3: S3) -> None:
    with web_server(_Refusing) as place:
        for name in ("1.parquet", "*", ""):
            url = f"s3://data/a/{name}?endpoint_override={place}&scheme=http"
            with pytest.raises(DataError, match=r"does not give it: .*ACCESS_DENIED") as caught:
                open_dataset([url], columns=None)
            assert "word-of-somebody" not in str(caught.value)


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_an_error_soon(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trn.feed.stores.REQUEST_S", 1)
    with pytest.raises(DataError, match=r"does not give it: .*connect"):
        open_dataset(["s3://data/a.parquet?endpoint_override=127.0.0.1:9&scheme=http"], columns=None)
    with pytest.raises(DataError, match=r"does not give it: "):
        open_dataset(["gs://data/a.parquet?endpoint_override=127.0.0.1:9&scheme=http&anonymous=true"], columns=None)


@pytest.mark.slow
@pytest.mark.parametrize("url", ["s3://data/a.parquet?endpoint_override={}&scheme=http", "http://{}/a.parquet"])
def test_a_store_that_says_nothing_is_an_error_too(s3: S3, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for place in ("stores.CONNECT_S", "stores.REQUEST_S", "stores_fsspec.CONNECT_S", "stores_fsspec.REQUEST_S"):
        monkeypatch.setattr(f"trn.feed.{place}", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections wait in its backlog
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DataError, match=r"does not give it: .*(Timeout|timeout)"):
            open_dataset([url.format(place)], columns=None)


# URLs


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAXXXX:hunter22@data/a.parquet",
        "s3://hunter22@data/a.parquet",
        "https://me:hunter22@host/a.parquet",
        "https://host/a.parquet?X-Amz-Signature=hunter22&X-Amz-Date=1",
        "https://host/a.parquet?sv=1;sig=hunter22",
        "abfs://place/a.parquet?account_key=hunter22",
        "s3://data/a.parquet?secret_key=hunter22",
        "s3://data/a.parquet?access_token=hunter22",
        "3://me:hunter22@data/a",
        "s3://AKIAXXXX:hunter/22hunter22@data/a.parquet",
        "s3a://AKIAXXXX:hunter/22hunter22@data/*",
        "s3://AKIAXXXX:hunter22",
        "gs://name:hunter22/a",
        "https://me:hunter22/x@host/a.parquet",
        "s3://data/a?endpoint_override=http://me:hunter22@host",
        "s3://data/a?endpoint_override=http%3A%2F%2Fme:hunter22%40host",
        "https://host/a?next=http://me:hunter22@host",
        "abfs://box@account:hunter22@x/y",
        "abfs://box@account:hunter22/x@y",
        "abfs://box@hunter22@x/y",
        "https://host/a.parquet#access_token=hunter22",
        "https://host/a.parquet?x=1#access_token=hunter22",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(DataError) as caught:
        open_dataset([url], columns=None)
    assert "hunter" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://data/user@1.0/a.parquet",
        "s3://data/a#1.parquet",
        "s3://data/a?endpoint_override=http://127.0.0.1:9000&scheme=http",
        "https://127.0.0.1:8080/a@1.parquet?v=pkg@1",
        "http://[::1]:80/a.parquet",
        "http://[::1]/a.parquet",
        "hdfs://namenode:9000/a",
        "abfs://box@account.dfs.core.windows.net/a",
    ],
)
def test_what_only_looks_like_a_secret_is_taken(url: str) -> None:
    assert parse_url(url).text == url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3:///a.parquet", "names no bucket or host"),
        ("s3://data/a.parquet?version=1", "unknown option 'version', expected one of anonymous"),
        ("nonsense://data/a.parquet", "this scheme is not known"),
        ("s3://data/a\0.parquet", "zero bytes"),
        ("file:///data/a.parquet", r"file:///data/a\.parquet: a file:// URL is not taken\. .*Write it as a path"),
        ("https://host/a#b", r"https://host/a: what follows a \"#\" never reaches the server"),
    ],
)
def test_a_url_that_is_none_is_refused(url: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset([url], columns=None)


def test_a_client_of_one_host_is_told_which() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"

        def greet() -> None:
            with server.accept()[0] as caller:
                caller.sendall(b"421 nobody is served today\r\n")

        greeter = threading.Thread(target=greet)
        greeter.start()
        with pytest.raises(DataError, match="cannot be opened: 421 nobody is served today"):
            open_dataset([f"ftp://{place}/a.parquet"], columns=None)
        greeter.join(10)


class _OneAtATime(MemoryFileSystem):
    """A client with one connection, which says so when two talk at once; what it lists not is no name to it."""

    protocol = "single"
    talking: ClassVar[list[str]] = []
    had_two = False

    def info(self, path: str, **options: Any) -> Any:
        self.talking.append(path)
        time.sleep(0.02)
        type(self).had_two |= len(self.talking) > 1
        self.talking.remove(path)
        try:
            return next(one for one in [super().info(path, **options)] if not path.endswith("none.parquet"))
        except StopIteration as error:  # as fsspec's ftp does
            raise FileNotFoundError(path) from error

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + str(path).removeprefix("single://").strip("/")


def test_a_client_with_one_connection_is_asked_one_thing_at_a_time(tmp_path: Path, write: WriteParquet) -> None:
    fsspec.register_implementation("single", _OneAtATime, clobber=True)
    memory = fsspec.filesystem("memory")
    for name in ("1", "2", "3", "none"):
        memory.pipe(f"/far/{name}.parquet", Path(write(f"{name}.parquet", [2])).read_bytes())
    assert len(ids(open_dataset(["single://far/[1-3].parquet"], columns=None))) == 6
    assert not _OneAtATime.had_two
    with pytest.raises(DataError, match="there is no such object"):
        open_dataset(["single://far/none.parquet"], columns=None)


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _forget_stores()
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(DataError, match=r"https:// URLs need fsspec.*trn-runtime\[remote\]"):
        open_dataset(["https://127.0.0.1:9/a.parquet"], columns=None)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("abfs://container@account.dfs.core.windows.net/a/b.parquet", "container/a/b.parquet"),
        ("abfss://account.blob.core.windows.net/container/a/b.parquet", "container/a/b.parquet"),
    ],
)
def test_azure_names_its_account_in_the_url(url: str, path: str) -> None:
    if not hasattr(pafs, "AzureFileSystem"):
        pytest.skip("this pyarrow has no Azure")
    parsed = parse_url(url)
    store = store_of(parsed)
    assert isinstance(store, ArrowStore)
    assert store._at(parsed.path) == path
    with pytest.raises(DataError, match="a password or a key in it"):
        parse_url("abfs://container:hunter22@account.dfs.core.windows.net/a")


# http


def test_files_of_a_web_server_are_read_in_pieces(web: str, tmp_path: Path, write: WriteParquet) -> None:
    for name, groups, first in (("web/d/1.parquet", [3, 4], 0), ("web/d/2.parquet", [2], 7)):
        write(name, groups, first=first)
    one = open_dataset([f"{web}/d/1.parquet", f"{web}/d/2.parquet"], columns=["id", "name"])
    assert ids(one) == list(range(9))
    assert check_unchanged(one) == ()
    assert open_dataset([f"{web}/d/*.parquet"], columns=["id", "name"]) == one
    assert open_dataset([f"{web}/d/"], columns=["id", "name"]) == one
    write("web/d/2.parquet", [2], first=70)
    with pytest.raises(DataError, match=r"/d/2\.parquet.*the file has changed"):
        check_unchanged(one)


def test_a_cache_of_a_web_server_s_files_is_bound_to_their_times(web: str, tmp_path: Path) -> None:
    path = tmp_path / "web/a.parquet"
    for middle, changed_s in ((5, 1_700_000_000), (7, 1_700_009_999)):  # the same size and footer
        pq.write_table(pa.table({"x": [1, middle, 9]}), path, compression="none", use_dictionary=False)
        os.utime(path, (changed_s, changed_s))
        dataset = open_dataset([f"{web}/a.parquet"], columns=None)
        assert dataset.files[0].mtime_ns == changed_s * 10**9
        make_cache(dataset, ["x"], tmp_path / "cache")
        rows = open_cache(dataset, ["x"], tmp_path / "cache")
        assert rows.take(np.arange(3)).column("x").to_pylist() == [1, middle, 9]
        rows.close()


class _Timeless(_Ranged):
    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Last-Modified":
            super().send_header(keyword, value)


def test_files_without_a_time_have_a_cache_only_with_a_manifest(tmp_path: Path, write: WriteParquet) -> None:
    write("web/a.parquet", [3])
    with web_server(partial(_Timeless, directory=str(tmp_path / "web"))) as place:
        url = f"http://{place}/a.parquet"
        dataset = open_dataset([url], columns=["id"])
        with pytest.raises(DataError, match=r"a\.parquet: nobody says when this file was changed.*trn data index"):
            make_cache(dataset, ["id"], tmp_path / "cache")
        assert not (tmp_path / "cache").exists()
        write_manifest([url], tmp_path / "dataset.json")
        indexed = open_manifest(tmp_path / "dataset.json", ["id"])
        assert make_cache(indexed, ["id"], tmp_path / "cache").rows == 3


@pytest.mark.parametrize(
    ("told", "expected_s"),
    [
        ("Wed, 15 Nov 2023 00:59:59 GMT", 1_700_009_999),
        ("2023-11-15T00:59:59Z", 1_700_009_999),
        (1_700_009_999.0, 1_700_009_999),
        ("yesterday", 0),
        (None, 0),
    ],
)
def test_times_are_taken_as_clients_write_them(told: object, expected_s: int) -> None:
    assert stores_fsspec._nanoseconds(told) == expected_s * 10**9


def test_a_web_server_that_refuses_or_has_nothing_is_named(web: str, tmp_path: Path, write: WriteParquet) -> None:
    write("web/secret.parquet", [1])
    with pytest.raises(DataError, match=r"/secret\.parquet: the store does not give it: .*403"):
        open_dataset([f"{web}/secret.parquet"], columns=None)
    with pytest.raises(DataError, match=r"/none\.parquet: there is no such object"):
        open_dataset([f"{web}/none.parquet"], columns=None)
    with pytest.raises(DataError, match=r"/a\.parquet: the store does not give it: .*connect"):
        open_dataset(["http://127.0.0.1:9/a.parquet"], columns=None)


def test_a_web_server_without_ranges_is_refused(tmp_path: Path, write: WriteParquet) -> None:
    handler = type("_Whole", (_Ranged,), {"honours_ranges": False})
    write("web/a.parquet", [20_000])
    with (
        web_server(partial(handler, directory=str(tmp_path / "web"))) as place,
        pytest.raises(DataError, match=r"/a\.parquet: the parquet footer cannot be read: .*range"),
    ):
        open_dataset([f"http://{place}/a.parquet"], columns=None)


def test_a_store_without_times_says_zero(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2]}), tmp_path / "a.parquet")
    fsspec.filesystem("memory").pipe("/place/a.parquet", (tmp_path / "a.parquet").read_bytes())
    found = stat_source("memory://place/a.parquet")
    assert (found.size_bytes, found.mtime_ns) == ((tmp_path / "a.parquet").stat().st_size, 0)
    assert ids(open_dataset(["memory://place/*.parquet"], columns=None)) == [1, 2]
