"""The job store: changes that are never lost, an index that follows, and files that are not what they should be."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from support.door import row_of
from trn.errors import StorageError
from trn.jobs import MOVES, job_log, open_store
from trn.records import JOB_STATES, JobRow, read_lines


def index_of(runs_dir: Path) -> list[tuple[str, int, str]]:
    lines = read_lines(runs_dir / "jobs" / "index.jsonl")
    return [(line["job_id"], line["revision"], line["state"]) for line in lines]


def test_a_job_is_read_back_as_it_was_added(tmp_path: Path) -> None:
    row = row_of(tmp_path, "demo", pid=7, reason="because")
    with open_store(tmp_path) as store:
        store.add(row)
    with open_store(tmp_path) as store:
        assert store.get(row.job_id) == row
        assert store.of_run("demo") == (row,)
        assert store.run_ids() == {"demo"}
        assert store.get("job-of-nobody") is None


def test_a_job_that_was_refused_does_not_hide_a_run_that_is_known_by_its_folder(tmp_path: Path) -> None:
    row = row_of(tmp_path, "demo")
    with open_store(tmp_path) as store:
        store.add(row)
        assert store.run_ids() == {"demo"}
        store.swap(row, "rejected")
        assert store.run_ids() == frozenset()


def test_reading_a_folder_without_a_store_creates_nothing(tmp_path: Path) -> None:
    runs_dir = tmp_path / "runs"
    with open_store(runs_dir) as store:
        assert store.list() == ()
        assert store.get("x") is None
        assert store.run_ids() == frozenset()
    assert list(tmp_path.iterdir()) == []


def test_reading_leaves_no_files_beside_the_store(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.add(row_of(tmp_path, "demo"))
    before = sorted(os.listdir(tmp_path / ".trn"))
    with open_store(tmp_path) as store:
        assert len(store.list()) == 1
    assert sorted(os.listdir(tmp_path / ".trn")) == before == ["jobs.db", "jobs.lock"]


def test_files_are_for_the_owner_alone(tmp_path: Path) -> None:
    with open_store(tmp_path / "runs") as store:
        store.add(row_of(tmp_path / "runs", "demo"))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "runs").rglob("*")}
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}
    assert modes[".trn"] == 0o700
    assert modes["jobs.db"] == modes["jobs.db-wal"] == modes["index.jsonl"] == 0o600


def test_each_change_is_one_line_of_the_index(tmp_path: Path) -> None:
    row = row_of(tmp_path, "demo")
    with open_store(tmp_path) as store:
        store.add(row)
        store.advance(row.job_id, "starting", pid=4)
        store.advance(row.job_id, "running")
        last = store.advance(row.job_id, "completed", exit_code=0)
    assert last.revision == 3
    assert last.pid == 4
    assert [(revision, state) for _, revision, state in index_of(tmp_path)] == [
        (0, "submitted"),
        (1, "starting"),
        (2, "running"),
        (3, "completed"),
    ]


def test_a_torn_line_of_the_index_is_cut_by_the_next_change(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.add(row_of(tmp_path, "one"))
        index = tmp_path / "jobs" / "index.jsonl"
        with open(index, "ab") as stream:
            stream.write(b'{"ts":"2026-01-01T00:00:00Z","job_id":"job-torn"')
        store.add(row_of(tmp_path, "two"))
    assert [line["run_id"] for line in read_lines(index)] == ["one", "two"]


def test_all_states_are_known_and_only_listed_moves_are_legal(tmp_path: Path) -> None:
    assert set(MOVES) <= set(JOB_STATES)
    assert set().union(*MOVES.values()) <= set(JOB_STATES)
    row = row_of(tmp_path, "demo")
    with open_store(tmp_path) as store:
        store.add(row)
        store.advance(row.job_id, "completed")
        for state in JOB_STATES:
            with pytest.raises(StorageError, match=f"is completed and cannot become {state}"):
                store.advance(row.job_id, state)
        assert len(index_of(tmp_path)) == 2


def test_a_lost_job_may_still_turn_out_to_have_ended(tmp_path: Path) -> None:
    row = row_of(tmp_path, "demo")
    with open_store(tmp_path) as store:
        store.add(row)
        store.advance(row.job_id, "lost")
        assert store.advance(row.job_id, "preempted", exit_code=75).exit_code == 75


def test_a_swap_on_an_old_row_changes_nothing(tmp_path: Path) -> None:
    row = row_of(tmp_path, "demo")
    with open_store(tmp_path) as store:
        store.add(row)
        store.advance(row.job_id, "starting")
        assert store.swap(row, "lost") is None
        found = store.get(row.job_id)
    assert found is not None
    assert found.state == "starting"
    assert len(index_of(tmp_path)) == 2


def test_a_job_id_is_added_once(tmp_path: Path) -> None:
    row = row_of(tmp_path, "demo")
    with open_store(tmp_path) as store:
        store.add(row)
        with pytest.raises(StorageError, match="there already"):
            store.add(row)
        with pytest.raises(StorageError, match="there is no job nobody"):
            store.advance("nobody", "lost")
    assert len(index_of(tmp_path)) == 1


def test_lists_give_the_newest_first_and_can_be_limited(tmp_path: Path) -> None:
    rows = [row_of(tmp_path, f"run-{n}", submitted_at=f"2026-01-0{n}T00:00:00.000000Z") for n in range(1, 6)]
    with open_store(tmp_path) as store:
        for row in rows:
            store.add(row)
        store.advance(rows[4].job_id, "rejected")
        assert [row.run_id for row in store.list(limit=2)] == ["run-5", "run-4"]
        assert [row.run_id for row in store.list(states=("submitted",))] == ["run-4", "run-3", "run-2", "run-1"]


def test_nothing_is_noted_when_the_index_cannot_be_written(tmp_path: Path) -> None:
    row = row_of(tmp_path, "demo")
    with open_store(tmp_path) as store:
        store.add(row)
        index = tmp_path / "jobs" / "index.jsonl"
        index.unlink()
        index.mkdir()
        with pytest.raises(StorageError, match=r"index\.jsonl"):
            store.advance(row.job_id, "starting")
        assert store.get(row.job_id) == row


def test_a_damaged_store_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / ".trn").mkdir()
    (tmp_path / ".trn" / "jobs.db").write_bytes(b"not a database at all, and long enough to be read as one" * 20)
    with open_store(tmp_path) as store, pytest.raises(StorageError) as caught:
        store.list()
    assert "jobs.db" in str(caught.value)
    assert "Move" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_flipped_page_of_a_store_is_answered_or_refused(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for n in range(30):
            store.add(row_of(tmp_path, f"run-{n}"))
    path = tmp_path / ".trn" / "jobs.db"
    whole = path.read_bytes()
    for offset in range(0, len(whole), 509):
        path.write_bytes(
            whole[:offset] + bytes(byte ^ 0xFF for byte in whole[offset : offset + 8]) + whole[offset + 8 :]
        )
        with open_store(tmp_path) as store:
            try:
                store.list()
            except StorageError as error:
                assert "\n" not in str(error)  # noqa: PT017 - it may be raised or not


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.add(row_of(tmp_path, "demo"))
    connection = sqlite3.connect(tmp_path / ".trn" / "jobs.db")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with (
        open_store(tmp_path) as store,
        pytest.raises(StorageError, match=r"version 2, this trn knows 1\. Use the newer"),
    ):
        store.list()


def test_a_store_whose_making_was_interrupted_is_made_again(tmp_path: Path) -> None:
    (tmp_path / ".trn").mkdir()
    (tmp_path / ".trn" / "jobs.db").touch(mode=0o600)
    row = row_of(tmp_path, "demo")
    with open_store(tmp_path) as store:
        assert store.list() == ()
        store.add(row)
        assert store.list() == (row,)


def test_a_log_lies_under_the_utc_day_of_its_job(tmp_path: Path) -> None:
    row = row_of(tmp_path, "demo", job_id="job-1", submitted_at="2026-03-09T23:59:59.999999Z")
    assert job_log(tmp_path, row) == tmp_path / "logs/2026/03/09/job-1.log"


# Several processes

_WRITER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from support.door import row_of
    from trn.jobs import open_store

    runs_dir, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    with open_store(runs_dir) as store:
        for n in range(count):
            row = row_of(runs_dir, f"{name}-{n}")
            store.add(row)
            store.advance(row.job_id, "starting", pid=n)
            store.advance(row.job_id, "running")
            store.advance(row.job_id, "completed", exit_code=0)
            print(row.job_id, flush=True)
    """
)


def start_writer(runs_dir: Path, name: str, count: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", _WRITER, str(runs_dir), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_eight_writers_of_a_hundred_changes_lose_none(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path, f"writer{n}", 25) for n in range(8)]
    written = {line for writer in writers for line in writer.communicate(timeout=120)[0].split()}
    assert [writer.returncode for writer in writers] == [0] * 8
    with open_store(tmp_path) as store:
        rows = store.list()
    assert {row.job_id for row in rows} == written
    assert len(rows) == 200
    assert {(row.state, row.revision, row.exit_code) for row in rows} == {("completed", 3, 0)}
    index = index_of(tmp_path)
    assert Counter(index) == Counter(set(index))
    assert len(index) == 800


@pytest.mark.slow
def test_killed_writers_lose_nothing_that_they_had_done(tmp_path: Path) -> None:
    done: set[str] = set()
    for n in range(10):
        writer = start_writer(tmp_path, f"writer{n}", 10_000)
        assert writer.stdout is not None
        done.update(writer.stdout.readline().strip() for _ in range(1 + 3 * n))
        os.kill(writer.pid, signal.SIGKILL)
        done.update(line.strip() for line in writer.stdout if line.endswith("\n"))
        writer.wait()
    row = row_of(tmp_path, "after")
    with open_store(tmp_path) as store:
        store.add(row)
        rows = {one.job_id: one for one in store.list()}
    assert all(rows[job_id].state == "completed" for job_id in done)
    # the index follows: for each row all of its changes, and at most one more per kill that a crash took back
    index = index_of(tmp_path)
    expected = {(job_id, revision) for job_id, one in rows.items() for revision in range(one.revision + 1)}
    assert expected <= {(job_id, revision) for job_id, revision, _ in index}
    assert len(index) - len(expected) <= 10
    assert index[-1][0] == row.job_id


def test_rows_hold_what_records_say(tmp_path: Path) -> None:
    """A column that records.JobRow gains must come with a new version of the table."""
    assert list(replace(row_of(tmp_path, "x")).to_json()) == [
        "job_id",
        "run_id",
        "run_dir",
        "state",
        "config_path",
        "submitted_at",
        "started_at",
        "ended_at",
        "pid",
        "exit_code",
        "reason",
        "revision",
    ]
    assert JobRow.__dataclass_fields__["revision"].default == 0
