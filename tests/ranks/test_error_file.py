"""torchrun's error file: what is written is what torch reads, and a strange file is no reason to fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trn.ranks import error_file


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "error.json"
    monkeypatch.setenv(error_file.VARIABLE, str(path))
    return path


def test_what_is_written_is_read_again_and_the_first_word_stands(path: Path) -> None:
    assert error_file.read(path) is None
    error_file.write(87, "rank 1 gave no sign of life")
    error_file.write(70, "and so I ended, too")
    assert error_file.read(path) == (87, "rank 1 gave no sign of life")


def test_torch_reads_it_back(path: Path) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    error_file.write(70, "ValueError: a bad \udc80 batch")
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=70, error_file=str(path))
    assert failure.timestamp > 1_700_000_000
    assert "ValueError: a bad \\udc80 batch" in ChildFailedError("trn", {0: failure}).format_msg()


def test_a_rank_that_follows_is_named_after_the_one_it_follows(path: Path) -> None:
    error_file.write(78, "rank 0 ended the job", is_cause=False)
    follower = path.rename(path.with_name("follower.json"))
    error_file.write(78, "the run exists")
    stamps = [int(json.loads(one.read_text())["message"]["extraInfo"]["timestamp"]) for one in (path, follower)]
    assert stamps[0] < stamps[1]


def test_nobody_asked_and_nothing_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(error_file.VARIABLE)
    error_file.write(70, "no")
    assert not path.exists()


def test_a_place_that_cannot_be_written_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(error_file.VARIABLE, str(tmp_path / "not" / "there.json"))
    error_file.write(70, "no")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"message": "text"}',
        '{"message": {"message": "no status"}}',
        '{"message": {"message": 7, "errorCode": 1}}',
        '{"message": {"message": "no", "errorCode": true}}',
        json.dumps({"message": {"message": "no", "errorCode": "70"}}),
    ],
)
def test_a_strange_file_says_nothing(path: Path, text: str) -> None:
    path.write_text(text)
    assert error_file.read(path) is None


def test_the_first_rank_that_failed_is_named_and_a_killed_one_before_those_that_miss_it(tmp_path: Path) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    from trn.ranks.torchrun import first_failure

    def failure(rank: int, exitcode: int, at_s: int, reason: str = "") -> ProcessFailure:
        path = tmp_path / f"{rank}-{exitcode}-{at_s}.json"
        if reason:
            extra = {"timestamp": str(at_s)}
            path.write_text(json.dumps({"message": {"message": reason, "errorCode": exitcode, "extraInfo": extra}}))
        found = ProcessFailure(local_rank=rank, pid=1, exitcode=exitcode, error_file=str(path))
        found.timestamp = at_s
        return found

    killed = failure(1, -9, 101)
    complaining = failure(0, 87, 100, "rank 1 gave no sign of life")
    assert first_failure({0: complaining, 1: killed}) == (-9, "rank 1 was killed by SIGKILL")
    ended = failure(1, -15, 100)
    assert first_failure({0: failure(0, 70, 100, "ValueError"), 1: ended}) == (70, "rank 0: ValueError")
    late = failure(1, -9, 130)
    assert first_failure({0: failure(0, 88, 100, "no step ended"), 1: late}) == (88, "rank 0: no step ended")
    hurried = failure(0, -15, 100, "the run is locked")
    hurried_file = Path(hurried.error_file)
    hurried_file.write_text(hurried_file.read_text().replace('"errorCode": -15', '"errorCode": 78'))
    follower = failure(1, 78, 101, "rank 0 ended the job")
    assert first_failure({0: hurried, 1: follower}) == (78, "rank 0: the run is locked")
    # torchrun asks the others to end, and names them after the first; all within one second
    asked = failure(0, 75, 100)
    assert first_failure({1: failure(1, 70, 100, "ValueError"), 0: asked}) == (70, "rank 1: ValueError")
    assert first_failure({0: asked, 1: failure(1, 70, 100, "ValueError")}) == (70, "rank 1: ValueError")
    assert first_failure({1: failure(1, 78, 100), 0: asked}) == (78, "rank 1 ended with exit status 78")
    assert first_failure({3: failure(3, 1, 5)}) == (1, "rank 3 ended with exit status 1")
