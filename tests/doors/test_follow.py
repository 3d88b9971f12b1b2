"""Following a file: each line once, also across a cut, a torn line, a replaced file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.stand_in import metrics_line
from trn.doors.follow import Follower, parsed
from trn.files import AppendLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "train_metrics.jsonl"


def append(path: Path, data: bytes) -> None:
    with open(path, "ab") as stream:
        stream.write(data)


def steps(lines: list[bytes]) -> list[int]:
    return [line["step"] for line in parsed(lines)]


def test_a_file_that_does_not_exist_yet_has_no_lines(path: Path) -> None:
    follower = Follower(path)
    assert follower.read() == []
    append(path, metrics_line(1, 1.0))
    assert steps(follower.read()) == [1]
    assert follower.read() == []


def test_a_torn_line_waits_until_it_is_whole(path: Path) -> None:
    follower = Follower(path)
    line = metrics_line(1, 1.0)
    append(path, line[:10])
    assert follower.read() == []
    assert follower.rest() == line[:10]
    append(path, line[10:])
    assert follower.read() == [line]
    assert follower.rest() == b""


def test_a_cut_back_to_a_checkpoint_gives_the_lines_after_it_again(path: Path) -> None:
    log = AppendLog(path)
    follower = Follower(path)
    for step in range(1, 11):
        log.append(metrics_line(step, 1.0 / step))
        if step == 6:
            kept = log.offset
    assert steps(follower.read()) == list(range(1, 11))
    log.cut(kept)
    assert follower.read() == []
    for step in range(7, 10):
        log.append(metrics_line(step, 2.0 / step))
    assert steps(follower.read()) == [7, 8, 9]


def test_a_cut_that_grew_past_the_old_end_unseen_is_noticed(path: Path) -> None:
    log = AppendLog(path)
    follower = Follower(path)
    for step in range(1, 6):
        log.append(metrics_line(step, 1.0))
    assert len(follower.read()) == 5
    log.cut(len(metrics_line(1, 1.0)))
    for step in range(2, 30):
        log.append(metrics_line(step, 2.123))
    assert steps(follower.read()) == list(range(2, 30))


def test_lines_that_come_back_the_same_are_not_given_twice(path: Path) -> None:
    log = AppendLog(path)
    follower = Follower(path)
    lines = [metrics_line(step, 1.0 / step) for step in range(1, 6)]
    for line in lines:
        log.append(line)
    assert follower.read() == lines
    log.cut(len(lines[0]) + len(lines[1]))
    for line in lines[2:]:
        log.append(line)
    log.append(metrics_line(6, 0.5))
    assert steps(follower.read()) == [6]


def test_a_follower_from_the_end_gives_only_what_is_new_also_after_a_cut_before_it(path: Path) -> None:
    log = AppendLog(path)
    for step in range(1, 6):
        log.append(metrics_line(step, 1.0))
    follower = Follower(path, from_end=True)
    assert follower.read() == []
    log.cut(len(metrics_line(1, 1.0)) * 2)
    log.append(metrics_line(3, 9.0))
    assert steps(follower.read()) == [3]


def test_a_replaced_file_is_read_anew(path: Path) -> None:
    append(path, metrics_line(1, 1.0) + metrics_line(2, 1.0))
    follower = Follower(path)
    assert len(follower.read()) == 2
    path.unlink()
    assert follower.read() == []
    append(path, metrics_line(7, 3.0) * 5)
    assert steps(follower.read()) == [7] * 5


def test_long_files_and_long_lines_come_in_pieces_and_whole(path: Path) -> None:
    lines = [metrics_line(step, 1.0 / step) for step in range(1, 12_000)]
    append(path, b"".join(lines))
    follower = Follower(path)
    read: list[bytes] = []
    while news := follower.read():
        assert sum(map(len, news)) <= 1 << 20
        read += news
    assert read == lines
    append(path, b"x" * (3 << 20) + b"\n")
    pieces = [piece for _ in range(4) for piece in follower.read()]
    assert b"".join(pieces) == b"x" * (3 << 20) + b"\n"


def test_carriage_returns_do_not_end_a_line(path: Path) -> None:
    append(path, b"10%\r20%\x0b\x85\r\n30%\n")
    assert Follower(path).read() == [b"10%\r20%\x0b\x85\r\n", b"30%\n"]


def test_what_is_no_object_is_left_out() -> None:
    assert parsed([b'{"a":1}\n', b"[1]\n", b'{"a":NaN}\n', b"\xff\n", b"", b'{"a":2}\n']) == [{"a": 1}, {"a": 2}]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["append", "append", "tear", "cut", "read"]), st.integers(0, 400)), max_size=40)
)
def test_whatever_happens_to_a_file_the_lines_given_and_not_cut_are_its_lines(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, int]]
) -> None:
    """A reader that drops, at each step number that comes again, what it had from there, ends with the file itself."""
    path = tmp_path_factory.mktemp("follow") / "log"
    path.touch()
    follower, kept, serial = Follower(path), dict[int, bytes](), 0

    def take() -> None:
        while news := follower.read():
            for line in news:
                step = int(line.split(b":")[0])
                for later in [one for one in kept if one >= step]:
                    del kept[later]
                kept[step] = line

    for act, size in acts:
        whole = path.read_bytes().split(b"\n")[:-1]
        if act == "append":
            serial += 1
            with open(path, "rb+") as stream:
                stream.truncate(sum(len(line) + 1 for line in whole))  # a torn tail is cut before anything is added
            append(path, b"%d:%d%s\n" % (len(whole), serial, b"." * size))
        elif act == "tear":
            append(path, b"torn")
        elif act == "cut":
            with open(path, "rb+") as stream:
                stream.truncate(sum(len(line) + 1 for line in whole[: len(whole) * size // 400]))
        else:
            take()
    take()
    lines = [line + b"\n" for line in path.read_bytes().split(b"\n")[:-1]]
    assert [kept[step] for step in range(len(lines))] == lines
