"""The process of sinks beside a runner: when it ends, what it ignores, and what a kill of it costs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.sending import ToyRun, free_port, lines_of, receiver, redis_server, wait_for
from trn.files import Lock, write_atomic
from trn.records import canonical_json


@contextlib.contextmanager
def sinks(run: ToyRun, *targets: str, job_id: str = "job-1") -> Iterator[subprocess.Popen[bytes]]:
    """Started as a door starts it, with a pipe as its input."""
    plan = {"run_id": run.facts.run_id, "events": list(targets)}
    write_atomic(run.reports / "resolved_config.json", canonical_json(plan))
    argv = [sys.executable, "-P", "-m", "trn.sinks", "--run-dir", str(run.dir), "--job-id", job_id]
    with open(run.dir / "log", "ab") as log:
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        assert process.stdin is not None
        process.stdin.close()


def end_of_input(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


@pytest.fixture
def run(tmp_path: Path) -> ToyRun:
    return ToyRun(tmp_path / "runs")


def test_it_sends_until_the_run_is_let_go_and_its_door_is_done(run: ToyRun, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with sinks(run, f"file:{out}") as process:
        lock = Lock(run.dir / ".lock")
        assert lock.acquire(note="pid=1 job=job-1")
        run.emit(10)
        wait_for(lambda: out.exists() and len(lines_of(out)) == 10, "the events")
        assert psutil.Process(process.pid).nice() == 10
        end_of_input(process)  # the door is gone, the run goes on
        run.emit(10)
        wait_for(lambda: len(lines_of(out)) == 20, "the next events")
        run.emit(1, "completed", outcome="completed", exit_code=0)
        lock.release()
        assert process.wait(10) == 0
    assert out.read_bytes() == run.events_file.read_bytes()
    assert (run.dir / "log").read_text() == ""


def test_signals_that_ask_the_run_to_stop_do_not_stop_it(run: ToyRun, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run.emit(1)
    with sinks(run, f"file:{out}") as process:
        wait_for(out.exists, "the first event")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(process.pid, number)
        run.emit(3)
        wait_for(lambda: len(lines_of(out)) == 4, "the events")
        assert process.poll() is None
        end_of_input(process)
        assert process.wait(10) == 0


def test_a_run_held_by_another_job_is_not_waited_for(run: ToyRun, tmp_path: Path) -> None:
    run.emit(3)
    with Lock(run.dir / ".lock") as lock, sinks(run, f"file:{tmp_path}/out.jsonl") as process:
        lock.release()
        assert lock.acquire(note="pid=1 job=job-2")
        end_of_input(process)
        assert process.wait(10) == 0
    assert len(lines_of(tmp_path / "out.jsonl")) == 3


def test_standard_output_has_the_events_of_the_job_alone(run: ToyRun) -> None:
    run.emit(5)
    with sinks(run, "-", job_id="job-1") as process:
        end_of_input(process)
        assert process.wait(10) == 0
    assert [line["seq"] for line in lines_of(run.dir / "log")] == [1, 2, 3, 4, 5]
    (run.dir / "log").unlink()
    run.log = type(run.log)(run.events_file, run_id="exp01", job_id="job-2")
    run.emit(2)
    with sinks(run, "-", job_id="job-2") as process:
        end_of_input(process)
        assert process.wait(10) == 0
    assert [line["seq"] for line in lines_of(run.dir / "log")] == [6, 7]


@pytest.mark.slow
def test_killed_again_and_again_it_loses_nothing_and_doubles_nothing_that_can_tell(run: ToyRun, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with redis_server(tmp_path) as server, receiver() as kept:
        targets = (server.url, f"file:{out}", kept.url)
        for number in range(6):
            with sinks(run, *targets) as process:
                for _ in range(10):
                    run.emit(30)
                    time.sleep(0.01)
                wait_for(lambda n=number: out.exists() and len(lines_of(out)) > 300 * n + 10, "some events")
                process.kill()
        with sinks(run, *targets) as process:
            end_of_input(process)
            assert process.wait(30) == 0
        assert [int(entry.partition("-")[0]) for entry, _ in server.entries()] == list(range(1, 1801))
        assert out.read_bytes() == run.events_file.read_bytes()
        assert list(dict.fromkeys(kept.ids)) == list(range(1, 1801))  # in order, where repeats are left out


@pytest.mark.slow
def test_a_target_that_was_never_there_costs_a_line_and_no_memory(run: ToyRun) -> None:
    run.emit(20_000)
    with sinks(run, f"redis://127.0.0.1:{free_port()}/0") as process:
        lock = Lock(run.dir / ".lock")
        assert lock.acquire(note="pid=1 job=job-1")
        wait_for(lambda: (run.dir / "log").stat().st_size, "the warning")
        of_few = psutil.Process(process.pid).memory_info().rss
        run.emit(80_000)
        time.sleep(1.0)
        of_many = psutil.Process(process.pid).memory_info().rss
        lock.release()
    assert of_many - of_few < 5 << 20
    told = (run.dir / "log").read_text().splitlines()
    assert len(told) == 1
    assert "does not take events" in told[0]
