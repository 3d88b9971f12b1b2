"""The truth of a job from the disk: locks and outcomes, whatever the row says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.door import filled, row_of, until
from support.stand_in import argv, outcome_of_job, publish
from trn.errors import StorageError
from trn.files import Lock, is_locked, make_folder, write_atomic
from trn.jobs import launch_lock, observe, open_store, outcome_of, record_lost, row_of_folder, rows_of_folders
from trn.jobs.attending import attend
from trn.records import JobRow, pretty_json

OPEN = ("submitted", "starting", "running")


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def runner(runs_dir: Path) -> Iterator[tuple[JobRow, subprocess.Popen[bytes]]]:
    """A real child that holds a run."""
    make_folder(runs_dir)
    row = row_of(runs_dir, "demo", state="running")
    child = subprocess.Popen(filled(argv("--then", "lock"), row), stdout=subprocess.DEVNULL)
    try:
        until((runs_dir / "demo" / "reports" / "train_metrics.jsonl").exists)
        yield row, child
    finally:
        child.kill()
        child.wait()


def put_outcome(runs_dir: Path, row: JobRow, status: str, name: str = "outcome.json") -> None:
    path = make_folder((runs_dir / row.run_id / "reports" / name).parent) / Path(name).name
    write_atomic(path, pretty_json(outcome_of_job(runs_dir / row.run_id, row.job_id, status, 3).to_json()))


def test_a_job_runs_as_long_as_its_process_holds_the_run(
    runs_dir: Path, runner: tuple[JobRow, subprocess.Popen[bytes]]
) -> None:
    row, child = runner
    assert observe(row, runs_dir).state == "running"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    seen = observe(row, runs_dir)
    assert seen.state == "lost"
    assert seen.reason == "nobody holds the run any more, and no outcome was written"


def test_a_run_held_by_another_job_does_not_make_this_one_run(
    runs_dir: Path, runner: tuple[JobRow, subprocess.Popen[bytes]]
) -> None:
    earlier = row_of(runs_dir, "demo", state="running")
    assert observe(earlier, runs_dir).state == "lost"


def test_a_living_process_with_the_recorded_pid_proves_nothing(runs_dir: Path) -> None:
    assert observe(row_of(runs_dir, "demo", state="starting", pid=os.getpid()), runs_dir).state == "lost"


@pytest.mark.parametrize("state", [*OPEN, "lost"])
def test_an_outcome_of_the_job_ends_it_whatever_the_row_says(runs_dir: Path, state: str) -> None:
    row = row_of(runs_dir, "demo", state=state)
    put_outcome(runs_dir, row, "preempted")
    seen = observe(row, runs_dir)
    assert (seen.state, seen.exit_code, seen.reason) == ("preempted", 75, "preempted")
    assert seen.ended_at is not None


def test_the_outcome_of_an_earlier_job_is_found_where_it_was_moved(runs_dir: Path) -> None:
    earlier, later = row_of(runs_dir, "demo", state="running"), row_of(runs_dir, "demo", state="running")
    put_outcome(runs_dir, earlier, "preempted", f"outcomes/{earlier.job_id}.json")
    put_outcome(runs_dir, later, "completed")
    assert observe(earlier, runs_dir).state == "preempted"
    assert observe(later, runs_dir).state == "completed"
    assert observe(row_of(runs_dir, "demo", state="running"), runs_dir).state == "lost"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"status": NaN}', b'{"status":"completed"}'])
def test_a_damaged_outcome_is_none(runs_dir: Path, content: bytes) -> None:
    make_folder(runs_dir / "demo" / "reports")
    (runs_dir / "demo" / "reports" / "outcome.json").write_bytes(content)
    assert outcome_of(runs_dir / "demo", "") is None
    assert observe(row_of(runs_dir, "demo", state="running"), runs_dir).state == "lost"


def test_an_outcome_whose_text_no_store_can_hold_is_none_and_blocks_nobody(runs_dir: Path) -> None:
    row = row_of(runs_dir, "demo", state="running")
    put_outcome(runs_dir, row, "completed")
    path = runs_dir / "demo" / "reports" / "outcome.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "reason": "half a character: \ud800"}))
    with open_store(runs_dir) as store:
        store.add(row)
        assert [one.state for one in record_lost(store)] == ["lost"]


@pytest.mark.parametrize("state", OPEN)
def test_a_job_is_not_lost_while_its_door_is_there(runs_dir: Path, state: str) -> None:
    row = row_of(runs_dir, "demo", state=state)
    make_folder(launch_lock(runs_dir, row.job_id).parent)
    door = Lock(launch_lock(runs_dir, row.job_id))
    assert door.acquire()
    assert observe(row, runs_dir) == row
    door.release()
    assert observe(row, runs_dir).state == "lost"


def test_a_job_that_waits_its_turn_is_not_lost(runs_dir: Path) -> None:
    row = row_of(runs_dir, "demo", state="queued")
    assert observe(row, runs_dir) == row
    put_outcome(runs_dir, row, "cancelled")
    assert (observe(row, runs_dir).state, observe(row, runs_dir).exit_code) == ("cancelled", 92)


@pytest.mark.parametrize("launcher", ["slurm", "ray", "kubernetes"])
@pytest.mark.parametrize("state", [*OPEN, "queued"])
def test_a_job_that_an_engine_has_is_not_lost_for_want_of_a_process_here(
    runs_dir: Path, launcher: str, state: str
) -> None:
    row = row_of(runs_dir, "demo", state=state, launcher=launcher, engine_id="4711")
    assert observe(row, runs_dir) == row
    with open_store(runs_dir) as store:
        store.add(row)
        assert record_lost(store) == []
    put_outcome(runs_dir, row, "completed")
    assert observe(row, runs_dir).state == "completed"


def test_a_job_of_torchrun_here_is_lost_as_any_other(runs_dir: Path) -> None:
    assert observe(row_of(runs_dir, "demo", state="running", launcher="torchrun"), runs_dir).state == "lost"


def test_a_job_is_not_lost_while_its_folder_is_being_made(runs_dir: Path) -> None:
    row = row_of(runs_dir, "demo", state="starting")
    maker = Lock(make_folder(runs_dir / ".trn" / "staging" / row.job_id) / ".lock")
    assert maker.acquire()
    assert observe(row, runs_dir) == row
    maker.release()


def test_ended_rows_are_believed(runs_dir: Path) -> None:
    for state in ("rejected", "completed", "crashed"):
        assert observe(row_of(runs_dir, "demo", state=state), runs_dir).state == state


def test_observing_writes_nothing(runs_dir: Path) -> None:
    observe(row_of(runs_dir, "demo", state="running"), runs_dir)
    assert not runs_dir.exists()


def test_a_moved_runs_folder_is_seen_where_it_is_now(runs_dir: Path, tmp_path: Path) -> None:
    row = row_of(runs_dir, "demo", state="running")
    put_outcome(runs_dir, row, "completed")
    runs_dir.rename(tmp_path / "elsewhere")
    seen = observe(row, tmp_path / "elsewhere")
    assert (seen.state, seen.run_dir) == ("completed", str(tmp_path / "elsewhere" / "demo"))


def test_a_file_in_place_of_a_run_is_no_run(runs_dir: Path) -> None:
    make_folder(runs_dir)
    (runs_dir / "demo").write_text("not a folder")
    assert observe(row_of(runs_dir, "demo", state="running"), runs_dir).state == "lost"
    assert rows_of_folders(runs_dir, ()) == []


def test_runs_without_rows_are_found_and_take_the_job_of_their_folder(
    runs_dir: Path, runner: tuple[JobRow, subprocess.Popen[bytes]]
) -> None:
    running, _ = runner
    ended = row_of(runs_dir, "ended")
    publish(runs_dir / "ended", ended.job_id).release()
    put_outcome(runs_dir, ended, "completed")
    publish(runs_dir / "dead", "job-dead").release()
    publish(runs_dir / "known", "job-known").release()
    (runs_dir / "jobs").mkdir()
    (runs_dir / "no-plan").mkdir()
    (runs_dir / "link").symlink_to(runs_dir / "ended")
    rows = {row.run_id: observe(row, runs_dir) for row in rows_of_folders(runs_dir, {"known"})}
    assert {run_id: (row.state, row.job_id) for run_id, row in rows.items()} == {
        "demo": ("running", running.job_id),
        "ended": ("completed", ended.job_id),
        "dead": ("lost", ""),
    }
    assert row_of_folder(runs_dir / "ended").submitted_at.endswith("Z")


def test_a_writing_door_records_what_became_of_jobs_without_a_door(
    runs_dir: Path, runner: tuple[JobRow, subprocess.Popen[bytes]]
) -> None:
    running, _ = runner
    dead = row_of(runs_dir, "dead")
    preempted = row_of(runs_dir, "preempted")
    attended = row_of(runs_dir, "attended")
    door = Lock(launch_lock(runs_dir, attended.job_id))
    make_folder(door.path.parent)
    launch_lock(runs_dir, dead.job_id).touch()
    assert door.acquire()
    with open_store(runs_dir) as store:
        for row in (dead, preempted, attended):
            store.add(row)
        found = store.get(running.job_id)
        assert found is not None, "it began before there was a store, which took it from its folder"
        put_outcome(runs_dir, preempted, "preempted")
        recorded = {row.run_id: row for row in record_lost(store)}
        assert {run_id: row.state for run_id, row in recorded.items()} == {"dead": "lost", "preempted": "preempted"}
        assert record_lost(store) == []
        assert {row.run_id: row.state for row in store.list()} == {
            "dead": "lost",
            "preempted": "preempted",
            "attended": "submitted",
            "demo": "running",
        }
    assert recorded["dead"].ended_at is not None
    assert not launch_lock(runs_dir, dead.job_id).exists()
    door.release()


@pytest.mark.parametrize("status", ["completed", "preempted"])
def test_an_ended_job_is_left_to_its_door_as_long_as_that_is_there(runs_dir: Path, status: str) -> None:
    row = row_of(runs_dir, "demo", state="running")
    put_outcome(runs_dir, row, status)
    with open_store(runs_dir) as store:
        store.add(row)
        door = attend(runs_dir, row.job_id)
        assert door is not None
        assert record_lost(store) == []
        assert store.get(row.job_id) == row
        assert is_locked(door.path) is not None
        assert door.path.exists(), "a door whose lock is gone would be taken for dead"
        door.release()
        assert [one.state for one in record_lost(store)] == [status]
        assert not door.path.exists()


def test_a_job_of_which_nobody_can_say_whether_its_door_is_there_is_left_alone(runs_dir: Path) -> None:
    row = row_of(runs_dir, "demo", state="running")
    with open_store(runs_dir) as store:
        store.add(row)
        lock = launch_lock(runs_dir, row.job_id)
        make_folder(lock.parent)
        lock.symlink_to(lock.name)
        assert record_lost(store) == []


def make_unreadable(path: Path) -> None:
    """A file to whoever looks, and an error to whoever reads, even for root."""
    path.symlink_to("/proc/self/mem")


def test_a_folder_that_cannot_be_read_leaves_the_row_as_it_was_and_says_why(runs_dir: Path) -> None:
    row = row_of(runs_dir, "demo", state="running")
    path = make_folder(runs_dir / "demo/reports") / "outcome.json"
    make_unreadable(path)
    seen = observe(row, runs_dir)
    assert (seen.state, seen.job_id) == ("running", row.job_id)
    assert seen.reason == f"its folder cannot be read: {runs_dir / 'demo'}: Input/output error"
    path.unlink()
    (runs_dir / "demo/.lock").symlink_to(".lock")
    assert "its folder cannot be read: " in str(observe(row, runs_dir).reason)
    assert f"{runs_dir / 'demo/.lock'}: Too many levels of symbolic links" in str(observe(row, runs_dir).reason)


def test_a_pipe_in_the_place_of_a_lock_or_an_outcome_is_not_waited_for(runs_dir: Path) -> None:
    row = row_of(runs_dir, "demo", state="running")
    make_folder(runs_dir / "demo/reports")
    os.mkfifo(runs_dir / "demo/.lock")
    os.mkfifo(runs_dir / "demo/reports/outcome.json")
    assert observe(row, runs_dir).state == "lost"


def test_a_folder_that_cannot_be_read_does_not_keep_others_from_being_recorded(runs_dir: Path) -> None:
    odd, dead = row_of(runs_dir, "odd", state="running"), row_of(runs_dir, "dead", state="running")
    make_unreadable(make_folder(runs_dir / "odd/reports") / "outcome.json")
    with open_store(runs_dir) as store:
        store.add(odd)
        store.add(dead)
        assert [row.run_id for row in record_lost(store)] == ["dead"]
        assert {row.run_id: row.state for row in store.list()} == {"odd": "running", "dead": "lost"}


HOSTILE = ("../../victim", "a/b", "", ".", "x" * 65)


@pytest.mark.parametrize("job_id", HOSTILE)
def test_an_id_that_leads_elsewhere_is_no_part_of_a_path(runs_dir: Path, job_id: str) -> None:
    with pytest.raises(StorageError, match="no job id"):
        launch_lock(runs_dir, job_id)
    row = row_of(make_folder(runs_dir), "demo", job_id=job_id, state="running")
    assert observe(row, runs_dir).state == "lost"


def test_an_outcome_of_a_job_whose_id_leads_elsewhere_is_none(runs_dir: Path) -> None:
    row = row_of(make_folder(runs_dir), "demo", job_id="../../victim")
    put_outcome(runs_dir, row, "completed")
    assert outcome_of(runs_dir / "demo", "") is None
    assert outcome_of(runs_dir / "demo", row.job_id) is None
