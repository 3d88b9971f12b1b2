"""The queue from its doors: submitting to it, serving it, and looking at it, with a stand-in for the runner."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import kept
from support.door import until
from support.job import write_job
from support.kept import enqueue, left
from trn.devices import Want, lease
from trn.doors import submitting
from trn.doors.apart import serve_if_needed
from trn.doors.cli import main
from trn.doors.foreground import plan_in_foreground
from trn.doors.processes import Processes
from trn.doors.staying import Start
from trn.doors.submitting import submit
from trn.doors.watch import Watch
from trn.errors import DeviceError, UsageError
from trn.jobs import open_store
from trn.jobs.cancelling import take_from_queue
from trn.jobs.ending import Ending
from trn.jobs.queue import is_served, why_waiting
from trn.jobs.request import read_request, request_path
from trn.launch import Layout
from trn.ranks import World
from trn.records import JobRow, read_lines

CORES = len(os.sched_getaffinity(0))
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    kept.stand_in(monkeypatch, tmp_path)
    monkeypatch.setenv("TRN_TEST_THEN", "complete")
    return tmp_path / "runs"


def start_of(runs_dir: Path, *then: str, want: Want | None = None) -> Start:
    arguments = ["--run-dir", str(runs_dir / "demo"), *(("--then", *then) if then else ())]
    return Start(runs_dir, "demo", arguments, Processes(Layout(1), World()), "", 30.0, want=want or Want())


@contextlib.contextmanager
def serving(runs_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A server that would stay for ever; gone afterwards, however the test ends."""
    command = [sys.executable, "-c", "import sys; from trn.doors.cli import main; sys.exit(main())", "queue", "serve"]
    server = subprocess.Popen([*command, "--runs-dir", str(runs_dir)], stderr=subprocess.PIPE, text=True)
    try:
        yield server
    finally:
        server.kill()
        server.wait(20)


def states(runs_dir: Path) -> Counter[str]:
    with open_store(runs_dir) as store:
        return Counter(row.state for row in store.list())


def told(runs_dir: Path, job_id: str) -> list[str]:
    return [line["state"] for line in read_lines(runs_dir / "jobs" / "index.jsonl") if line["job_id"] == job_id]


def only_row(runs_dir: Path) -> JobRow:
    with open_store(runs_dir) as store:
        (row,) = store.list()
    return row


def test_a_queued_job_is_planned_stored_without_secrets_and_run(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz012345")
    monkeypatch.setenv("BROKER", "redis://me:hunter2hunter2@127.0.0.1:6379/0")
    monkeypatch.setenv("PLAIN", "kept")
    monkeypatch.setenv(os.fsdecode(b"NO_TEXT_\xff"), "1")
    monkeypatch.setenv("NO_TEXT", os.fsdecode(b"\xff"))
    with lease(Want(cpus=CORES), note="job=x run=x", environ=os.environ):
        assert submit(start_of(runs_dir, want=Want(cpus=1)), "queue", as_json=True) == 0
        row = only_row(runs_dir)
        captured = capsys.readouterr()
        assert json.loads(captured.out) == {
            "job_id": row.job_id,
            "run_id": "demo",
            "run_dir": str(runs_dir / "demo"),
            "state": "queued",
        }
        assert f"trn: queued as job {row.job_id}, place 1; `trn queue` shows what it waits for" in captured.err
        (said,) = [line for line in captured.err.splitlines() if "not stored with the job" in line]
        assert {"BROKER", "HF_TOKEN", "NO_TEXT"} <= set(said.partition("served: ")[2].split(", "))
        text = request_path(runs_dir, row.job_id).read_text()
        assert not [secret for secret in ("hf_abc", "hunter2") if secret in text]
        request = read_request(runs_dir, row.job_id)
        assert (request.environ or {})["PLAIN"] == "kept"
        assert request.arguments == ("--run-dir", str(runs_dir / "demo"))
        until(lambda: row.job_id in why_waiting(runs_dir))
        assert main(["status", "demo", "--runs-dir", str(runs_dir)]) == 0
        (waits,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("waits for")]
        assert " held by job x of run x" in waits
        assert (row.state, (runs_dir / "demo").is_dir()) == ("queued", True)
    until(lambda: only_row(runs_dir).state == "completed")
    assert told(runs_dir, row.job_id) == ["submitted", "queued", "starting", "running", "completed"]
    assert only_row(runs_dir).device_names()[0].startswith("cpu:")
    until(lambda: is_served(runs_dir) is None)
    until(lambda: not request_path(runs_dir, row.job_id).exists())


def test_a_job_that_leaves_the_queue_at_once_is_still_told_by_its_id(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Whoever serves, or cancels, may come between the row and the words about it."""

    def plan(watch: Watch, *more: Any) -> Ending | None:
        ending = plan_in_foreground(watch, *more)
        with open_store(runs_dir) as store:
            assert take_from_queue(store, watch.row) is not None
        return ending

    monkeypatch.setattr(submitting, "plan_in_foreground", plan)
    assert submit(start_of(runs_dir), "queue", as_json=False) == 0
    row = only_row(runs_dir)
    captured = capsys.readouterr()
    assert (row.state, captured.out) == ("cancelled", f"{row.job_id}\n")
    assert f"trn: queued as job {row.job_id}; `trn queue` shows what it waits for" in captured.err


def test_a_job_is_queued_where_nobody_listens(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):  # as in a process that was started with them closed
        monkeypatch.setattr(sys, name, None)
    assert submit(start_of(runs_dir), "queue", as_json=False) == 0
    until(lambda: only_row(runs_dir).state == "completed")
    until(lambda: is_served(runs_dir) is None)


def test_a_plan_that_is_refused_is_told_at_once_and_leaves_nothing(runs_dir: Path, capsys: Capture) -> None:
    assert submit(start_of(runs_dir, "refuse"), "queue", as_json=False) == 78
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "plan error [plan_refused] at seed: no such thing." in captured.err.splitlines()
    assert left(runs_dir) == set()


def test_a_folder_whose_name_is_no_text_is_refused_before_anything_is_written(
    runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = os.path.join(os.fsencode(tmp_path), b"odd-\xff")
    try:
        os.mkdir(odd)
    except OSError:
        pytest.skip("this file system has no such names")
    monkeypatch.chdir(os.fsdecode(odd))
    for how in ("queue", "detach"):
        with pytest.raises(UsageError, match="is not UTF-8 text"):
            submit(start_of(runs_dir, "complete"), how, as_json=False)
    assert states(runs_dir) == Counter()


def test_devices_that_are_not_there_are_refused_before_anything_is_planned(runs_dir: Path) -> None:
    for how in ("queue", "detach"):
        with pytest.raises(DeviceError, match=rf"expected {CORES + 1} cores"):
            submit(start_of(runs_dir, "complete", want=Want(cpus=CORES + 1)), how, as_json=False)
    assert states(runs_dir) == Counter(rejected=2)
    assert left(runs_dir) == set()


def test_a_busy_device_is_refused_to_a_detached_job_and_waited_for_by_a_queued_one(runs_dir: Path) -> None:
    with lease(Want(cpus=CORES), note="job=x run=x", environ=os.environ):
        with pytest.raises(DeviceError, match=" held by job x of run x"):
            submit(start_of(runs_dir, "complete", want=Want(cpus=1)), "detach", as_json=False)
        assert not request_path(runs_dir, "x").parent.exists()


def test_the_list_says_what_waits_and_for_what(runs_dir: Path, capsys: Capture) -> None:
    with open_store(runs_dir) as store:
        first = enqueue(store, "one", want=Want(cpus=2))
        second = enqueue(store, "two")
    request_path(runs_dir, second.job_id).write_text("{")
    assert main(["queue", "--runs-dir", str(runs_dir)]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split() == ["RUN", "SUBMITTED", "(UTC)", "JOB", "WANTS", "WAITS", "FOR"]
    assert lines[1].startswith("1  one ")
    assert lines[1].endswith("2 cores  somebody to serve")
    assert "is damaged" in lines[2]
    assert "Nobody serves the queue" in captured.err
    assert main(["queue", "--json", "--runs-dir", str(runs_dir)]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["served_by"] is None
    assert [(job["place"], job["job_id"], job["wants"]) for job in document["jobs"]] == [
        (1, first.job_id, "2 cores"),
        (2, second.job_id, None),
    ]


def test_an_empty_queue_is_said_to_be_empty(runs_dir: Path, capsys: Capture) -> None:
    assert main(["queue", "--runs-dir", str(runs_dir)]) == 0
    assert capsys.readouterr().err == f"No job waits in {runs_dir}.\n"
    assert not runs_dir.exists()
    serve_if_needed(runs_dir)
    assert not runs_dir.exists()


@pytest.mark.slow
def test_who_serves_for_ever_takes_over_and_ends_when_it_is_told_to(runs_dir: Path) -> None:
    with serving(runs_dir) as one, serving(runs_dir) as other:
        # the lock is held for a moment before its note says by whom
        until(lambda: is_served(runs_dir) in [f"pid={server.pid}" for server in (one, other)])
        first, second = (one, other) if f"pid={one.pid}" == is_served(runs_dir) else (other, one)
        first.send_signal(signal.SIGTERM)
        _, said = first.communicate(timeout=20)
        assert (first.returncode, said) == (0, f"trn: serving the queue of {runs_dir}\n")
        until(lambda: is_served(runs_dir) == f"pid={second.pid}")
        second.send_signal(signal.SIGINT)
        second.communicate(timeout=20)
        assert second.returncode == 0
        assert is_served(runs_dir) is None


@pytest.mark.slow
def test_no_job_is_started_twice_by_two_servers_of_which_one_is_killed(runs_dir: Path) -> None:
    """Twenty jobs on all cores, one lease each; the servers race for the lock, and the holder is killed on the way."""
    with open_store(runs_dir) as store:
        jobs = [enqueue(store, f"run-{number:02}", "complete", want=Want(cpus=1)) for number in range(20)]
    servers = [subprocess.Popen(kept._server(runs_dir)) for _ in range(2)]
    until(lambda: states(runs_dir)["completed"] >= 3)
    holder = is_served(runs_dir)
    assert holder is not None
    os.kill(int(holder.removeprefix("pid=")), signal.SIGKILL)
    # as the next who submits would: it may have been killed when no job was there whose end starts another
    servers += [subprocess.Popen(kept._server(runs_dir)) for _ in range(2)]
    until(lambda: states(runs_dir)["completed"] == 20, timeout_s=90)
    for one in servers:
        one.wait(20)
    until(lambda: is_served(runs_dir) is None)
    for job in jobs:
        assert told(runs_dir, job.job_id) == ["submitted", "queued", "starting", "running", "completed"]
        events = [event["event"] for event in read_lines(runs_dir / job.run_id / "reports" / "events.jsonl")]
        assert events.count("job_started") == 1
    until(lambda: list((runs_dir / ".trn" / "queue").iterdir()) == [])


@pytest.mark.slow
def test_two_trainings_that_want_all_cores_come_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRN_LEASES_DIR", str(tmp_path / "leases"))
    spec, runs_dir = write_job(tmp_path / "job", max_steps=40), tmp_path / "runs"
    command = "import sys; from trn.doors.cli import main; sys.exit(main())"
    where = ["--config", str(spec), "--runs-dir", str(runs_dir), "--cpus", str(CORES), "--set", "threads=0"]
    for name in ("first", "second"):
        argv = [sys.executable, "-c", command, "run", *where, "--run-id", name, "--queue", "--json"]
        done = subprocess.run(argv, capture_output=True, check=True, timeout=60)
        assert json.loads(done.stdout)["state"] == "queued"
    until(lambda: states(runs_dir)["completed"] == 2, timeout_s=120)
    with open_store(runs_dir) as store:
        second, first = store.list()
    assert (first.run_id, second.run_id) == ("first", "second")
    assert (first.ended_at or "") <= (second.started_at or "")
    assert len(first.device_names()) == len(second.device_names()) == CORES
    plan = json.loads((runs_dir / "second" / "reports" / "resolved_config.json").read_text())
    assert plan["threads"] == CORES
