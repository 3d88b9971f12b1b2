"""Inputs from other stores, through fsspec; the store is one in memory, and one that has bad days."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from support.served import sha256_of
from trn.errors import DataError, Unauthorized
from trn.transfer import arrival, download, meters
from trn.transfer.backoff import Backoff
from trn.transfer.client import Client
from trn.transfer.download import Fetched, Wanted, fetch
from trn.transfer.stores import store_url

DATA = os.urandom(300_000)
DIGEST = sha256_of(DATA)


class _File:
    """A file that breaks off after so many bytes, or of a negative number just ends there."""

    def __init__(self, file: Any, left: int) -> None:
        self._file, self._left, self._just_ends = file, abs(left), left < 0

    def read(self, count: int) -> bytes:
        if not self._left:
            if self._just_ends:
                return b""
            raise ConnectionResetError("of https://example.org/?X-Amz-Signature=geheim")
        piece: bytes = self._file.read(min(count, self._left))
        self._left -= len(piece)
        return piece

    def seek(self, offset: int) -> None:
        Flaky.seeks.append(offset)
        self._file.seek(offset)

    def close(self) -> None:
        raise ValueError("cannot even close")


class Flaky(MemoryFileSystem):
    """It does as `bad_days` say, one after the other: an error, or the bytes after which a file breaks off."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    bad_days: ClassVar[list[int | Exception]] = []
    seeks: ClassVar[list[int]] = []

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return MemoryFileSystem._strip_protocol(str(path).replace("flaky://", "memory://"))

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super().open(path, mode, **options)
        if mode != "rb" or not self.bad_days:
            return file
        day = self.bad_days.pop(0)
        if isinstance(day, Exception):
            raise day
        return _File(file, day)


@pytest.fixture(autouse=True)
def stores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(meters, "Backoff", lambda: Backoff(first_s=0.02, longest_s=0.05))
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    yield
    MemoryFileSystem.store.clear()
    Flaky.store.clear()
    Flaky.bad_days.clear()
    Flaky.seeks.clear()


def get(cache: Path, *wanted: Wanted, patience_s: float = 5.0) -> list[Fetched]:
    return fetch(wanted, cache, Client(None, frozenset()), patience_s=patience_s)


def put(url: str, data: bytes) -> str:
    with fsspec.open(url, "wb") as stream:
        stream.write(data)
    return url


def test_an_object_of_a_store_is_fetched_by_its_digest_or_without(tmp_path: Path) -> None:
    url = put("memory://bucket/a.bin", DATA)
    for digest in (DIGEST, None):
        (found,) = get(tmp_path / str(digest), Wanted("one", url, digest))
        assert (found.path.read_bytes(), found.sha256, found.size_bytes) == (DATA, DIGEST, len(DATA))


def test_an_object_that_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    url = put("flaky://bucket/a.bin", DATA)
    (first,) = get(tmp_path, Wanted("one", url))
    Flaky.bad_days[:] = [AssertionError("read again")]
    assert get(tmp_path, Wanted("one", url)) == [first]
    Flaky.bad_days.clear()
    put(url, b"other")
    (other,) = get(tmp_path, Wanted("one", url))
    assert other.path.read_bytes() == b"other"


def test_what_breaks_off_is_read_on_and_a_changed_object_from_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "_NOTE_FROM_BYTES", 0)
    url = put("flaky://bucket/a.bin", DATA)
    Flaky.bad_days[:] = [100_000, OSError("later"), 50_000, 1_000_000]
    (found,) = get(tmp_path / "1", Wanted("one", url))
    assert (found.path.read_bytes(), Flaky.seeks) == (DATA, [100_000, 150_000])
    Flaky.bad_days[:] = [100_000]
    with pytest.raises(
        DataError, match=r"no progress for 0 s: the store does not give it \(ConnectionResetError\)"
    ) as told:
        get(tmp_path / "2", Wanted("one", url), patience_s=0)
    assert "geheim" not in str(told.value)
    other = put(url, DATA[::-1]) and DATA[::-1]
    (found,) = get(tmp_path / "2", Wanted("one", url))
    assert found.path.read_bytes() == other


def test_an_object_that_ends_early_is_not_whole(tmp_path: Path) -> None:
    url = put("flaky://bucket/a.bin", DATA)
    Flaky.bad_days[:] = [-100_000]
    (found,) = get(tmp_path / "1", Wanted("one", url))
    assert found.path.read_bytes() == DATA
    Flaky.bad_days[:] = [-100_000]
    with pytest.raises(DataError, match="it ended 200000 bytes too early"):
        get(tmp_path / "2", Wanted("one", url), patience_s=0)


@pytest.mark.parametrize(
    ("day", "kind", "message"),
    [
        (FileNotFoundError("geheim"), DataError, "there is no such object"),
        (PermissionError("geheim"), Unauthorized, "the store does not allow it"),
        (ValueError("geheim"), DataError, "the client of this store fails with ValueError"),
    ],
)
def test_what_a_store_refuses_is_said_in_our_words(
    tmp_path: Path, day: Exception, kind: type[Exception], message: str
) -> None:
    url = put("flaky://bucket/a.bin", DATA)
    Flaky.bad_days[:] = [day]
    with pytest.raises(kind, match=message) as told:
        get(tmp_path, Wanted("one", url))
    assert "geheim" not in str(told.value)


def test_a_store_that_never_comes_back_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, never = put("flaky://bucket/a.bin", DATA), threading.Event()
    monkeypatch.setattr(Flaky, "open", lambda *_, **options: never.wait(60))
    monkeypatch.setattr(download, "_SILENT_S", 0.3)
    with pytest.raises(DataError, match=r"input one \(flaky://bucket/a.bin\): nothing was heard of it for 0.3 s"):
        get(tmp_path, Wanted("one", url), patience_s=0)
    never.set()


def test_an_object_that_is_missing_a_folder_or_of_no_known_scheme_is_refused(tmp_path: Path) -> None:
    put("memory://bucket/folder/a.bin", DATA)
    for source, message in (
        ("memory://bucket/missing", "there is no such object"),
        ("memory://bucket/folder", "it is a folder"),
        ("nosuchscheme://bucket/a", "nosuchscheme:// is not known"),
    ):
        with pytest.raises(DataError, match=message):
            get(tmp_path, Wanted("one", source))


def test_an_object_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"expected 1 bytes, found {len(DATA)}"):
        get(tmp_path, Wanted("one", put("memory://bucket/a.bin", DATA), None, 1))


def test_a_container_of_azure_is_no_name_of_somebody() -> None:
    assert store_url("abfs://container@account.dfs.core.windows.net/a/b") == "abfs"
    with pytest.raises(ValueError, match="name or a password"):
        store_url("abfs://somebody:geheim@account/a")
    with pytest.raises(ValueError, match="name or a password"):
        store_url("sftp://somebody@host/a")


def test_the_room_is_imported_without_its_extras() -> None:
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['urllib3', 'fsspec', 'jwt'], None))\n"
        "import trn.transfer.download, trn.transfer.client, trn.transfer.stores\n"
        "try:\n    trn.transfer.client.Client(None, frozenset())\n"
        "except Exception as error:\n    print(error)\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'pydantic', 'rich'} & set(sys.modules)\n"
        "print(heavy or 'light')"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert "urllib3, not installed. pip install 'trn-runtime[worker]'" in told
    assert told.endswith("light\n")
