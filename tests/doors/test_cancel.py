"""`trn cancel`: what waits, what runs, what has ended; how the runner hears of it: tests/runner/test_cancelled.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from support.door import row_of, start_door, until
from support.stand_in import argv, outcome_of_job
from trn.doors import cancel
from trn.doors.cli import main
from trn.files import make_folder, write_atomic
from trn.jobs import observe, open_store
from trn.jobs.cancelling import ask_to_cancel
from trn.records import JobRow, cancel_path, pretty_json, read_json


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def told(capsys: pytest.CaptureFixture[str], runs_dir: Path, *arguments: str) -> tuple[int, list[str]]:
    code = main(["cancel", *arguments, "--runs-dir", str(runs_dir)])
    return code, capsys.readouterr().err.splitlines()


def add(runs_dir: Path, state: str, run_id: str = "demo") -> JobRow:
    row = row_of(runs_dir, run_id)
    with open_store(runs_dir) as store:
        store.add(row)
        return store.advance(row.job_id, state) if state != "submitted" else row


def test_a_job_that_waits_is_taken_out_of_the_queue(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = add(runs_dir, "queued")
    request = make_folder(runs_dir / ".trn/queue") / f"{row.job_id}.json"
    write_atomic(request, b"{}")
    code, lines = told(capsys, runs_dir, "demo")
    assert code == 0
    assert lines == [f"trn: job {row.job_id}: cancelled (exit 92): cancelled while it waited in the queue"]
    assert not request.exists()
    assert not cancel_path(runs_dir, row.job_id).exists()
    with open_store(runs_dir) as store:
        now = store.get(row.job_id)
    assert now is not None
    assert (now.state, now.exit_code) == ("cancelled", 92)


def test_a_job_at_work_is_asked_and_its_end_is_told_whatever_it_is(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wish = str(runs_dir / ".trn/cancel/{job}")
    door = start_door(runs_dir, "demo", argv("--then", f"until={wish}"))
    events = runs_dir / "demo/reports/events.jsonl"
    until(lambda: events.is_file() and b'"sample"' in events.read_bytes())
    code, lines = told(capsys, runs_dir, "demo")
    out, _ = door.communicate(timeout=20)
    job_id = json.loads(out)["job_id"]
    assert code == 0
    assert lines[0].startswith(f"trn: asked job {job_id}, running, to end after its step, with a checkpoint; waiting")
    assert lines[1:] == [f"trn: job {job_id}: completed at step 3 (exit 0)"]  # it was quicker
    assert list((runs_dir / ".trn/cancel").iterdir()) == []
    assert told(capsys, runs_dir, job_id) == (0, lines[1:])  # asked again


def test_asking_without_waiting_leaves_the_file_to_the_jobs_door(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go = runs_dir / "go"
    door = start_door(runs_dir, "demo", argv("--then", f"until={go}"))
    events = runs_dir / "demo/reports/events.jsonl"
    until(lambda: events.is_file() and b'"sample"' in events.read_bytes())
    code, lines = told(capsys, runs_dir, "demo", "--no-wait", "--now")
    assert code == 0
    assert "to end at once, without a checkpoint" in lines[0]
    (wish,) = (runs_dir / ".trn/cancel").iterdir()
    assert read_json(wish) == {"reason": "`trn cancel` asked for it", "now": True}
    assert wish.stat().st_mode & 0o077 == 0
    go.touch()
    door.communicate(timeout=20)
    assert not wish.exists()


def test_one_that_does_not_end_is_waited_for_so_long_and_no_longer(
    runs_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancel, "_WAIT_S", 0.3)
    go = runs_dir / "go"
    door = start_door(runs_dir, "demo", argv("--then", f"until={go}"))
    events = runs_dir / "demo/reports/events.jsonl"
    until(lambda: events.is_file() and b'"sample"' in events.read_bytes())
    code, lines = told(capsys, runs_dir, "demo")
    assert code == 88
    assert "it has not ended in 0.3 s, and is still asked to. `trn status` shows what it is at" in lines[-1]
    go.touch()
    door.communicate(timeout=20)


def test_of_a_lost_job_and_of_nobody_it_is_told(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = add(runs_dir, "running")
    code, lines = told(capsys, runs_dir, row.job_id)
    assert code == 0
    assert lines == [
        f"trn: job {row.job_id} is lost: nobody holds the run any more, and no outcome was written; "
        "`trn resume demo` goes on with it"
    ]
    assert told(capsys, runs_dir, "nobody")[0] == 2


def test_a_runs_id_means_all_its_jobs_and_json_gives_their_rows(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [add(runs_dir, "queued") for _ in range(2)]
    other = add(runs_dir, "queued", "other")
    assert main(["cancel", "demo", "--json", "--runs-dir", str(runs_dir)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["job_id"], one["state"]) for one in found] == [(row.job_id, "cancelled") for row in rows]
    with open_store(runs_dir) as store:
        assert observe(store.get(other.job_id) or other, runs_dir).state == "queued"


def test_a_wish_for_a_job_that_has_ended_is_swept_by_gc(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = add(runs_dir, "running")
    reports = make_folder(Path(row.run_dir) / "reports")
    outcome = outcome_of_job(Path(row.run_dir), row.job_id, "completed", 3)
    write_atomic(reports / "outcome.json", pretty_json(outcome.to_json()))
    with open_store(runs_dir) as store:
        store.advance(row.job_id, "completed", exit_code=0)
        going_on = add(runs_dir, "running", "other")
    for one in (row, going_on):
        ask_to_cancel(runs_dir, one.job_id, now=False)
    old = 1_000_000_000
    os.utime(cancel_path(runs_dir, row.job_id), (old, old))
    assert main(["gc", "--yes", "--older-than", "0", "--runs-dir", str(runs_dir)]) == 0
    assert [path.name for path in (runs_dir / ".trn/cancel").iterdir()] == [going_on.job_id]
