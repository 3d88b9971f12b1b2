"""Inputs over http and from this disk: whole, checked and cached, or an error that names them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.served import Served, Way, served, sha256_of
from trn.errors import DataError, Stopped, StorageError, TrnError, Unauthorized
from trn.files import Lock, boot_id, set_fault
from trn.records import read_json
from trn.transfer import arrival, meters
from trn.transfer.backoff import Backoff
from trn.transfer.cache import Cache
from trn.transfer.client import Client
from trn.transfer.download import Fetched, Wanted, fetch

pytestmark = pytest.mark.slow

DATA = os.urandom(300_000)
DIGEST = sha256_of(DATA)


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits half a minute for a server waits a twentieth of a second here."""
    monkeypatch.setattr(meters, "Backoff", lambda: Backoff(first_s=0.02, longest_s=0.05))


@pytest.fixture
def server() -> Iterator[Served]:
    with served() as kept:
        yield kept


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def get(cache: Path, *wanted: Wanted, client: Client | None = None, **options: Any) -> list[Fetched]:
    options.setdefault("patience_s", 5.0)
    return fetch(wanted, cache, client or Client(None, frozenset(), timeout_s=5.0), **options)


def names(cache: Path) -> list[str]:
    """All files of the cache but the locks."""
    return sorted(
        str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"
    )


def of(digest: str) -> str:
    return f"sha256/{digest[:2]}/{digest}"


# by digest


def test_an_input_is_put_into_the_cache_by_its_digest(server: Served, cache: Path) -> None:
    url = server.put("/base.bin?version=3", DATA)
    (found,) = get(cache, Wanted("base_model", url, DIGEST.upper(), len(DATA)))
    assert found == Fetched("base_model", cache / of(DIGEST), DIGEST, len(DATA), f"{server.url}/base.bin")
    assert found.path.read_bytes() == DATA
    assert found.path.stat().st_mode & 0o777 == 0o600
    assert names(cache) == [of(DIGEST)]


def test_what_is_in_the_cache_is_not_asked_for_again_wherever_it_comes_from(server: Served, cache: Path) -> None:
    get(cache, Wanted("one", server.put("/a", DATA), DIGEST))
    server.seen.clear()
    (found,) = get(cache, Wanted("two", "https://nowhere.invalid/b", DIGEST, len(DATA)))
    assert (found.path.read_bytes(), server.seen) == (DATA, [])


@pytest.mark.parametrize("damage", [b"", DATA[:-1], DATA + b"x", b"x" + DATA[1:]])
def test_a_damaged_file_of_the_cache_is_fetched_anew(server: Served, cache: Path, damage: bytes) -> None:
    wanted = Wanted("one", server.put("/a", DATA), DIGEST)
    (found,) = get(cache, wanted)
    found.path.write_bytes(damage)
    (found,) = get(cache, wanted)
    assert found.path.read_bytes() == DATA
    assert len(server.seen) == 2


def test_a_wrong_digest_is_fetched_once_more_and_then_refused(server: Served, cache: Path) -> None:
    url = server.put("/a.bin?v=1", DATA)
    with pytest.raises(DataError) as told:
        get(cache, Wanted("base_model", url, "ab" * 32))
    assert f"expected the sha256 {'ab' * 32}, found {DIGEST}" in str(told.value)
    assert f"input base_model ({server.url}/a.bin)" in str(told.value)
    assert told.value.exit_status == 65
    assert server.ranges("/a.bin?v=1") == [None, None]
    assert [path for path in cache.rglob("*.part") if path.stat().st_size] == []
    assert not (cache / of(DIGEST)).exists()


def test_bytes_that_were_changed_on_the_way_are_fetched_once_more(server: Served, cache: Path) -> None:
    url = server.put("/a", DATA, Way(body=b"x" + DATA[1:]))
    (found,) = get(cache, Wanted("one", url, DIGEST))
    assert found.path.read_bytes() == DATA


def test_what_is_fetched_once_more_has_all_the_patience_again(server: Served, cache: Path) -> None:
    url = server.put("/a", DATA, Way(body=b"x" + DATA[1:]), Way(cut_after=250_000, bytes_per_s=400_000))
    (found,) = get(cache, Wanted("one", url, DIGEST), patience_s=0.5)
    assert found.path.read_bytes() == DATA


def test_another_size_is_refused_before_anything_is_written(server: Served, cache: Path) -> None:
    url = server.always("/a", Way(), DATA)
    for size in (len(DATA) - 1, len(DATA) + 1, 0):
        with pytest.raises(DataError, match=f"expected {size} bytes, found {len(DATA)}"):
            get(cache, Wanted("one", url, DIGEST, size))
    assert len(server.seen) == 3
    with pytest.raises(DataError, match="expected 10 bytes, found"):  # of a length that is not said
        get(cache, Wanted("one", server.always("/b", Way(is_chunked=True), DATA), None, 10))
    assert names(cache) == [] or all(not (cache / name).stat().st_size for name in names(cache))


def test_what_is_longer_than_promised_is_not_read_to_its_end(server: Served, cache: Path) -> None:
    url = server.always("/a", Way(is_chunked=True, bytes_per_s=50_000), DATA)
    before = time.monotonic()
    with pytest.raises(DataError, match="expected 10 bytes, found"):
        get(cache, Wanted("one", url, DIGEST, 10))
    assert time.monotonic() - before < 8  # all of it would take twelve seconds, in two tries


def test_an_empty_input_is_one(server: Served, cache: Path) -> None:
    found = get(cache, Wanted("a", server.put("/a", b""), sha256_of(b""), 0), Wanted("b", server.put("/b", b"")))
    assert [(one.path.read_bytes(), one.size_bytes) for one in found] == [(b"", 0)] * 2


# interruptions


def test_what_breaks_off_is_read_on_from_there(server: Served, cache: Path) -> None:
    url = server.put("/a", DATA, Way(cut_after=100_000), Way(cut_after=50_000), Way(503), Way(cut_after=0))
    (found,) = get(cache, Wanted("one", url, DIGEST))
    assert found.path.read_bytes() == DATA
    asked = server.ranges("/a")
    assert asked[:2] == [None, "bytes=100000-"]
    assert asked[2:] == ["bytes=150000-"] * 3


def test_a_server_that_ignores_ranges_is_read_from_the_beginning(server: Served, cache: Path) -> None:
    url = server.put(
        "/a", DATA, Way(cut_after=100_000), Way(ignores_range=True, cut_after=200_000), Way(ignores_range=True)
    )
    (found,) = get(cache, Wanted("one", url, DIGEST))
    assert found.path.read_bytes() == DATA


def test_a_server_that_always_breaks_off_at_the_same_place_is_given_up(server: Served, cache: Path) -> None:
    url = server.always("/a", Way(ignores_range=True, cut_after=100_000), DATA)
    before = time.monotonic()
    with pytest.raises(DataError, match=r"no progress for 0.5 s: the connection broke"):
        get(cache, Wanted("one", url, DIGEST), patience_s=0.5)
    assert time.monotonic() - before < 20
    assert len(server.seen) > 2


@pytest.mark.parametrize("said", [len(DATA) * 2, len(DATA) // 2])
def test_a_server_that_lies_about_the_length_is_not_believed(server: Served, cache: Path, said: int) -> None:
    (found,) = get(cache, Wanted("one", server.put("/a", DATA, Way(length=said)), DIGEST))
    assert found.path.read_bytes() == DATA
    with pytest.raises(DataError):
        get(cache, Wanted("two", server.always("/b", Way(length=said), DATA), "cd" * 32), patience_s=0.3)


def test_a_part_that_is_not_the_one_asked_for_is_dropped(server: Served, cache: Path) -> None:
    wrong = Way(206, (("Content-Range", f"bytes 7-{len(DATA) - 1}/{len(DATA)}"),))
    (found,) = get(cache, Wanted("one", server.put("/a", DATA, Way(cut_after=1000), wrong), DIGEST))
    assert found.path.read_bytes() == DATA
    assert server.ranges("/a") == [None, "bytes=1000-", None]
    with pytest.raises(DataError, match="another part than the one"):
        get(cache, Wanted("two", server.always("/b", wrong, DATA), "cd" * 32))


def test_an_overlong_part_of_an_earlier_try_is_dropped(server: Served, cache: Path) -> None:
    slot = Cache(cache).slot("", DIGEST)
    slot.part.write_bytes(DATA + b"more")
    (found,) = get(cache, Wanted("one", server.put("/a", DATA), DIGEST))
    assert found.path.read_bytes() == DATA
    assert server.ranges("/a") == [f"bytes={len(DATA) + 4}-", None]


def test_a_whole_part_of_an_earlier_try_is_not_asked_for_again(cache: Path) -> None:
    Cache(cache).slot("", DIGEST).part.write_bytes(DATA)
    (found,) = get(cache, Wanted("one", "https://nowhere.invalid/a", DIGEST, len(DATA)))
    assert (found.path.read_bytes(), names(cache)) == (DATA, [of(DIGEST)])


def test_a_part_with_other_bytes_is_read_on_and_then_begun_anew(server: Served, cache: Path) -> None:
    Cache(cache).slot("", DIGEST).part.write_bytes(b"x" * 1000)
    (found,) = get(cache, Wanted("one", server.put("/a", DATA), DIGEST))
    assert found.path.read_bytes() == DATA
    assert server.ranges("/a") == ["bytes=1000-", None]


def test_the_servers_wish_for_patience_is_heard(server: Served, cache: Path) -> None:
    url = server.put("/a", DATA, Way(503, (("Retry-After", "1"),)))
    before = time.monotonic()
    get(cache, Wanted("one", url, DIGEST))
    assert 1.0 <= time.monotonic() - before < 20


def test_a_silent_server_is_given_up_when_patience_ends(server: Served, cache: Path) -> None:
    never = threading.Event()
    url = server.always("/a?page=2", Way(waits=never))
    client = Client(None, frozenset(), timeout_s=0.2)
    with pytest.raises(DataError, match=r"no progress for 0.5 s: no answer within 0.2 s") as told:
        get(cache, Wanted("one", url), client=client, patience_s=0.5)
    never.set()
    assert "page=2" not in str(told.value)


# without a digest


def test_a_source_without_digest_is_asked_whether_it_is_the_same(server: Served, cache: Path) -> None:
    wanted = Wanted("one", server.put("/a", DATA))
    (first,) = get(cache, wanted)
    (again,) = get(cache, wanted)
    assert again == first == Fetched("one", cache / of(DIGEST), DIGEST, len(DATA), wanted.source)
    assert server.seen[1].headers["if-none-match"] == f'"{DIGEST[:16]}"'
    other = b"other"
    server.put("/a", other)
    (changed,) = get(cache, wanted)
    assert changed.path.read_bytes() == other
    assert first.path.read_bytes() == DATA  # another run may be using it


def test_a_source_that_has_no_versions_is_fetched_each_time(server: Served, cache: Path) -> None:
    wanted = Wanted("one", server.always("/a", Way(etag=None), DATA))
    for _ in range(2):
        get(cache, wanted)
    assert all("if-none-match" not in one.headers for one in server.seen)
    assert len(server.seen) == 2


def test_a_source_with_a_date_alone_is_asked_by_it(server: Served, cache: Path) -> None:
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    wanted = Wanted(
        "one", server.put("/a", DATA, Way(etag=None, headers=(("Last-Modified", date),)), Way(304, body=b""))
    )
    get(cache, wanted)
    (found,) = get(cache, wanted)
    assert server.seen[1].headers["if-modified-since"] == date
    assert found.path.read_bytes() == DATA


def test_a_damaged_cache_is_not_what_the_server_calls_the_same(server: Served, cache: Path) -> None:
    wanted = Wanted("one", server.put("/a", DATA))
    (found,) = get(cache, wanted)
    found.path.write_bytes(b"x" * len(DATA))
    (found,) = get(cache, wanted)
    assert found.path.read_bytes() == DATA


@pytest.mark.parametrize("version", ["a\r\nX-Evil: 1", "\u65e5", 5, ["x"], {}])
def test_a_version_that_no_header_may_have_is_none(server: Served, cache: Path, version: object) -> None:
    wanted = Wanted("one", server.put("/a", DATA))
    get(cache, wanted)
    (index,) = cache.glob("sources/*.json")
    for key in ("etag", "last_modified"):
        index.write_text(json.dumps({**read_json(index), "etag": None, key: version}))
        slot = Cache(cache).slot(wanted.source, None)
        slot.part.write_bytes(b"x" * 1000)
        slot.note.write_text(json.dumps({"etag": version, "boot": boot_id()}))
        (found,) = get(cache, wanted)
        assert found.path.read_bytes() == DATA
    assert not any("if-none-match" in one.headers or "x-evil" in one.headers for one in server.seen)
    assert server.ranges("/a") == [None] * 3


@pytest.mark.parametrize("junk", [b"", b"{}", b"[]", b'{"sha256": "../../etc/passwd", "size_bytes": 1}', b"\xff"])
def test_an_index_that_cannot_be_read_is_none(server: Served, cache: Path, junk: bytes) -> None:
    wanted = Wanted("one", server.put("/a", DATA))
    get(cache, wanted)
    (index,) = cache.glob("sources/*.json")
    index.write_bytes(junk)
    (found,) = get(cache, wanted)
    assert found.path.read_bytes() == DATA


def test_a_304_that_nobody_asked_for_is_refused(server: Served, cache: Path) -> None:
    with pytest.raises(DataError, match="304"):
        get(cache, Wanted("one", server.always("/a", Way(304, body=b""))))


def test_without_digest_and_length_an_early_end_could_not_be_seen(server: Served, cache: Path) -> None:
    url = server.always("/a", Way(has_length=False), DATA)
    with pytest.raises(DataError, match="neither how long it is nor where it ends"):
        get(cache, Wanted("one", url))
    (found,) = get(cache, Wanted("one", url, DIGEST))
    assert found.path.read_bytes() == DATA
    (found,) = get(cache, Wanted("one", server.always("/b", Way(is_chunked=True), DATA)))
    assert found.sha256 == DIGEST


def test_a_chunked_answer_that_breaks_off_is_not_whole(server: Served, cache: Path) -> None:
    url = server.put("/a", DATA, Way(is_chunked=True, cut_after=100_000))
    (found,) = get(cache, Wanted("one", url))
    assert found.sha256 == DIGEST


OTHER = os.urandom(len(DATA))


@pytest.mark.parametrize(
    "second",
    [
        Way(body=OTHER),  # it knows If-Range
        Way(206, (("Content-Range", f"bytes 100000-{len(OTHER) - 1}/{len(OTHER)}"),), body=OTHER[100_000:]),
    ],
)
def test_two_versions_of_a_source_are_never_mixed(
    server: Served, cache: Path, monkeypatch: pytest.MonkeyPatch, second: Way
) -> None:
    monkeypatch.setattr(arrival, "_NOTE_FROM_BYTES", 0)
    url = server.put("/a", OTHER, Way(body=DATA, cut_after=100_000), second)
    (found,) = get(cache, Wanted("one", url))
    assert found.path.read_bytes() == OTHER
    assert server.ranges("/a")[:2] == [None, "bytes=100000-"]


@pytest.mark.parametrize(
    ("etag", "asked"),
    [('"v1"', [None, "bytes=100000-"]), ('W/"v1"', [None, None]), (None, [None, None])],
)
def test_a_small_source_that_changes_while_it_is_read_is_never_mixed(
    server: Served, cache: Path, etag: str | None, asked: list[str | None]
) -> None:
    url = server.put("/a", OTHER, Way(body=DATA, cut_after=100_000, etag=etag))
    (found,) = get(cache, Wanted("one", url))
    assert found.path.read_bytes() == OTHER
    assert server.ranges("/a") == asked


def test_of_a_part_whose_whole_has_no_known_length_the_whole_is_asked_for(server: Served, cache: Path) -> None:
    first = Way(cut_after=100_000, etag='"v1"')
    part = Way(206, (("Content-Range", "bytes 100000-199999/*"),), body=DATA[100_000:200_000], etag='"v1"')
    (found,) = get(cache, Wanted("one", server.put("/a", DATA, first, part)))
    assert found.path.read_bytes() == DATA
    assert server.ranges("/a") == [None, "bytes=100000-", None]


def test_without_digest_only_a_strong_version_is_resumed(
    server: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "_NOTE_FROM_BYTES", 0)
    for path, etag, resumed in (("/strong", '"v1"', ['"v1"']), ("/weak", 'W/"v1"', [None]), ("/none", None, [None])):
        cut = Way(cut_after=100_000, etag=etag)
        url = server.always(path, cut, DATA)
        with pytest.raises(DataError, match="no progress"):
            get(cache, Wanted("one", url), patience_s=0)
        server.seen.clear()
        server.always(path, Way(etag=etag), DATA)
        (found,) = get(cache, Wanted("one", url))
        assert found.sha256 == DIGEST
        assert [one.headers.get("if-range") for one in server.seen] == resumed
        assert server.ranges(path) == (["bytes=100000-"] if resumed[0] else [None])


def test_a_part_from_before_a_crash_of_the_machine_is_not_trusted_without_digest(
    server: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "_NOTE_FROM_BYTES", 0)
    url = server.put("/a", DATA, Way(cut_after=100_000))
    monkeypatch.setattr(arrival, "boot_id", lambda: "before")
    with pytest.raises(DataError, match="no progress"):
        get(cache, Wanted("one", url), patience_s=0)
    monkeypatch.setattr(arrival, "boot_id", lambda: "after")
    (found,) = get(cache, Wanted("one", url))
    assert found.sha256 == DIGEST
    assert server.ranges("/a") == [None, None]


# refusals


@pytest.mark.parametrize(
    ("status", "kind", "exit_status"),
    [
        (401, Unauthorized, 77),
        (403, Unauthorized, 77),
        (404, DataError, 65),
        (410, DataError, 65),
        (400, DataError, 65),
    ],
)
def test_a_refusal_is_final_and_names_the_input(
    server: Served, cache: Path, status: int, kind: type[TrnError], exit_status: int
) -> None:
    url = server.always("/data.parquet?part=1", Way(status))
    with pytest.raises(kind, match=rf"input dataset/0000 \({server.url}/data.parquet\): it answered {status}") as told:
        get(cache, Wanted("dataset/0000", url), client=Client(lambda: "word-of-mine", frozenset()))
    assert told.value.exit_status == exit_status
    assert "\n" not in str(told.value)
    assert "word-of-mine" not in str(told.value)
    assert len(server.seen) == 1


def test_a_token_does_not_travel_to_where_a_download_is_sent(server: Served, cache: Path) -> None:
    with served() as other:
        other.put("/a", DATA)
        url = server.always("/a", Way(302, (("Location", f"{other.url}/a"),)))
        client = Client(lambda: "word-of-mine", frozenset({server.host, other.host}))
        with pytest.raises(DataError, match="no redirection is followed"):
            get(cache, Wanted("one", url, DIGEST), client=client)
        assert (len(server.seen), other.seen) == (1, [])
        get(cache, Wanted("one", url, DIGEST), client=Client(lambda: "word-of-mine", frozenset({other.host})))
        assert len(other.seen) == 1
        assert "authorization" not in other.seen[0].headers


@pytest.mark.parametrize(
    "source",
    [
        "relative/path",
        "",
        "file:relative",
        "file://elsewhere/x",
        "https://me:geheim@example.org/x",
        "https://example.org/x?access_token=geheim",
        "s3://me:geheim@bucket/key",
        "s3://bucket/key?secret=geheim",
        "local:///x",
        "simplecache::s3://geheim/x",
        "://geheim",
        "/x\0y",
    ],
)
def test_a_source_that_is_not_taken_is_refused_before_anything_is_fetched(
    server: Served, cache: Path, source: str
) -> None:
    good = Wanted("good", server.put("/a", DATA))
    with pytest.raises(DataError) as told:
        get(cache, good, Wanted("bad", source))
    assert "input bad" in str(told.value)
    assert "geheim" not in str(told.value).replace("s3://geheim/x", "").replace("://geheim", "")
    assert "\n" not in str(told.value)
    assert (server.seen, cache.exists()) == ([], False)


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "../" * 21 + "x", "a" * 65])
def test_a_digest_that_is_none_is_refused(cache: Path, digest: str) -> None:
    with pytest.raises(DataError, match="its sha256 is none"):
        get(cache, Wanted("one", "https://example.org/x", digest))
    with pytest.raises(DataError, match="expected a size in bytes, found -1"):
        get(cache, Wanted("one", "https://example.org/x", None, -1))


def test_the_first_error_ends_the_others(server: Served, cache: Path) -> None:
    slow = Wanted("slow", server.always("/slow", Way(bytes_per_s=20_000), DATA))
    before = time.monotonic()
    with pytest.raises(DataError, match="input bad"):
        get(cache, slow, Wanted("bad", server.always("/bad", Way(404, body=bytes(60), bytes_per_s=200))))
    assert time.monotonic() - before < 10  # the slow one takes fifteen
    sizes = {path: path.stat().st_size for path in cache.rglob("*.part")}
    assert any(sizes.values())
    time.sleep(0.2)
    assert {path: path.stat().st_size for path in cache.rglob("*.part")} == sizes


# on this disk


def test_a_path_stays_where_it_is_and_is_hashed_only_where_a_digest_is_given(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "data 1.bin"
    path.write_bytes(DATA)
    folder = tmp_path / "model"
    folder.mkdir()
    found = get(
        cache,
        Wanted("a", str(path)),
        Wanted("b", f"file://{tmp_path}/data%201.bin", DIGEST, len(DATA)),
        Wanted("c", f"file:{path}".replace(" ", "%20"), None, len(DATA)),
        Wanted("d", str(folder)),
    )
    assert [(one.path, one.sha256, one.size_bytes) for one in found] == [
        (path, None, len(DATA)),
        (path, DIGEST, len(DATA)),
        (path, None, len(DATA)),
        (folder, None, None),
    ]
    assert not cache.exists()


def test_a_path_that_is_not_what_was_promised_is_refused(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(DATA)
    os.mkfifo(tmp_path / "pipe")
    for wanted, message in (
        (Wanted("one", str(path), "ab" * 32), f"expected the sha256 {'ab' * 32}, found {DIGEST}"),
        (Wanted("one", str(path), None, 7), f"expected 7 bytes, found {len(DATA)}"),
        (Wanted("one", str(tmp_path), DIGEST), "expected a file"),
        (Wanted("one", str(tmp_path / "pipe")), "expected a file"),
        (Wanted("one", str(tmp_path / "missing")), "cannot be found: No such file"),
        (Wanted("one", str(path / "below")), "cannot be found: Not a directory"),
    ):
        with pytest.raises(DataError, match=message):
            get(cache, wanted)


def test_nothing_to_fetch_takes_no_time(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(DATA)
    assert get(cache) == []
    before = time.monotonic()
    get(cache, *(Wanted(str(index), str(path)) for index in range(50)))
    assert time.monotonic() - before < 2  # to look for a result a tenth of a second each time would take five


# the disk


def test_a_disk_without_room_is_said_before_anything_is_written(
    server: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meters, "free_bytes", lambda folder: meters._SPARE_BYTES + len(DATA) - 1)
    with pytest.raises(StorageError, match=f"the inputs take {len(DATA)} bytes more, and {len(DATA) - 1} are free"):
        get(cache, Wanted("one", server.put("/a", DATA), DIGEST))
    (part,) = cache.rglob("*.part")
    assert part.stat().st_size == 0


def test_inputs_that_come_together_share_the_room(server: Served, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "free_bytes", lambda folder: meters._SPARE_BYTES + 3 * len(DATA) // 2)
    wait = Way(bytes_per_s=100_000)
    with pytest.raises(StorageError, match="the inputs take"):
        get(cache, *(Wanted(name, server.put(f"/{name}", os.urandom(len(DATA)), wait)) for name in "ab"))


def test_an_input_of_unknown_size_stops_before_the_disk_is_full(
    server: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([meters._SPARE_BYTES + 1, meters._SPARE_BYTES - 1])
    monkeypatch.setattr(meters, "free_bytes", lambda folder: next(free))
    monkeypatch.setattr(meters, "_LOOK_EVERY_BYTES", 100_000)
    with pytest.raises(StorageError, match="0 are free"):
        get(cache, Wanted("one", server.always("/a", Way(is_chunked=True), DATA)))


@pytest.mark.parametrize("operation", ["open", "write", "fsync", "rename", "mkdir"])
def test_a_disk_that_fails_is_an_error_and_leaves_nothing_that_looks_whole(
    server: Served, cache: Path, operation: str
) -> None:
    wanted = Wanted("one", server.put("/a", DATA), DIGEST)
    set_fault(f"op={operation},n=1,do=enospc,path=sha256")
    try:
        with pytest.raises(StorageError):
            get(cache, wanted)
    finally:
        set_fault(None)
    assert not (cache / of(DIGEST)).exists()
    (found,) = get(cache, wanted)
    assert found.path.read_bytes() == DATA


# many, and stops


def test_a_hundred_small_inputs_come_in_their_order(server: Served, cache: Path) -> None:
    bodies = [os.urandom(index * 37) for index in range(100)]
    wanted = [
        Wanted(f"dataset/{index:04}", server.put(f"/{index}", body), sha256_of(body) if index % 2 else None)
        for index, body in enumerate(bodies)
    ]
    for _ in range(2):
        found = get(cache, *wanted, parallel=8)
        assert [one.name for one in found] == [one.name for one in wanted]
        assert [one.path.read_bytes() for one in found] == bodies
    assert len([name for name in names(cache) if name.startswith("sha256")]) == 100


def test_the_same_digest_twice_is_fetched_once(server: Served, cache: Path) -> None:
    wanted = [
        Wanted(str(index), server.put(f"/{index}", DATA, Way(bytes_per_s=2_000_000)), DIGEST) for index in range(4)
    ]
    found = get(cache, *wanted)
    assert {one.path for one in found} == {cache / of(DIGEST)}
    assert len(server.seen) == 1


def test_another_process_that_fetches_without_progress_is_not_waited_for_forever(cache: Path) -> None:
    slot = Cache(cache).slot("", DIGEST)
    with Lock(slot.lock), pytest.raises(StorageError, match="another process has been fetching it"):
        get(cache, Wanted("one", "https://nowhere.invalid/x", DIGEST), patience_s=0.3)


@pytest.mark.parametrize("state", ["silent", "slow", "asking for patience", "locked"])
def test_a_stop_is_seen_within_a_second_and_what_came_is_kept(server: Served, cache: Path, state: str) -> None:
    release = threading.Event()
    way = {
        "silent": Way(waits=release),
        "slow": Way(bytes_per_s=50_000),
        "asking for patience": Way(503, (("Retry-After", "60"),)),
        "locked": Way(),
    }[state]
    wanted = Wanted("one", server.always("/a", way, DATA), DIGEST)
    lock = Lock(Cache(cache).slot("", DIGEST).lock)
    if state == "locked":
        assert lock.acquire()
    begun = time.monotonic()
    with pytest.raises(Stopped):
        get(cache, wanted, is_stopped=lambda: time.monotonic() - begun > 0.5)
    assert time.monotonic() - begun < 3.5  # a second and a half, and a loaded machine; an answer is waited for 5 s
    release.set()
    lock.release()
    if state == "slow":
        (part,) = cache.rglob("*.part")
        assert 0 < part.stat().st_size < len(DATA)
    server.put("/a", DATA)
    (found,) = get(cache, wanted)
    assert found.path.read_bytes() == DATA


def test_progress_is_told_at_most_twice_a_second_and_at_the_end(server: Served, cache: Path) -> None:
    told: list[tuple[int, int | None]] = []
    wanted = [Wanted(name, server.always(f"/{name}", Way(bytes_per_s=200_000), DATA), DIGEST) for name in "a"]
    before = time.monotonic()
    get(cache, *wanted, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (len(DATA), len(DATA))
    assert told == sorted(told)
    assert 2 <= len(told) <= 2 * (time.monotonic() - before) + 1
