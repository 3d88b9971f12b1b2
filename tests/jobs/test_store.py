"""The job store: changes that are never lost, an index that follows, and files that are not what they should be."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

import pytest

from support.door import row_of
from support.stand_in import Job, publish
from trn.errors import StorageError
from trn.files import make_folder
from trn.jobs import MOVES, Store, job_log, observe, open_store
from trn.jobs.looks import is_noted
from trn.jobs.request import Request, request_path, write_request
from trn.records import JOB_STATES, JobRow, json_line, read_lines, utc_now


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
        for state in set(JOB_STATES) - {"completed"}:
            with pytest.raises(StorageError, match=f"is completed and cannot become {state}"):
                store.advance(row.job_id, state)
        assert len(index_of(tmp_path)) == 2


def test_a_job_that_somebody_has_moved_already_is_where_it_should_be(tmp_path: Path) -> None:
    row = row_of(tmp_path, "demo", state="running")
    with open_store(tmp_path) as store, open_store(tmp_path) as other:
        store.add(row)
        ended = other.swap(row, "completed", exit_code=0, reason="of the other")
        assert store.advance(row.job_id, "completed", exit_code=0, reason="of this one") == ended
        assert store.get(row.job_id) == ended
        assert [state for _, _, state in index_of(tmp_path)] == ["running", "completed"]


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
    connection.execute("PRAGMA user_version = 3")
    connection.close()
    with (
        open_store(tmp_path) as store,
        pytest.raises(StorageError, match=r"version 3, this trn knows 2\. Use the newer"),
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


# Earlier versions


_VERSION_1 = """
CREATE TABLE jobs (
  job_id TEXT, run_id TEXT, run_dir TEXT, state TEXT, config_path TEXT, submitted_at TEXT, started_at TEXT,
  ended_at TEXT, pid INTEGER, exit_code INTEGER, reason TEXT, revision INTEGER, PRIMARY KEY (job_id)
) STRICT;
CREATE INDEX jobs_by_run ON jobs (run_id, submitted_at);
CREATE INDEX jobs_by_time ON jobs (submitted_at, job_id);
PRAGMA user_version = 1;
"""


@pytest.fixture
def old(tmp_path: Path) -> JobRow:
    """A row in a store of the first version."""
    row = row_of(tmp_path, "old", state="completed", pid=7, exit_code=0, revision=3)
    (tmp_path / ".trn").mkdir()
    connection = sqlite3.connect(tmp_path / ".trn" / "jobs.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(_VERSION_1)
    values = list(asdict(row).values())[:12]
    connection.execute(f"INSERT INTO jobs VALUES ({', '.join('?' * 12)})", values)
    connection.close()
    return row


def version_of_file(runs_dir: Path) -> int:
    connection = sqlite3.connect(runs_dir / ".trn" / "jobs.db")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.close()
    return int(version)


def test_a_store_of_the_first_version_is_read_as_it_is(tmp_path: Path, old: JobRow) -> None:
    before = (tmp_path / ".trn/jobs.db").read_bytes()
    with open_store(tmp_path) as store:
        assert store.get(old.job_id) == old
        assert store.list(states=("completed",)) == (old,)
        assert store.run_ids() == {"old"}
        assert store.runs_without_jobs() == ()
    assert (tmp_path / ".trn/jobs.db").read_bytes() == before
    assert version_of_file(tmp_path) == 1


def test_a_store_of_the_first_version_is_brought_up_by_the_first_change(tmp_path: Path, old: JobRow) -> None:
    new = row_of(tmp_path, "new", launcher="slurm", engine_id="4711", devices='["cuda:0"]', generation=2)
    with open_store(tmp_path) as reader, open_store(tmp_path) as store:
        assert reader.list() == (old,)
        store.add(new)
        assert store.list() == reader.list() == (new, old)
    assert version_of_file(tmp_path) == 2
    assert sorted(line["job_id"] for line in read_lines(tmp_path / "jobs/index.jsonl")) == [old.job_id, new.job_id]


def test_a_change_that_fails_leaves_the_first_version(tmp_path: Path, old: JobRow) -> None:
    with open_store(tmp_path) as store:
        with pytest.raises(StorageError, match="there already"):
            store.add(old)
        assert store.list() == (old,)
    assert version_of_file(tmp_path) == 1


# Losses


def remove_store(runs_dir: Path, names: str = "jobs.db*") -> None:
    for path in (runs_dir / ".trn").glob(names):
        path.unlink()


@pytest.fixture
def jobs(tmp_path: Path) -> tuple[JobRow, ...]:
    """Some jobs in some states, as a store lists them."""
    with open_store(tmp_path) as store:
        for state in ("completed", "running", "queued", "rejected"):
            row = row_of(tmp_path, f"run-{state}", launcher="slurm", devices='["cuda:0"]', pid=5)
            store.add(row)
            store.advance(row.job_id, state, reason="because")
        return store.list()


def test_a_lost_store_is_made_again_from_its_index(tmp_path: Path, jobs: tuple[JobRow, ...]) -> None:
    remove_store(tmp_path)
    new = row_of(tmp_path, "new")
    with open_store(tmp_path) as store:
        assert store.list() == jobs
        assert not store.path.exists(), "who reads makes nothing"
        assert store.news == ("the job store was lost: 4 jobs are known from its index",)
        store.add(new)
        assert store.list() == (new, *jobs)
        assert store.advance(jobs[1].job_id, "running").revision == jobs[1].revision + 1
    with open_store(tmp_path) as store:
        assert len(store.list()) == 5
        assert store.news == ()


@pytest.mark.parametrize("names", ["jobs.db", "jobs.db-*", "jobs.*"])
def test_a_store_that_is_removed_under_a_process_loses_none_of_its_changes(
    tmp_path: Path, jobs: tuple[JobRow, ...], names: str
) -> None:
    with open_store(tmp_path) as store, open_store(tmp_path) as other:
        store.add(before := row_of(tmp_path, "before"))
        assert len(other.list()) == 5
        remove_store(tmp_path, names)
        if names == "jobs.db-*":  # its newest changes were in there: the file without them is older than the index
            remove_store(tmp_path)
        other.add(after := row_of(tmp_path, "after"))
        store.advance(before.job_id, "completed")
        other.advance(after.job_id, "completed")
    with open_store(tmp_path) as store:
        rows = store.list()
    assert [(row.run_id, row.state) for row in rows[:2]] == [("after", "completed"), ("before", "completed")]
    assert rows[2:] == jobs


def test_a_rebuilding_that_is_interrupted_begins_again(tmp_path: Path, jobs: tuple[JobRow, ...]) -> None:
    remove_store(tmp_path)
    (tmp_path / ".trn/jobs.db").touch()
    with open_store(tmp_path) as store:
        assert store.list() == jobs
        with pytest.raises(StorageError, match="there already"):
            store.add(jobs[0])
    with open_store(tmp_path) as store:
        store.add(row_of(tmp_path, "new"))
        assert store.list()[1:] == jobs


def test_a_removed_index_is_written_again_from_the_store(tmp_path: Path, jobs: tuple[JobRow, ...]) -> None:
    (tmp_path / "jobs/index.jsonl").unlink()
    (tmp_path / "jobs/.index.jsonl.tmp-1-1").touch()
    with open_store(tmp_path) as store:
        store.add(new := row_of(tmp_path, "new"))
    assert os.listdir(tmp_path / "jobs") == ["index.jsonl"]
    remove_store(tmp_path)
    with open_store(tmp_path) as store:
        assert store.list() == (new, *jobs)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"{}",
        b'{"job_id": NaN}',
        b'{"ts":"now","job_id":"../../x","run_id":"x"}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_line_of_the_index_costs_that_line(tmp_path: Path, jobs: tuple[JobRow, ...], damage: bytes) -> None:
    index = tmp_path / "jobs/index.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join([*lines[:3], damage + b"\n", *lines[3:], lines[-1][:30]]))
    remove_store(tmp_path)
    with open_store(tmp_path) as store:
        assert store.list() == jobs
        assert store.news[1:] == (f"{index}: 1 damaged lines were left out",)


def test_hostile_rows_of_an_index_are_no_rows(tmp_path: Path, jobs: tuple[JobRow, ...]) -> None:
    index = tmp_path / "jobs/index.jsonl"
    good = {"ts": utc_now(), **row_of(tmp_path, "good").to_json()}
    changes: list[dict[str, object]] = [
        {"job_id": "../../victim"},
        {"run_id": "a/b"},
        {"state": "no such state"},
        {"submitted_at": "yesterday"},
        {"pid": "7"},
        {"more": 1},
        {"launcher": None},
        {"pid": 1 << 63},
        {"reason": "half a character: \ud800"},
        {"devices": ["\udcff"]},
    ]
    index.write_text("".join(json.dumps({**good, **change}) + "\n" for change in [*changes, {}]))
    remove_store(tmp_path)
    with open_store(tmp_path) as store:
        assert [row.run_id for row in store.list()] == ["good"]
        assert f"{len(changes)} damaged lines" in store.news[1]


def test_lines_of_the_first_version_are_read(tmp_path: Path) -> None:
    row = row_of(tmp_path, "demo")
    new = ("launcher", "engine_id", "devices", "generation")
    line = {"ts": utc_now(), **{name: value for name, value in row.to_json().items() if name not in new}}
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/index.jsonl").write_bytes(json_line(line))
    with open_store(tmp_path) as store:
        assert store.list() == (row,)


def test_without_store_and_index_the_jobs_are_those_of_the_folders_and_the_requests(tmp_path: Path) -> None:
    ended, crashed, going = (row_of(tmp_path, name) for name in ("ended", "ended", "going"))
    publish(tmp_path / "ended", ended.job_id).release()
    for row, status in ((ended, "preempted"), (crashed, "completed")):
        job = Job(tmp_path / "ended", row.job_id)
        job.begin(3, 0)
        job.end(status)
        outcomes = make_folder(tmp_path / "ended/reports/outcomes")
        if row is ended:
            (tmp_path / "ended/reports/outcome.json").rename(outcomes / f"{row.job_id}.json")
    lock = publish(tmp_path / "going", going.job_id)
    Job(tmp_path / "going", going.job_id).begin(3, 0)
    waiting = row_of(tmp_path, "waiting", state="queued")
    words = (waiting.config_path, ("--x",), sys.executable, str(tmp_path))
    request = Request(waiting.job_id, "waiting", waiting.submitted_at, *words, environ={})
    write_request(tmp_path, request)
    write_request(tmp_path, replace(request, job_id="job-detached", environ=None))  # its keeper adds it
    request_path(tmp_path, "job-damaged").write_bytes(b"{")
    with open_store(tmp_path) as store:
        found = {row.job_id: observe(row, tmp_path) for row in store.list()}
        assert store.news == ("the job store was lost: 4 jobs are known from the folders of its runs",)
        assert {row.job_id: row.state for row in found.values()} == {
            ended.job_id: "preempted",
            crashed.job_id: "completed",
            going.job_id: "running",
            waiting.job_id: "queued",
        }
        assert found[ended.job_id].exit_code == 75
        assert found[waiting.job_id] == waiting
        assert abs(_seconds(found[ended.job_id].submitted_at) - _seconds(ended.submitted_at)) < 1
        before = store.list()
        store.add(row_of(tmp_path, "new"))
        assert store.list()[1:] == before
        assert store.advance(going.job_id, "completed").state == "completed"
    assert len(list(read_lines(tmp_path / "jobs/index.jsonl"))) == 6
    lock.release()


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def test_folders_that_cannot_be_read_are_left_out_and_said(tmp_path: Path) -> None:
    publish(tmp_path / "odd", "job-odd").release()
    (tmp_path / "odd/reports/events.jsonl").symlink_to("events.jsonl")
    with open_store(tmp_path) as store:
        assert store.list() == ()
        assert store.news[1:] == (f"{tmp_path}: 1 folders of runs cannot be read, and were left out",)


# Runs without jobs


def folders(store: Store) -> set[str]:
    return {row.run_id for row in store.runs_without_jobs()}


def begin_a_job(store: Store, run_id: str) -> JobRow:
    row = row_of(store.runs_dir, run_id)
    store.add(row)
    return store.advance(row.job_id, "running")


def noted(store: Store) -> bool:
    """Whether a reader need not look at the folders."""
    with store._database.reading() as connection:
        return is_noted(connection, store.runs_dir)


def test_folders_that_come_and_go_are_seen_whether_they_are_noted_or_not(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        publish(tmp_path / "one", "job-1").release()
        store.add(row_of(tmp_path, "known"))
        publish(tmp_path / "known", "job-known").release()
        assert not noted(store)
        assert folders(store) == {"one"}
        begin_a_job(store, "more")
        assert noted(store)
        assert folders(store) == {"one"}
        (tmp_path / "two").mkdir()
        assert folders(store) == {"one"}
        begin_a_job(store, "again")
        assert noted(store)
        (tmp_path / "two/reports").mkdir()
        (tmp_path / "two/reports/resolved_config.json").write_text("{}")
        assert noted(store), "a folder that is filled does not change the folder that it is in"
        assert folders(store) == {"one", "two"}
        (tmp_path / "one").rename(tmp_path.parent / f"{tmp_path.name}-moved")
        assert folders(store) == {"two"}
        begin_a_job(store, "last")
        assert noted(store)
        assert folders(store) == {"two"}


def test_while_the_folders_are_noted_they_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path) as store:
        row = row_of(tmp_path, "demo")
        store.add(row)
        publish(tmp_path / "demo", row.job_id).release()
        store.advance(row.job_id, "running")
        monkeypatch.setattr("trn.jobs.folders.os.listdir", None)
        assert store.runs_without_jobs() == ()
        assert [one.run_id for one in store.list()] == ["demo"]


def test_a_noted_run_that_gets_a_job_and_loses_it_again_is_not_forgotten(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        publish(tmp_path / "one", "job-1").release()
        first = row_of(tmp_path, "one")
        store.add(first)
        assert folders(store) == set()
        store.advance(first.job_id, "rejected")
        assert noted(store)
        assert folders(store) == {"one"}
        begin_a_job(store, "one")
        assert folders(store) == set()
        assert (len(store.list()), store.names_of_runs("o", 5)) == (2, ("one",))


def test_the_newest_of_many_folders_are_given(tmp_path: Path) -> None:
    for number in range(4):
        publish(tmp_path / f"run-{number}", "job").release()
        os.utime(tmp_path / f"run-{number}/reports/resolved_config.json", (number, number))
    with open_store(tmp_path) as store:
        assert [row.run_id for row in store.runs_without_jobs(2)] == ["run-3", "run-2"]
        begin_a_job(store, "known")
        assert noted(store)
        assert [row.run_id for row in store.runs_without_jobs(2)] == ["run-3", "run-2"]
        assert store.names_of_runs("run-", 3) == ("run-3", "run-2", "run-1")


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


@pytest.mark.slow
def test_writers_that_are_killed_among_others_lose_nothing_that_they_had_done(tmp_path: Path) -> None:
    killed = [start_writer(tmp_path, f"killed{n}", 10_000) for n in range(2)]
    others = [start_writer(tmp_path, f"other{n}", 20) for n in range(6)]
    done: set[str] = set()
    for number, writer in enumerate(killed):
        assert writer.stdout is not None
        done.update(writer.stdout.readline().strip() for _ in range(3 + 5 * number))
        os.kill(writer.pid, signal.SIGKILL)
        done.update(line.strip() for line in writer.stdout if line.endswith("\n"))
        writer.wait(30)
    done |= {line for writer in others for line in writer.communicate(timeout=60)[0].split()}
    assert [writer.returncode for writer in others] == [0] * 6
    with open_store(tmp_path) as store:
        rows = {row.job_id: row for row in store.list()}
    assert {rows[job_id].state for job_id in done} == {"completed"}
    steps = ("submitted", "starting", "running", "completed")
    assert [row for row in rows.values() if row.state != steps[row.revision]] == [], "no row is between two changes"
    assert sum(row.state != "completed" for row in rows.values()) <= 2
    changes = {(job_id, revision) for job_id, row in rows.items() for revision in range(row.revision + 1)}
    assert changes <= {(job_id, revision) for job_id, revision, _ in index_of(tmp_path)}


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
        "launcher",
        "engine_id",
        "devices",
        "generation",
    ]
    assert JobRow.__dataclass_fields__["revision"].default == 0
