"""Bytes that survive a crash. Every operation is failed for real: by the failpoint, by a kill, by a full disk."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trn import files
from trn.errors import StorageError, UsageError
from trn.files import (
    AppendLog,
    AtomicFile,
    Lock,
    atomic_file,
    is_locked,
    link_atomic,
    publish_folder,
    sweep,
    write_atomic,
)
from trn.files.digests import Sha256Aside


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    files.set_fault(None)


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; returns what waitpid tells, as a subprocess would: negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            work()
            status = 0
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_file_is_published_whole_with_its_digest_and_private_mode(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert write_atomic(path, b"whole") == hashlib.sha256(b"whole").hexdigest()
    assert path.read_bytes() == b"whole"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_exception_inside_the_block_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old")

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("do", ["enospc", "eio"])
@pytest.mark.parametrize("op", ["open", "write", "fsync", "rename"])
def test_a_refusing_disk_leaves_the_old_file_and_one_clear_error(tmp_path: Path, op: str, do: str) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old")
    files.set_fault(f"op={op},n=1,do={do}")
    with pytest.raises(StorageError) as caught:
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("do", ["kill", "tear"])
@pytest.mark.parametrize("op", ["open", "write", "fsync", "rename"])
def test_a_kill_at_any_operation_leaves_old_or_new_never_a_part(tmp_path: Path, op: str, do: str) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old" * 1000)

    def work() -> None:
        files.set_fault(f"op={op},n=1,do={do}")
        write_atomic(path, b"new" * 1000)

    assert in_child(work) == -signal.SIGKILL
    assert path.read_bytes() in (b"old" * 1000, b"new" * 1000)
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["a"]


def test_a_short_write_is_completed(tmp_path: Path) -> None:
    files.set_fault("op=write,n=1,do=short")
    write_atomic(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


PAGE = 4096


def blocks_of(sizes: list[int]) -> list[memoryview]:
    """Blocks of these sizes that begin at a page, all different."""
    blocks = [memoryview(mmap.mmap(-1, size)) for size in sizes]
    for number, block in enumerate(blocks):
        block[:] = random.Random(number).randbytes(len(block))
    return blocks


def write_big(path: Path, pieces: list[bytes | memoryview]) -> str:
    with atomic_file(path, is_big=True) as file:
        for piece in pieces:
            file.write(piece)
    assert file.size_bytes == path.stat().st_size
    return file.sha256


def shuffled_pieces() -> list[bytes | memoryview]:
    """Whole pages, a part of one, whole pages at an odd offset, and what begins in the middle of a page."""
    whole, odd, more = blocks_of([64 * PAGE, 3 * PAGE, 32 * PAGE])
    return [whole, odd[:100], more, more[7 : 5 * PAGE], b"tail"]


@pytest.mark.parametrize("folder", [None, *(path for path in [Path("/dev/shm")] if path.is_dir())])
def test_a_big_file_of_any_pieces_is_whole_and_hashed(tmp_path: Path, folder: Path | None) -> None:
    with tempfile.TemporaryDirectory(dir=folder or tmp_path) as name:
        path = Path(name) / "a"
        pieces = shuffled_pieces()
        assert write_big(path, pieces) == hashlib.sha256(b"".join(pieces)).hexdigest()
        assert path.read_bytes() == b"".join(pieces)
        assert os.listdir(name) == ["a"]


def test_whole_pages_of_a_big_file_go_past_the_page_cache_and_the_rest_does_not(tmp_path: Path) -> None:
    whole, odd = blocks_of([16 * PAGE, PAGE])
    with atomic_file(tmp_path / "a", is_big=True) as file:

        def is_direct() -> bool:
            return bool(fcntl.fcntl(file._fd, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0))

        can_be = is_direct()  # a file system without it gives none to a new file
        file.write(whole)
        assert is_direct() == can_be, "nothing was refused"
        file.write(odd[:100])
        assert not is_direct()
        file.write(whole)
    assert (tmp_path / "a").read_bytes() == bytes(whole) + bytes(odd[:100]) + bytes(whole)


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="needs a file that takes writes of one length")
def test_an_argument_that_the_system_refuses_for_another_reason_is_an_error(tmp_path: Path) -> None:
    def write_odd() -> None:
        with atomic_file(tmp_path / "a", is_big=True) as file:
            os.close(file._fd)
            file._fd = os.eventfd(0)  # takes writes of eight bytes
            file.write(b"odd")

    with pytest.raises(StorageError, match="Invalid argument"):
        write_odd()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("do", ["enospc", "eio", "short", "kill", "tear"])
def test_a_big_file_that_fails_at_any_piece_is_whole_or_absent(tmp_path: Path, do: str) -> None:
    pieces = shuffled_pieces()
    whole = b"".join(pieces)
    for n in range(1, len(pieces) + 1):
        path = tmp_path / f"{n}"

        def work(n: int = n, path: Path = path) -> None:
            files.set_fault(f"op=write,n={n},do={do}")
            assert write_big(path, pieces) == hashlib.sha256(whole).hexdigest()

        status = in_child(work)
        assert status == {"short": 0, "kill": -signal.SIGKILL, "tear": -signal.SIGKILL}.get(do, 1)
        assert path.exists() == (do == "short")
        assert do != "short" or path.read_bytes() == whole
        sweep(tmp_path)
        assert all(not name.startswith(".") for name in os.listdir(tmp_path))


def test_a_big_file_lets_a_piece_go_after_so_many_more(tmp_path: Path) -> None:
    blocks = blocks_of([8 * PAGE] * (AtomicFile.LAG + 1))
    wanted = hashlib.sha256()
    with atomic_file(tmp_path / "a", is_big=True) as file:
        for number, block in zip(range(200), itertools.cycle(blocks), strict=False):
            block[:] = random.Random(number).randbytes(len(block))
            wanted.update(block)
            file.write(block)
    assert file.sha256 == wanted.hexdigest() == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()


def test_a_sha256_aside_never_runs_further_behind_than_it_says() -> None:
    go, given = threading.Event(), threading.Semaphore(0)

    class Slow:
        def update(self, data: memoryview) -> None:
            go.wait(timeout=60)

        def hexdigest(self) -> str:
            return "done"

    aside = Sha256Aside()
    aside._digest = Slow()  # type: ignore[assignment]

    def give() -> None:
        for _ in range(Sha256Aside.LAG + 1):
            aside.update(memoryview(b"x"))
            given.release()

    giver = threading.Thread(target=give)
    giver.start()
    assert all(given.acquire(timeout=60) for _ in range(Sha256Aside.LAG))
    assert not given.acquire(timeout=0.1), "the next one waits"
    go.set()
    giver.join()
    assert aside.hexdigest() == "done"


def test_a_failpoint_counts_only_the_paths_it_names(tmp_path: Path) -> None:
    files.set_fault("op=fsync,n=1,do=eio,path=wanted")
    write_atomic(tmp_path / "other", b"x")
    with pytest.raises(StorageError):
        write_atomic(tmp_path / "wanted", b"x")


@pytest.mark.parametrize(
    "text", ["", "op=fsync", "op=fly,n=1,do=kill", "op=fsync,n=x,do=kill", "op=fsync,n=1,do=maybe"]
)
def test_an_unreadable_failpoint_is_a_usage_error(text: str) -> None:
    if text:
        with pytest.raises(UsageError, match="TRN_FAULT"):
            files.set_fault(text)


def test_the_failpoint_is_read_from_the_environment(tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    code = f"from pathlib import Path; from trn.files import write_atomic; write_atomic(Path({path!r}), b'x')"
    environ = {**os.environ, "TRN_FAULT": "op=rename,n=1,do=kill"}
    assert subprocess.run([sys.executable, "-c", code], env=environ, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "a").exists()


def test_an_append_log_survives_a_kill_with_all_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"

    def work() -> None:
        log = AppendLog(path)
        for number in range(100):
            log.append(f"line {number}\n".encode())
        files.set_fault("op=write,n=1,do=tear")
        log.append(b"the torn one\n")

    assert in_child(work) == -signal.SIGKILL
    assert not path.read_bytes().endswith(b"\n")
    log = AppendLog(path)
    log.append(b"next\n")
    lines = path.read_bytes().splitlines()
    assert lines == [*(f"line {number}".encode() for number in range(100)), b"next"]
    assert log.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert log.offset == path.stat().st_size


def test_a_failed_append_leaves_no_part_of_its_line(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "log")
    log.append(b"one\n")
    files.set_fault("op=write,n=1,do=enospc")
    with pytest.raises(StorageError, match="Free some space"):
        log.append(b"two\n")
    log.append(b"three\n")
    assert (tmp_path / "log").read_bytes() == b"one\nthree\n"
    assert log.sha256 == hashlib.sha256(b"one\nthree\n").hexdigest()


def test_a_cut_log_goes_on_from_its_new_end(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "log")
    for line in (b"one\n", b"two\n", b"three\n"):
        log.append(line)
    log.cut(4)
    log.append(b"2\n")
    assert (tmp_path / "log").read_bytes() == b"one\n2\n"
    assert log.sha256 == hashlib.sha256(b"one\n2\n").hexdigest()
    with pytest.raises(ValueError, match="shorter"):
        log.cut(1000)


def test_a_lock_excludes_dies_with_its_holder_and_says_who_has_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    ready_r, ready_w = os.pipe()
    done_r, done_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        lock = Lock(path)
        os._exit(0 if lock.acquire("pid=7 job=j") and os.write(ready_w, b"x") and os.read(done_r, 1) else 1)
    os.read(ready_r, 1)
    assert is_locked(path) == "pid=7 job=j"
    assert Lock(path).acquire() is False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert is_locked(path) is None
    assert Lock(path).acquire() is True
    os.close(done_w)


def test_a_forked_child_does_not_keep_its_parents_lock(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    assert lock.acquire()
    wait_r, wait_w = os.pipe()
    ready_r, ready_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(wait_w)
        os.write(ready_w, b"x")
        os.read(wait_r, 1)
        os._exit(0)
    os.read(ready_r, 1)
    lock.release()
    assert is_locked(tmp_path / "lock") is None, "the child, which still lives, holds no copy of the lock"
    os.close(wait_w)
    os.waitpid(pid, 0)


def test_a_lock_is_kept_while_its_folder_is_renamed(tmp_path: Path) -> None:
    (tmp_path / "aside").mkdir()
    lock = Lock(tmp_path / "aside/.lock")
    assert lock.acquire("mine")
    assert publish_folder(tmp_path / "aside", tmp_path / "run")
    assert is_locked(tmp_path / "run/.lock") == "mine"


def test_publishing_a_folder_never_replaces_one_that_holds_something(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_atomic(tmp_path / name / "who", name.encode())
    (tmp_path / "empty").mkdir()
    assert publish_folder(tmp_path / "a", tmp_path / "empty") is True
    assert publish_folder(tmp_path / "b", tmp_path / "empty") is False
    assert (tmp_path / "empty/who").read_bytes() == b"a"
    assert (tmp_path / "b/who").read_bytes() == b"b"


def test_a_second_name_replaces_the_first_and_shares_the_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_atomic(tmp_path / name, name.encode())
    link_atomic(tmp_path / "one", tmp_path / "last")
    link_atomic(tmp_path / "two", tmp_path / "last")
    link_atomic(tmp_path / "two", tmp_path / "last")
    assert (tmp_path / "last").read_bytes() == b"two"
    assert (tmp_path / "last").samefile(tmp_path / "two")
    assert sorted(os.listdir(tmp_path)) == ["last", "one", "two"]


def test_new_folders_are_private_and_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    made = files.make_folder(tmp_path / "a/b")
    assert made.stat().st_mode & 0o777 == 0o700
    write_atomic(tmp_path / "file", b"")
    with pytest.raises(StorageError, match="file/c"):
        files.make_folder(tmp_path / "file/c")
