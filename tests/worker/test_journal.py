"""TRAINER_EVENTS_PATH: each event of the run once, and one ending a job."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from trn.errors import StorageError
from trn.files import AppendLog
from trn.journal import EventLog
from trn.worker.journal import SCHEMA, WorkerJournal
from trn.worker.refusal import StartupRefused


def run_of(folder: Path) -> EventLog:
    (folder / "reports").mkdir(parents=True)
    return EventLog(folder / "reports/events.jsonl", run_id="r", job_id="job-1")


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_runs_events_are_relayed_but_for_its_ending(tmp_path: Path) -> None:
    events = run_of(tmp_path / "r")
    events.emit("job_started", pid=1, resume=False)
    events.emit("completed", outcome="completed", exit_code=0, reason="", step=3)
    journal = WorkerJournal(tmp_path / "out/events.jsonl", run_id="r", job_id="job-9")
    journal.tell("worker_started", pid=2)
    journal.follow(tmp_path / "r", "r")
    journal.catch_up()
    journal.end("upload_failed", exit_code=94, step=3, reason="nobody took it")
    journal.close()
    lines = told(tmp_path / "out/events.jsonl")
    assert [(one["event"], one["seq"], one.get("run_seq")) for one in lines] == [
        ("worker_started", 1, None),
        ("job_started", 2, 1),
        ("failed", 3, None),
    ]
    assert (lines[2]["outcome"], lines[2]["exit_code"]) == ("upload_failed", 94)
    assert {one["schema_version"] for one in lines} == {SCHEMA}
    assert [one["job_id"] for one in lines] == ["job-9", "job-1", "job-9"]


def test_a_worker_that_was_killed_relays_nothing_twice_and_leaves_nothing_out(tmp_path: Path) -> None:
    events = run_of(tmp_path / "r")
    path = tmp_path / "events.jsonl"
    for count in (3, 5):
        for number in range(count):
            events.emit("metric", step=number)
        journal = WorkerJournal(path, run_id="r", job_id=f"job-{count}")
        journal.follow(tmp_path / "r", "r")
        journal.catch_up()
        journal.close()
        with open(path, "ab") as stream:
            stream.write(b'{"event": "metric", "run_seq": 99')  # torn by the kill
    lines = told_whole(path)
    assert [one["run_seq"] for one in lines] == list(range(1, 9))
    assert [one["seq"] for one in lines] == list(range(1, 9))


def test_a_run_that_was_removed_and_begun_anew_is_relayed_from_its_beginning(tmp_path: Path) -> None:
    for life, count in (("first", 4), ("second", 2)):
        events = run_of(tmp_path / life / "r")
        for number in range(count):
            events.emit("metric", step=number)
        for _ in range(2):  # with a worker that comes after it
            journal = WorkerJournal(tmp_path / "events.jsonl", run_id="r")
            journal.follow(tmp_path / life / "r", "r")
            journal.catch_up()
            journal.close()
    assert [one["run_seq"] for one in told(tmp_path / "events.jsonl")] == [1, 2, 3, 4, 1, 2]


def told_whole(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_what_could_not_be_written_for_a_while_is_written_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = run_of(tmp_path / "r")
    journal = WorkerJournal(tmp_path / "events.jsonl", run_id="r")
    is_full, write = threading.Event(), AppendLog.append

    def append(log: AppendLog, line: bytes) -> None:
        if log.path == tmp_path / "events.jsonl" and b'"step":2' in line and not is_full.is_set():
            is_full.set()
            raise StorageError("cannot append: No space left on device.", where=str(log.path))
        write(log, line)

    monkeypatch.setattr(AppendLog, "append", append)
    for number in range(5):
        events.emit("metric", step=number)
    journal.follow(tmp_path / "r", "r")
    assert is_full.wait(30)
    journal.catch_up()
    journal.close()
    lines = told(tmp_path / "events.jsonl")
    assert [(one["seq"], one["run_seq"]) for one in lines] == [(number, number) for number in range(1, 6)]


def test_a_second_worker_on_one_file_is_refused(tmp_path: Path) -> None:
    first = WorkerJournal(tmp_path / "events.jsonl")
    with pytest.raises(StartupRefused, match="another worker"):
        WorkerJournal(tmp_path / "events.jsonl")
    first.close()
    WorkerJournal(tmp_path / "events.jsonl").close()


def test_without_a_place_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = WorkerJournal(None)
    journal.tell("worker_started")
    journal.catch_up()
    journal.end("completed", exit_code=0, step=1, reason="")
    journal.close()
    assert list(tmp_path.iterdir()) == []
