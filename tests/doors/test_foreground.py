"""A door and its job, with a real child that writes a real folder: endings, signals, and doors that die."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.door import filled, open_door, row_of, start_door, until
from support.kept import left
from support.stand_in import Job, argv, publish
from trn import files
from trn.errors import StorageError
from trn.jobs import job_log, launch_lock, observe, open_store, outcome_of
from trn.jobs.ending import Ending
from trn.records import JobRow, read_lines


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def keep(runs_dir: Path, *arguments: str, row: JobRow | None = None) -> tuple[Ending, JobRow]:
    """Run one stand-in to its end; returns its ending and its row in the store."""
    row = row or row_of(runs_dir, "demo")
    with open_store(runs_dir) as store:
        ending = open_door(store, row, argv(*arguments))
        found = store.get(row.job_id)
    assert found is not None
    return ending, found


def states(runs_dir: Path, job_id: str) -> list[str]:
    return [line["state"] for line in read_lines(runs_dir / "jobs" / "index.jsonl") if line["job_id"] == job_id]


def test_a_run_that_completes_is_told_and_recorded(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ending, row = keep(runs_dir, "--then", "complete")
    assert (ending.state, ending.exit_code) == ("completed", 0)
    assert (row.state, row.exit_code, row.reason) == ("completed", 0, "completed")
    assert row.started_at is not None
    assert row.ended_at is not None
    assert states(runs_dir, row.job_id) == ["submitted", "starting", "running", "completed"]
    assert not launch_lock(runs_dir, row.job_id).exists()
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line for line in lines if line.startswith("the trainer")] == [
        f"the trainer prints step {n}" for n in (1, 2, 3)
    ]
    assert "trn: completed at step 3 (exit 0)" in lines
    assert "     best   val_loss 2.25 (step 3)" in lines
    assert "       Once upon a time" in lines
    assert f"     folder {runs_dir / 'demo'}" in lines


def test_a_run_that_waited_for_its_data_is_told_so_at_its_end(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(runs_dir, "--then", "complete", "--steps", "30", "--wait-ms", "12")
    lines = capsys.readouterr().err.splitlines()
    said = "60% of the last 30 steps was waiting for rows; see dataset.readahead, workers, cache (docs/data.md)"
    assert f"     data   {said}" in lines
    assert "60% waiting for data" in next(line for line in lines if line.startswith("step 30/30"))


def test_the_childs_output_is_kept_and_shown_to_the_last_byte(runs_dir: Path) -> None:
    row = row_of(runs_dir, "demo")
    with open_store(runs_dir) as store:
        ending = open_door(store, row, [sys.executable, "-c", "print('no newline', end='')"])
    assert ending.reason == "the runner exited with 0 without an outcome"
    assert ending.exit_code == 71
    assert job_log(runs_dir, row).read_text() == "no newline"


def test_a_refusal_shows_its_lines_and_leaves_nothing_of_the_run(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ending, row = keep(runs_dir, "--then", "refuse")
    said = "plan error [plan_refused] at seed: no such thing."
    assert ending == Ending("rejected", 78, said)
    assert (row.state, row.exit_code, row.reason) == ("rejected", 78, said)
    assert said in capsys.readouterr().err.splitlines()
    assert left(runs_dir) == set()


@pytest.mark.parametrize("then", ["die", "early-die", "exit=1", "exit=0"])
def test_a_runner_that_dies_is_crashed_in_row_folder_and_exit(runs_dir: Path, then: str) -> None:
    ending, row = keep(runs_dir, "--then", then)
    assert (ending.state, ending.exit_code, row.state, row.exit_code) == ("crashed", 71, "crashed", 71)
    outcome = outcome_of(runs_dir / "demo", row.job_id)
    assert outcome == ending.outcome
    events = list(read_lines(runs_dir / "demo" / "reports" / "events.jsonl"))
    assert [event["event"] for event in events if "outcome" in event] == ["failed"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


def test_a_runner_that_dies_before_it_has_a_folder_keeps_its_output(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ending, row = keep(runs_dir, "--then", "silent-die")
    assert (ending.state, ending.exit_code, ending.outcome) == ("crashed", 71, None)
    assert not (runs_dir / "demo").exists()
    assert str(job_log(runs_dir, row)) in capsys.readouterr().err


def test_the_log_of_a_rank_lost_before_the_run_began_is_kept(runs_dir: Path) -> None:
    row = row_of(runs_dir, "demo")
    with open_store(runs_dir) as store:
        ending = open_door(store, row, [sys.executable, "-c", "print('no place to meet'); raise SystemExit(87)"])
    assert (ending.state, ending.exit_code, ending.outcome) == ("rank_lost", 87, None)
    assert job_log(runs_dir, row).read_text() == "no place to meet\n"


OUTLIVED = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, *sys.argv[1:]], start_new_session=True)
while not os.path.exists(os.path.join(sys.argv[sys.argv.index("--run-dir") + 1], "reports", "train_metrics.jsonl")):
    time.sleep(0.01)
os.kill(os.getpid(), 9)
"""


def test_a_run_that_outlives_its_launcher_ends_as_it_says(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trn.jobs.ending._LOCK_WAIT_S", 0.0)
    row = row_of(runs_dir, "demo")
    with open_store(runs_dir) as store:
        ending = open_door(store, row, [sys.executable, "-c", OUTLIVED, *argv("--then", "wait")[1:]])
        found = store.get(row.job_id)
    assert found is not None
    assert (ending.state, ending.exit_code, ending.is_lost, found.state) == ("preempted", 75, False, "preempted")
    said = capsys.readouterr().err.splitlines()
    assert said.count("trn: what started the run is gone; waiting for the run to end") == 1


def test_a_run_that_is_held_for_ever_is_not_begun_anew(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trn.jobs.ending._LOCK_WAIT_S", 0.0)
    monkeypatch.setattr("trn.doors.foreground._OUTLIVED_S", 0.1)
    row = row_of(runs_dir, "demo")
    with open_store(runs_dir) as store:
        ending = open_door(store, row, [sys.executable, "-c", OUTLIVED, *argv("--then", "lock")[1:]])
    holder = files.is_locked(runs_dir / "demo" / ".lock")
    assert holder is not None
    os.kill(int(holder.split()[0].removeprefix("pid=")), signal.SIGKILL)
    assert (ending.state, ending.is_lost) == ("crashed", False)


def test_a_resume_is_a_second_job_of_the_run(runs_dir: Path) -> None:
    _, first = keep(runs_dir, "--then", "die")
    ending, second = keep(runs_dir, "--then", "complete", "--from-step", "3")
    assert ending.state == "completed"
    assert outcome_of(runs_dir / "demo", "") == ending.outcome
    with open_store(runs_dir) as store:
        assert [row.state for row in store.of_run("demo")] == ["crashed", "completed"]
    assert first.job_id != second.job_id


def test_another_jobs_news_are_not_taken_for_ours(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = row_of(runs_dir, "demo")
    publish(runs_dir / "demo", other.job_id).release()
    Job(runs_dir / "demo", other.job_id).begin(5, 0)
    row = row_of(runs_dir, "demo")
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from support.kept import left
from support.stand_in import Job
Job(Path({str(runs_dir / "demo")!r}), {other.job_id!r}).train(2)
sys.exit(78)
"""
    capsys.readouterr()
    with open_store(runs_dir) as store:
        assert open_door(store, row, [sys.executable, "-c", code]).state == "rejected"
    assert states(runs_dir, row.job_id) == ["submitted", "starting", "rejected"]
    assert "checkpoint" not in capsys.readouterr().err


def test_a_store_that_fails_on_the_way_does_not_end_the_run(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = row_of(runs_dir, "demo")
    with open_store(runs_dir) as store:
        store.add(row_of(runs_dir, "first"))
        files.set_fault("op=write,n=2,do=enospc,path=index.jsonl")
        try:
            ending = open_door(store, row, argv("--then", "complete"))
        finally:
            files.set_fault(None)
        assert ending.exit_code == 0
        found = store.get(row.job_id)
    assert found is not None
    assert found.state == "completed"
    assert "No space left on device" in capsys.readouterr().err


def test_a_job_that_cannot_be_recorded_is_not_started(runs_dir: Path) -> None:
    files.set_fault("op=write,n=1,do=enospc,path=index.jsonl")
    try:
        with open_store(runs_dir) as store, pytest.raises(StorageError, match="Free some space"):
            open_door(store, row_of(runs_dir, "demo"), argv("--then", "complete"))
    finally:
        files.set_fault(None)
    assert not (runs_dir / "demo").exists()
    assert list((runs_dir / ".trn" / "launch").iterdir()) == []


# Doors in processes of their own


def wait_for_run(runs_dir: Path) -> None:
    metrics = runs_dir / "demo" / "reports" / "train_metrics.jsonl"
    until(lambda: metrics.exists() and len(metrics.read_bytes().splitlines()) == 3)


def only_row(runs_dir: Path) -> JobRow:
    with open_store(runs_dir) as store:
        (row,) = store.list()
    return row


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "exit_code", "state"),
    [
        (signal.SIGTERM, 75, "preempted"),
        (signal.SIGHUP, 75, "preempted"),
        (signal.SIGUSR1, 75, "preempted"),
        (signal.SIGINT, 92, "cancelled"),
    ],
)
def test_a_signal_is_passed_on_once_and_the_childs_ending_returned(
    runs_dir: Path, number: signal.Signals, exit_code: int, state: str
) -> None:
    door = start_door(runs_dir, "demo", argv("--then", "wait"))
    wait_for_run(runs_dir)
    door.send_signal(number)
    out, _ = door.communicate(timeout=30)
    assert door.returncode == exit_code
    assert json.loads(out)["state"] == state
    outcome = outcome_of(runs_dir / "demo", "")
    assert outcome is not None
    assert (outcome.status, outcome.reason) == (state, number.name)
    assert only_row(runs_dir).state == state


@pytest.mark.slow
def test_a_second_interrupt_is_passed_on_too(runs_dir: Path) -> None:
    door = start_door(runs_dir, "demo", argv("--then", "wait-twice"))
    wait_for_run(runs_dir)
    door.send_signal(signal.SIGINT)
    # two pending signals of one kind are one: the second goes out when the first was taken
    log = job_log(runs_dir, only_row(runs_dir))
    until(lambda: "received" in log.read_text())
    door.send_signal(signal.SIGINT)
    assert door.communicate(timeout=30)
    assert door.returncode == 92
    outcome = outcome_of(runs_dir / "demo", "")
    assert outcome is not None
    assert outcome.reason == "SIGINT,SIGINT"


def _caught(pid: int, number: signal.Signals) -> int:
    """Whether the signal is still pending for the process."""
    status = Path(f"/proc/{pid}/status").read_text()
    pending = next(line for line in status.splitlines() if line.startswith("ShdPnd:")).split()[1]
    return int(pending, 16) >> (number - 1) & 1


@pytest.mark.slow
def test_an_ignored_hangup_stays_ignored(runs_dir: Path) -> None:
    nohup = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]
    script = str(Path(__file__).parents[1] / "support" / "door.py")
    command = [*nohup, sys.executable, script, str(runs_dir), "demo", *argv("--then", "wait")]
    door = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_run(runs_dir)
    door.send_signal(signal.SIGHUP)
    until(lambda: _caught(door.pid, signal.SIGHUP) == 0)
    door.send_signal(signal.SIGTERM)
    assert door.wait(30) == 75
    outcome = outcome_of(runs_dir / "demo", "")
    assert outcome is not None
    assert outcome.reason == "SIGTERM"


@pytest.mark.slow
def test_a_killed_door_leaves_a_run_that_ends_as_preempted(runs_dir: Path) -> None:
    door = start_door(runs_dir, "demo", argv("--then", "wait"))
    wait_for_run(runs_dir)
    until(lambda: only_row(runs_dir).state == "running")
    os.kill(door.pid, signal.SIGKILL)
    door.communicate()
    row = only_row(runs_dir)
    until(lambda: observe(row, runs_dir).state == "preempted")
    assert observe(row, runs_dir).reason == "the door is gone"
    assert only_row(runs_dir).state == "running"
    ending, _ = keep(runs_dir, "--then", "complete", "--from-step", "3")
    assert ending.state == "completed"


@pytest.mark.slow
def test_a_door_and_a_runner_killed_together_leave_a_lost_job(runs_dir: Path) -> None:
    door = start_door(runs_dir, "demo", argv("--then", "lock"))
    wait_for_run(runs_dir)
    until(lambda: only_row(runs_dir).state == "running")
    row = only_row(runs_dir)
    assert observe(row, runs_dir).state == "running"
    assert row.pid is not None
    os.kill(door.pid, signal.SIGKILL)
    door.communicate()
    assert observe(row, runs_dir).state == "running"
    os.kill(row.pid, signal.SIGKILL)
    until(lambda: observe(row, runs_dir).state == "lost")


@pytest.mark.slow
def test_a_closed_stderr_does_not_end_the_run(runs_dir: Path) -> None:
    door = start_door(runs_dir, "demo", argv("--then", "wait"))
    assert door.stderr is not None
    door.stderr.close()
    wait_for_run(runs_dir)
    until(lambda: only_row(runs_dir).state == "running")
    door.send_signal(signal.SIGTERM)
    assert door.wait(30) == 75
    assert only_row(runs_dir).state == "preempted"


def door_in_a_terminal(runs_dir: Path) -> tuple[int, int]:
    """A door on a terminal of its own, without the standard output; its process id and the terminal's other end."""
    script = str(Path(__file__).parents[1] / "support" / "door.py")
    command = ["sh", "-c", 'exec "$@" > /dev/null', "sh", sys.executable, script, str(runs_dir), "demo"]
    pid, terminal = pty.fork()
    if pid == 0:  # a fork of the test process: nothing here but exec
        os.execv("/bin/sh", [*command, *argv("--then", "wait")])
    return pid, terminal


@pytest.mark.slow
def test_a_terminal_that_goes_away_stops_the_run_with_a_checkpoint(runs_dir: Path) -> None:
    """A real terminal: its hang-up reaches the door, which passes it on and finishes without it."""
    pid, terminal = door_in_a_terminal(runs_dir)
    wait_for_run(runs_dir)
    shown = b""
    while b"step 3/3" not in shown:
        shown += os.read(terminal, 65536)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75
    outcome = outcome_of(runs_dir / "demo", "")
    assert outcome is not None
    assert outcome.reason == "SIGHUP"
    assert only_row(runs_dir).state == "preempted"


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_the_child_once(runs_dir: Path) -> None:
    pid, terminal = door_in_a_terminal(runs_dir)
    wait_for_run(runs_dir)
    os.write(terminal, b"\x03")
    status: list[int] = []

    def has_ended() -> bool:
        ended, code = os.waitpid(pid, os.WNOHANG)
        status.append(code)
        return ended != 0

    until(has_ended)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status[-1]) == 92
    outcome = outcome_of(runs_dir / "demo", "")
    assert outcome is not None
    assert outcome.reason == "SIGINT"


def test_a_signal_before_the_child_is_there_reaches_it(runs_dir: Path) -> None:
    from trn.doors.forwarding import Signals
    from trn.launch import Handle

    class Recorder(Handle):
        def __init__(self) -> None:
            self.sent: list[int] = []

        def poll(self) -> int | None:
            return None

        def wait(self, timeout_s: float) -> int | None:
            return None

        def signal(self, number: int) -> None:
            self.sent.append(number)

        def failure(self) -> tuple[int, str] | None:
            return None

    signals, child = Signals(), Recorder()
    signals.handle(signal.SIGTERM, None)
    signals.attach(child.signal)
    signals.handle(signal.SIGINT, None)
    assert child.sent == signals.received == [signal.SIGTERM, signal.SIGINT]


def test_the_command_line_of_a_stand_in_is_filled(runs_dir: Path) -> None:
    row: Any = row_of(runs_dir, "demo")
    assert filled(["{job}", "{run_dir}/x"], row) == [row.job_id, f"{row.run_dir}/x"]
