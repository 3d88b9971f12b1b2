"""Lines in files that several processes share: appended whole, read from the end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trn import files
from trn.errors import StorageError


@pytest.mark.parametrize("torn", [b"", b"x", b"x" * 4095, b"x" * 4096, b"x" * 10_000])
def test_a_torn_tail_of_any_length_is_cut_before_a_line_is_added(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n" + torn)
    files.append_line(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_file_of_nothing_but_a_torn_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"torn")
    files.append_line(path, b"one\n")
    assert path.read_bytes() == b"one\n"


@pytest.mark.parametrize("do", ["enospc", "eio"])
def test_a_line_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path, do: str) -> None:
    path = tmp_path / "log"
    files.append_line(path, b"one\n")
    files.set_fault(f"op=write,n=1,do={do}")
    with pytest.raises(StorageError, match="cannot append"):
        files.append_line(path, b"two\n")
    files.set_fault(None)
    assert path.read_bytes() == b"one\n"


@pytest.mark.parametrize("size", [0, 1, 4094, 4095, 4096, 10_000])
def test_the_last_whole_line_is_found_whatever_its_length(tmp_path: Path, size: int) -> None:
    path = tmp_path / "log"
    line = b"y" * size + b"\n"
    for before in (b"", b"one\n", b"x" * 5000 + b"\n"):
        for torn in (b"", b"torn", b"z" * 9000):
            path.write_bytes(before + line + torn)
            assert files.last_line(path) == line


def test_without_a_whole_line_there_is_no_last_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert files.last_line(path) is None
    for content in (b"", b"torn"):
        path.write_bytes(content)
        assert files.last_line(path) is None


def test_the_last_lines_are_whole_and_cost_the_same_however_long_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert files.last_lines(path, 3) == []
    path.write_bytes(b"torn")
    assert files.last_lines(path, 3) == []
    path.write_bytes(b"one\ntwo\nthree\ntorn")
    assert files.last_lines(path, 2) == [b"two\n", b"three\n"]
    assert files.last_lines(path, 9) == [b"one\n", b"two\n", b"three\n"]
    with open(path, "wb") as stream:
        stream.truncate(1 << 40)  # a hole: reading it through would take minutes
        stream.seek(0, 2)
        stream.write(b"\nfour\nfive\n")
    assert files.last_lines(path, 2) == [b"four\n", b"five\n"]
    assert files.last_lines(path, 9) == [b"four\n", b"five\n"]


def test_a_log_is_not_written_by_a_child_that_was_forked_with_it_open(tmp_path: Path) -> None:
    log = files.AppendLog(tmp_path / "log")
    if not (child := os.fork()):
        try:
            log.append(b"child\n")
        except RuntimeError:
            files.AppendLog(tmp_path / "own").append(b"child\n")
        os._exit(0)
    os.waitpid(child, 0)
    log.append(b"parent\n")
    assert (tmp_path / "log").read_bytes() == b"parent\n"
    assert (tmp_path / "own").read_bytes() == b"child\n"
