"""A script with a loop of its own, killed, stopped and started again: the run that nobody interrupted is the oracle."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from support.compare import assert_identical, events, lines, outcome
from support.forkserver import ForkServer
from support.own_loop import write_own_loop
from trn.verify import verify_run


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_own_loop(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def oracle(server: ForkServer, script: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs_dir = tmp_path_factory.mktemp("oracle")
    pid = start(server, script, runs_dir, "oracle")
    assert server.wait(pid) == 0, (runs_dir / "log").read_text()
    return runs_dir / "oracle"


def start(server: ForkServer, script: Path, runs_dir: Path, run_id: str, *sets: str) -> int:
    return server.start([str(runs_dir), run_id, *sets], runs_dir / "log", cwd=script.parent, script=script)


def until_step(run_dir: Path, step: int) -> None:
    """Until the metrics have so many lines, or the run has ended."""
    path, deadline = run_dir / "reports/train_metrics.jsonl", time.monotonic() + 60
    while not path.is_file() or path.read_bytes().count(b"\n") < step:
        if (run_dir / "reports/outcome.json").is_file():
            return
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.001)


def contents(run_dir: Path) -> dict[str, bytes]:
    """All but the note of whoever had the lock last."""
    found = {str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    found.pop(".lock")
    return found


@pytest.mark.slow
def test_killed_at_random_steps_and_resumed_it_is_bit_for_bit_the_same(
    server: ForkServer, script: Path, oracle: Path, tmp_path: Path
) -> None:
    draws = random.Random(7)
    for trial in range(4):
        run_dir, reached = tmp_path / f"run-{trial}", 0
        while reached < 100:
            pid = start(server, script, tmp_path, run_dir.name)
            reached += draws.randrange(1, 60)
            until_step(run_dir, reached)
            os.kill(pid, signal.SIGKILL)
            server.wait(pid)
        assert server.wait(start(server, script, tmp_path, run_dir.name)) == 0, (tmp_path / "log").read_text()
        assert_identical(run_dir, oracle)
        assert outcome(run_dir)["exact"] is True
        assert [one.problem for one in verify_run(run_dir) if one.problem] == []


def test_sigterm_saves_and_ends_as_preempted_and_the_resume_is_exact(
    server: ForkServer, script: Path, oracle: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "stopped"
    pid = start(server, script, tmp_path, "stopped")
    until_step(run_dir, 33)
    os.kill(pid, signal.SIGTERM)
    assert server.wait(pid) == 75
    told = outcome(run_dir)
    assert (told["status"], told["reason"], told["resumable"]) == ("preempted", "SIGTERM was received", True)
    assert told["checkpoint"]["step"] == told["step"] >= 33
    assert server.wait(start(server, script, tmp_path, "stopped")) == 0
    assert_identical(run_dir, oracle)
    assert [one["from_step"] for one in events(run_dir, "resumed")] == [told["step"]]


def test_another_code_is_refused_and_nothing_of_the_run_is_changed(
    server: ForkServer, script: Path, tmp_path: Path
) -> None:
    other = write_own_loop(tmp_path / "code")
    assert server.wait(start(server, other, tmp_path, "run", "max_steps=20")) == 0
    before = contents(tmp_path / "run")
    other.write_text(other.read_text().replace("0.2)", "0.3)"))
    assert server.wait(start(server, other, tmp_path, "run", "max_steps=20")) == 1
    assert "trainer.code_sha256: the run has" in (tmp_path / "log").read_text()
    assert contents(tmp_path / "run") == before


def test_a_second_process_on_the_run_is_refused(server: ForkServer, script: Path, tmp_path: Path) -> None:
    pid = start(server, script, tmp_path, "run", "max_steps=4000")
    try:
        until_step(tmp_path / "run", 1)
        log = tmp_path / "second.log"
        second = server.start([str(tmp_path), "run", "max_steps=4000"], log, cwd=script.parent, script=script)
        assert server.wait(second) == 1
        assert "another process is running it" in log.read_text()
    finally:
        os.kill(pid, signal.SIGKILL)
        server.wait(pid)
    assert len(lines(tmp_path / "run", "train_metrics.jsonl")) >= 1
