"""A door that has its run's events sent, and the verb `relay`, with real processes and a stand-in for the runner."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.door import filled, row_of
from support.sending import ToyRun, free_port, lines_of, wait_for
from support.stand_in import argv
from trn.doors import relaying
from trn.doors.cli import main
from trn.doors.foreground import run_in_foreground
from trn.doors.progress import display_for
from trn.doors.watch import Watch
from trn.files import Lock, make_folder, write_atomic
from trn.jobs import job_log, open_store
from trn.jobs.ending import Ending
from trn.launch import LocalLauncher
from trn.records import canonical_json


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def with_targets(runs_dir: Path, *targets: str) -> None:
    """A published run, whose plan names targets."""
    for name in ("reports", "checkpoints", "samples"):
        make_folder(runs_dir / "demo" / name)
    write_atomic(runs_dir / "demo/reports/resolved_config.json", canonical_json({"events": list(targets)}))


def keep(
    runs_dir: Path, *arguments: str, before_waiting: Callable[[Watch], object] = lambda watch: None
) -> tuple[Ending, Watch]:
    """Run one stand-in to its end and wait for what sends, as `trn run` does."""
    row = row_of(runs_dir, "demo")
    with open_store(runs_dir) as store:
        watch = Watch(store, row, display_for(sys.stderr))
        ending = run_in_foreground(watch, LocalLauncher(), filled(argv(*arguments), row))
    before_waiting(watch)
    watch.relaying.wait(watch.say, is_asked_to_stop=False)
    return ending, watch


@pytest.mark.parametrize("then", ["complete", "die"])
def test_all_events_are_sent_also_the_one_that_the_door_writes(runs_dir: Path, tmp_path: Path, then: str) -> None:
    with_targets(runs_dir, f"file:{tmp_path}/out.jsonl")
    ending, _ = keep(runs_dir, "--then", then)
    events = lines_of(tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (runs_dir / "demo/reports/events.jsonl").read_bytes()
    assert events[-1]["exit_code"] == ending.exit_code == (0 if then == "complete" else 71)


def test_the_doors_own_output_gets_the_events_as_lines(runs_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with_targets(runs_dir, "-")
    keep(runs_dir, "--then", "complete")
    assert capfd.readouterr().out.encode() == (runs_dir / "demo/reports/events.jsonl").read_bytes()


@pytest.mark.slow
def test_a_target_that_is_not_there_holds_nobody_longer_than_its_time(
    runs_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "_LONGEST_S", 1.5)
    url = f"redis://127.0.0.1:{free_port()}/0"
    with_targets(runs_dir, url, f"file:{tmp_path}/out.jsonl")
    began: list[float] = []

    def wait_for_the_other(watch: Watch) -> None:
        """The time is not for the start of what sends, which takes its own where others are at work."""
        log, journal = job_log(runs_dir, watch.row), runs_dir / "demo/reports/events.jsonl"
        out = tmp_path / "out.jsonl"
        wait_for(lambda: "does not take events" in log.read_text(), "the failure")
        wait_for(lambda: out.exists() and out.read_bytes() == journal.read_bytes(), "the events")
        began.append(time.monotonic())

    ending, watch = keep(runs_dir, "--then", "complete", before_waiting=wait_for_the_other)
    assert time.monotonic() - began[0] < 10
    process = watch.relaying._process
    assert process is not None
    process.kill()
    process.wait(10)
    assert ending.exit_code == 0
    told = capsys.readouterr().err.splitlines()
    count = len(lines_of(tmp_path / "out.jsonl"))
    assert told[-1].startswith(f"trn: {url}: {count} not delivered, of events (")
    assert told[-1].endswith(f"deliver with: trn relay {runs_dir}/demo --to {url}")
    log = job_log(runs_dir, watch.row).read_text()
    assert log.count("does not take events") == 1


def test_what_sends_and_cannot_be_started_or_fails_at_once_is_told(
    runs_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = f"file:{tmp_path}/out.jsonl"
    with_targets(runs_dir, target, "-")
    for program in (["/no/such/program"], [sys.executable, "-c", "raise SystemExit(1)"]):
        monkeypatch.setattr(relaying, "module", lambda name, program=program: program)
        ending, watch = keep(runs_dir, "--then", "complete")
        assert ending.exit_code == 0
        log = job_log(runs_dir, watch.row)
        told = capsys.readouterr().err.splitlines()
        hint = f"deliver with: trn relay {runs_dir}/demo --to {target}"
        assert told[-1] == f"trn: {target}: what sends ended too soon, see {log}; {hint}"


def test_a_run_without_targets_starts_nothing(runs_dir: Path) -> None:
    ending, watch = keep(runs_dir, "--then", "complete")
    assert ending.exit_code == 0
    assert watch.relaying._process is None
    assert not (runs_dir / ".trn/sinks").exists()


# the verb


class Sent:
    """`trn relay` in a process of its own: its exit status, and what it wrote."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "trn", "relay", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        self.status, self.out, self.told = done.returncode, done.stdout, done.stderr


def test_relay_brings_a_target_up_to_date(runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ToyRun(runs_dir)
    run.emit(5)
    monkeypatch.chdir(tmp_path)
    for more in (0, 3):
        run.emit(more)
        sent = Sent(str(run.dir), "--to", "file:out.jsonl")
        assert (sent.status, sent.out) == (0, "")
        assert sent.told == f"trn: file:{tmp_path}/out.jsonl has everything of run exp01\n"
        assert (tmp_path / "out.jsonl").read_bytes() == run.events_file.read_bytes()
    assert Sent(str(run.dir), "--to", "-").out.encode() == run.events_file.read_bytes()


def test_relay_says_what_a_target_did_not_take(runs_dir: Path, tmp_path: Path) -> None:
    run = ToyRun(runs_dir)
    run.emit(5)
    sent = Sent(str(run.dir), "--to", f"file:{tmp_path}")
    assert sent.status == 94
    assert "5 not delivered, of events (it cannot be opened" in sent.told


def test_relay_never_says_that_a_target_has_what_it_could_not_even_be_opened_for(runs_dir: Path) -> None:
    run = ToyRun(runs_dir)
    run.emit(5)
    for place in (run.events_file, run.reports / "more.jsonl"):
        sent = Sent(str(run.dir), "--to", f"file:{place}")
        assert sent.status == 94
        assert "5 not delivered, of events (it lies among the reports of a run" in sent.told


def test_relay_without_a_target_takes_those_of_the_plan(runs_dir: Path, tmp_path: Path) -> None:
    run = ToyRun(runs_dir, events=[f"file:{tmp_path}/out.jsonl"])
    run.emit(5)
    assert Sent(str(run.dir)).status == 0
    assert (tmp_path / "out.jsonl").read_bytes() == run.events_file.read_bytes()


def test_relay_follows_until_the_job_has_ended(runs_dir: Path, tmp_path: Path) -> None:
    run = ToyRun(runs_dir)
    found: list[Any] = []
    with Lock(run.dir / ".lock"):
        run.emit(5)
        out = tmp_path / "out.jsonl"
        follower = threading.Thread(target=lambda: found.append(Sent(str(run.dir), "--to", f"file:{out}", "--follow")))
        follower.start()
        wait_for(lambda: out.exists() and len(lines_of(out)) == 5, "the events")
        run.emit(5)
        wait_for(lambda: len(lines_of(out)) == 10, "the next events")
    follower.join(20)
    assert found[0].status == 0


def test_relay_refuses_a_secret_in_the_address_and_says_what_to_do(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ToyRun(runs_dir)
    assert main(["relay", str(run.dir), "--to", "redis://:violet@127.0.0.1/0"]) == 2
    told = capsys.readouterr().err
    assert "violet" not in told
    assert "password_env=NAME" in told
    assert main(["relay", str(run.dir)]) == 2
    assert "names no target" in capsys.readouterr().err


def test_status_shows_each_target(runs_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ToyRun(runs_dir)
    run.emit(5)
    Sent(str(run.dir), "--to", f"file:{tmp_path}/out.jsonl", "--to", f"file:{tmp_path}")
    run.emit(2)
    assert main(["status", str(run.dir)]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("events ")]
    assert shown[1] == f"events     file:{tmp_path}/out.jsonl, 5 sent, 2 behind"
    assert shown[0].startswith(f"events     file:{tmp_path}, 0 sent, 7 behind (it cannot be opened")


def test_a_pipe_that_does_not_block_gets_every_line_whole(runs_dir: Path) -> None:
    run = ToyRun(runs_dir)
    run.emit(1500)  # more than a pipe holds
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    command = [sys.executable, "-m", "trn", "relay", str(run.dir), "--to", "-"]
    process = subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    with open(reader, "rb") as stream:
        first = stream.read(1)
        time.sleep(0.3)  # the pipe is full meanwhile
        assert first + stream.read() == run.events_file.read_bytes()
    _, told = process.communicate(timeout=30)
    assert (process.returncode, told) == (0, b"trn: - has everything of run exp01\n")
