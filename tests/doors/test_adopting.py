"""The door that an engine has started, and the row of its job: who adds it, who takes it over, and who does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.door import row_of
from trn.doors.adopting import adopting
from trn.errors import DeviceError
from trn.files import Lock, is_locked
from trn.jobs import launch_lock, open_store
from trn.launch.engine import VARIABLES
from trn.records import JobRow

ENGINE = {"launcher": "slurm", "engine_id": "7"}


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobRow:
    """A job that an engine has started this process for; its row is not there yet."""
    row = row_of(tmp_path, "demo", state="queued", **ENGINE)
    for name, value in (("TRN_LAUNCHER", "slurm"), ("TRN_ENGINE_ID", "7"), ("TRN_JOB_ID", row.job_id)):
        monkeypatch.setenv(name, value)
    return row


def add(runs_dir: Path, row: JobRow) -> None:
    with open_store(runs_dir) as store:
        store.add(row)


def stored(runs_dir: Path, job_id: str) -> JobRow:
    with open_store(runs_dir) as store:
        row = store.get(job_id)
    assert row is not None
    return row


def test_a_waiting_row_of_the_same_run_is_taken_over(tmp_path: Path, submitted: JobRow) -> None:
    add(tmp_path, submitted)
    with adopting(row_of(tmp_path, "demo"), tmp_path) as (row, lock):
        assert row == submitted
        assert lock is not None
        assert f"job={row.job_id}" in str(is_locked(launch_lock(tmp_path, row.job_id)))
        assert not set(os.environ) & set(VARIABLES)  # what the training starts is another job
        lock.release()


def test_the_door_there_adds_the_row_where_it_is_the_first(tmp_path: Path, submitted: JobRow) -> None:
    with adopting(row_of(tmp_path, "demo"), tmp_path) as (row, lock):
        assert lock is not None
        lock.release()
    assert (row.job_id, row.state) == (submitted.job_id, "queued")
    assert (row.launcher, row.engine_id) == ("slurm", "7")
    assert stored(tmp_path, submitted.job_id) == row


@pytest.mark.parametrize("changes", [{"run_id": "other"}, {"state": "preempted"}, {"state": "cancelled"}])
def test_another_run_and_a_job_that_is_over_are_left_alone(
    tmp_path: Path, submitted: JobRow, changes: dict[str, str]
) -> None:
    before = JobRow(**{**submitted.to_json(), "devices": None, **changes})
    add(tmp_path, before)
    own = row_of(tmp_path, "demo")
    with adopting(own, tmp_path) as (row, lock):
        assert lock is None
        assert (row.job_id, row.launcher, row.engine_id) == (own.job_id, "slurm", "7")
    assert stored(tmp_path, submitted.job_id) == before


def test_a_job_that_another_door_has_is_not_taken(tmp_path: Path, submitted: JobRow) -> None:
    add(tmp_path, submitted)
    path = launch_lock(tmp_path, submitted.job_id)
    path.parent.mkdir(parents=True)
    theirs = Lock(path)
    assert theirs.acquire(note="pid=1")
    with adopting(row_of(tmp_path, "demo"), tmp_path) as (row, lock):
        assert lock is None
        assert row.job_id != submitted.job_id
    theirs.release()


def test_an_attempt_that_died_with_its_machine_is_lost_when_the_next_one_begins(
    tmp_path: Path, submitted: JobRow
) -> None:
    add(tmp_path, JobRow(**{**submitted.to_json(), "devices": None, "state": "running"}))
    other = row_of(tmp_path, "demo", state="running", launcher="slurm", engine_id="8")
    add(tmp_path, other)
    with adopting(row_of(tmp_path, "demo"), tmp_path) as (row, lock):
        assert (lock, row.engine_id) == (None, "7")
    assert stored(tmp_path, submitted.job_id).state == "lost"
    assert stored(tmp_path, other.job_id) == other


def test_a_refusal_before_it_begins_is_the_end_of_the_row(tmp_path: Path, submitted: JobRow) -> None:
    add(tmp_path, submitted)
    with pytest.raises(DeviceError), adopting(row_of(tmp_path, "demo"), tmp_path):
        raise DeviceError("all are held.", where="devices")
    row = stored(tmp_path, submitted.job_id)
    assert (row.state, row.exit_code) == ("rejected", 90)
    assert "all are held" in str(row.reason)
    assert not launch_lock(tmp_path, row.job_id).exists()


@pytest.mark.parametrize(
    ("launcher", "job_id"), [("", "job-1"), ("local", "job-1"), ("slurm", ""), ("slurm", "../../etc")]
)
def test_what_no_engine_has_said_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str, job_id: str
) -> None:
    monkeypatch.setenv("TRN_LAUNCHER", launcher)
    monkeypatch.setenv("TRN_JOB_ID", job_id)
    own = row_of(tmp_path, "demo")
    with adopting(own, tmp_path) as taken:
        assert taken == (own, None)
    assert not (tmp_path / ".trn").exists()
