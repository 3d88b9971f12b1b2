"""The log of one job: its lines, what a kill leaves of it, and what a door writes into it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from support.door import open_door, row_of
from support.stand_in import argv
from trn.doors.progress import SilentDisplay
from trn.doors.schemas import schema_of
from trn.doors.watch import Watch
from trn.files import Lock, make_folder
from trn.jobs import job_log, open_store
from trn.jobs.log import JobLog, job_log_lines
from trn.journal import EventLog
from trn.records import JobRow, Json, read_lines


def kept(runs_dir: Path, *child: str) -> tuple[JobRow, list[Json]]:
    """The log of a job whose door has kept `child` to its end; each line is what the schema says."""
    row = row_of(runs_dir, "demo", devices='["cpu:1"]')
    with open_store(runs_dir) as store:
        open_door(store, row, list(child))
    lines = list(read_lines(job_log_lines(job_log(runs_dir, row))))
    check = Draft202012Validator(schema_of("job_log"))
    for line in lines:
        check.validate(line)
        assert line["job_id"] == row.job_id
        assert not check.is_valid({**line, "event": "surprise"})
        for key in {"event", "job_id", "ts"} | ({"text"} if line["event"] == "output" else {"state"} & set(line)):
            assert not check.is_valid({name: one for name, one in line.items() if name != key}), key
    return row, lines


def told(line: Json) -> Json:
    return {key: value for key, value in line.items() if key not in ("job_id", "ts")}


def test_a_door_tells_the_request_the_states_the_output_and_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["trn", "run", "--set", "hyperparams.api_key=sk-verysecretindeed"])
    row, lines = kept(tmp_path, *argv("--then", "complete"))
    assert told(lines[0]) == {
        "event": "job_submitted",
        "run_id": "demo",
        "run_dir": str(tmp_path / "demo"),
        "config_path": "/spec.yaml",
        "devices": ["cpu:1"],
        "argv": ["trn", "run", "--set", "hyperparams.api_key=***"],
    }
    assert [line["state"] for line in lines if line["event"] == "state"] == ["starting", "running"]
    said = [line["text"] for line in lines if line["event"] == "output"]
    assert said == [f"the trainer prints step {n}" for n in (1, 2, 3)]
    assert told(lines[-1]) == {"event": "ended", "state": "completed", "exit_code": 0, "reason": "completed"}
    assert job_log_lines(job_log(tmp_path, row)).stat().st_mode & 0o077 == 0


def test_of_a_job_that_was_refused_only_this_log_stays_and_says_why(tmp_path: Path) -> None:
    row, lines = kept(tmp_path, *argv("--then", "refuse"))
    said = "plan error [plan_refused] at seed: no such thing."
    assert told(lines[-1]) == {"event": "job_rejected", "run_id": "demo", "exit_code": 78, "reason": said}
    assert not job_log(tmp_path, row).exists()
    Draft202012Validator(schema_of("event")).validate(lines[-1])
    Draft202012Validator(schema_of("event")).validate(lines[0])


def test_the_row_of_a_job_that_runs_says_which_generation_holds_the_run(tmp_path: Path) -> None:
    row = row_of(tmp_path, "demo")
    reports = make_folder(tmp_path / "demo/reports")
    lock = Lock(tmp_path / "demo/.lock")
    assert lock.acquire(f"pid=1 job={row.job_id} generation=3")
    with open_store(tmp_path) as store:
        watch = Watch(store, row, SilentDisplay())
        watch.submit()
        EventLog(reports / "events.jsonl", run_id="demo", job_id=row.job_id).emit("job_started", pid=1, resume=False)
        watch.look()
        found = store.get(row.job_id)
    assert found is not None
    assert (found.state, found.generation) == ("running", 3)
    lock.release()


def test_a_torn_line_is_cut_by_the_next_door_and_nothing_before_it(tmp_path: Path) -> None:
    path = tmp_path / "logs/job-1.jsonl"
    first = JobLog(path)
    first.write("output", text="one")
    first.close()
    with open(path, "ab") as file:
        file.write(b'{"event": "outp')
    JobLog(path).write("output", text="two\nand more")
    assert [line["text"] for line in read_lines(path)] == ["one", "two\nand more"]


def test_a_kind_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown kind 'else'"):
        JobLog(tmp_path / "job-1.jsonl").write("else")
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_where_its_jobs_log_cannot_be_written(tmp_path: Path) -> None:
    row = row_of(tmp_path, "demo")
    job_log_lines(job_log(tmp_path, row)).mkdir(parents=True)
    with open_store(tmp_path) as store:
        ending = open_door(store, row, argv("--then", "complete"))
    assert ending.state == "completed"
