"""Several processes and one cache: fetched once, killed and read on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.sending import wait_for
from support.served import Served, Way, served, sha256_of
from trn.transfer.client import Client
from trn.transfer.download import Wanted, fetch

pytestmark = pytest.mark.slow

PROGRAM = """
import json, sys
from pathlib import Path
from trn.transfer.client import Client
from trn.transfer.download import Wanted, fetch
folder, source, sha256 = sys.argv[1:]
(found,) = fetch([Wanted("one", source, sha256 or None)], Path(folder), Client(None, frozenset()))
print(json.dumps([str(found.path), found.sha256, found.size_bytes]))
"""


@pytest.fixture
def server() -> Iterator[Served]:
    with served() as kept:
        yield kept


def start(cache: Path, source: str, sha256: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(cache), source, sha256],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[Path, str, int]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    path, sha256, size_bytes = json.loads(out)
    return Path(path), sha256, size_bytes


@pytest.mark.parametrize("has_digest", [True, False])
def test_two_processes_at_once_fetch_one_input_once(server: Served, tmp_path: Path, has_digest: bool) -> None:
    data = os.urandom(400_000)
    url = server.always("/a", Way(bytes_per_s=1_000_000), data)
    both = [start(tmp_path / "cache", url, sha256_of(data) if has_digest else "") for _ in range(2)]
    (first, *facts), second = end(both[0]), end(both[1])
    assert (first, *facts) == second
    assert first.read_bytes() == data
    # without a digest the second asks whether it is still the same
    assert [one.headers.get("if-none-match") for one in server.seen] == (
        [None] if has_digest else [None, f'"{sha256_of(data)[:16]}"']
    )


@pytest.mark.parametrize("has_digest", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_process_that_was_killed_is_read_on_from_where_it_was(
    server: Served, tmp_path: Path, has_digest: bool
) -> None:
    data = os.urandom(6 << 20)
    digest = sha256_of(data)
    url = server.put("/a", data, Way(bytes_per_s=2 << 20))
    killed = start(tmp_path / "cache", url, digest if has_digest else "")

    def grown() -> Path | None:
        return next((path for path in tmp_path.rglob("*.part") if path.stat().st_size > 1 << 20), None)

    part = wait_for(grown, "a part that grows")
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=30)
    size = part.stat().st_size
    assert not [path for path in tmp_path.rglob(digest) if path.is_file()]
    path, sha256, size_bytes = end(start(tmp_path / "cache", url, digest if has_digest else ""))
    assert (path.read_bytes(), sha256, size_bytes) == (data, digest, len(data))
    assert server.ranges("/a") == [None, f"bytes={size}-"]
    assert server.seen[1].headers["if-range"] == f'"{digest[:16]}"'
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_killed_at_any_operation_an_input_is_whole_or_absent(server: Served, tmp_path: Path) -> None:
    data = os.urandom(5 << 20)
    digest = sha256_of(data)
    url = server.always("/a", Way(), data)
    kills = 0
    for n in range(1, 40):
        cache = tmp_path / str(n)
        dying = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(cache), url, ""],
            env={**os.environ, "TRN_FAULT": f"op=any,n={n},do=kill,path={tmp_path}"},
            capture_output=True,
            timeout=60,
        )
        if dying.returncode == 0:
            break
        assert dying.returncode == -signal.SIGKILL
        kills += 1
        for path in cache.rglob(digest):
            assert path.read_bytes() == data
        (found,) = fetch([Wanted("one", url)], cache, Client(None, frozenset()))
        assert (found.path.read_bytes(), found.sha256) == (data, digest)
    assert kills > 15
    assert dying.returncode == 0


def test_a_process_that_ends_is_not_held_up_by_a_silent_server(server: Served, tmp_path: Path) -> None:
    never = threading.Event()
    server.always("/silent", Way(waits=never))
    program = PROGRAM.replace(
        'Wanted("one", source', 'Wanted("bad", source + "/nothing"), Wanted("one", source + "/silent"'
    )
    before = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "cache"), server.url, ""],
        capture_output=True,
        text=True,
        timeout=60,
    )
    never.set()
    assert "DataError: data error [data_error] at input bad" in ended.stderr
    assert time.monotonic() - before < 25  # it would be 30 s for an answer
