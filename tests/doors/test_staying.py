"""A run that goes on in a new job after its processes were lost, as often as it may."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.door import until
from support.stand_in import SCRIPT
from trn.doors import staying
from trn.doors.processes import Processes
from trn.doors.staying import Start, stay_with
from trn.jobs import open_store
from trn.jobs.cancelling import ask_to_cancel
from trn.launch import Layout
from trn.ranks import World
from trn.records import JobRow, cancel_path


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def begin(runs_dir: Path, then: str, monkeypatch: pytest.MonkeyPatch, max_restarts: int, nproc: int = 1) -> int:
    """`stay_with`, with a stand-in for the runner that is told on every start what to do."""
    monkeypatch.setattr(
        staying, "_runner", lambda job_id: [sys.executable, "-u", str(SCRIPT), "--then", then, "--job-id", job_id]
    )
    processes = Processes(Layout(nproc), World(), max_restarts)
    start = Start(runs_dir, "demo", ["--run-dir", str(runs_dir / "demo")], processes, "", 30.0)
    return stay_with(start, "local", True)


def jobs(runs_dir: Path) -> list[JobRow]:
    with open_store(runs_dir) as store:
        return store.of_run("demo")


Capture = pytest.CaptureFixture[str]


def test_a_lost_run_goes_on_in_a_new_job(runs_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert begin(runs_dir, "die-once", monkeypatch, max_restarts=2) == 0
    assert [row.state for row in jobs(runs_dir)] == ["crashed", "completed"]
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert (
        "trn: crashed at step 3 (exit 71): the runner was killed by SIGKILL without an outcome; restart 1 of 2" in lines
    )
    assert lines.count(f"     folder {runs_dir / 'demo'}") == 1  # the summary is of the last job alone
    document: dict[str, Any] = json.loads(captured.out)
    assert (document["job_id"], document["exit_code"]) == (jobs(runs_dir)[1].job_id, 0)


def test_a_job_that_was_lost_while_it_was_asked_to_end_is_not_begun_anew(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancelled_runner(job_id: str) -> list[str]:
        ask_to_cancel(runs_dir, job_id, now=False)
        return [sys.executable, "-u", str(SCRIPT), "--then", "die", "--job-id", job_id]

    monkeypatch.setattr(staying, "_runner", cancelled_runner)
    start = Start(runs_dir, "demo", ["--run-dir", str(runs_dir / "demo")], Processes(Layout(1), World(), 2), "", 30.0)
    assert stay_with(start, "local", True) == 71
    (row,) = jobs(runs_dir)
    assert row.state == "crashed"
    assert not cancel_path(runs_dir, row.job_id).exists()


def test_restarts_come_to_an_end_with_the_last_ones_status(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert begin(runs_dir, "die", monkeypatch, max_restarts=2) == 71
    assert [row.state for row in jobs(runs_dir)] == ["crashed"] * 3


def test_without_being_asked_nothing_is_restarted(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert begin(runs_dir, "die", monkeypatch, max_restarts=0) == 71
    assert [row.state for row in jobs(runs_dir)] == ["crashed"]


@pytest.mark.parametrize(("then", "code"), [("refuse", 78), ("exit=75", 75), ("exit=1", 71), ("complete", 0)])
def test_what_was_no_loss_is_not_repeated(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch, then: str, code: int
) -> None:
    assert begin(runs_dir, then, monkeypatch, max_restarts=3) == code
    assert len(jobs(runs_dir)) == 1


def test_a_runner_killed_before_it_began_is_started_as_it_was(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert begin(runs_dir, "silent-die", monkeypatch, max_restarts=1) == 71
    assert len(jobs(runs_dir)) == 2
    assert not (runs_dir / "demo").exists()


def test_a_run_that_somebody_stops_while_it_dies_is_not_restarted(runs_dir: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from trn.doors import staying
from trn.doors.processes import Processes
from trn.launch import Layout
from trn.ranks import World
runs = Path({str(runs_dir)!r})
child = "import os, signal; signal.signal(15, lambda *_: os.kill(os.getpid(), 9)); print('up'); signal.pause()"
staying._runner = lambda job_id: [sys.executable, "-u", "-c", child]
start = staying.Start(runs, "demo", [], Processes(Layout(1), World(), 3), "", 30.0)
sys.exit(staying.stay_with(start, "local", False))
"""
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as door:
        assert door.stderr is not None
        until(lambda: "up" in door.stderr.readline())  # type: ignore[union-attr]  # asserted above
        door.send_signal(signal.SIGTERM)
    assert door.returncode == 75
    assert len(jobs(runs_dir)) == 1


@pytest.mark.parametrize(("layout", "expected"), [("4", "0 0 4 4"), ("2, 3", "0 0 6 2"), ("1", "None None None None")])
def test_the_plan_foretold_is_that_of_the_whole_world(layout: str, expected: str) -> None:
    code = f"""
import sys
from pathlib import Path
from trn.doors import staying
from trn.doors.processes import Processes
from trn.launch import Layout
from trn.ranks import World
names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"]
child = f"import os; print(*map(os.environ.get, {{names}}))"
staying._runner = lambda job_id: [sys.executable, "-c", child]
staying.Start(Path("runs"), "demo", [], Processes(Layout({layout}), World(), 0), "", 30.0).foretell()
"""
    environ = {name: value for name, value in os.environ.items() if "RANK" not in name and "WORLD_SIZE" not in name}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected.split()


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_run_goes_on(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """By the real torchrun, with a rank 0 that does what the runner does to its folder."""
    assert begin(runs_dir, "die-once", monkeypatch, max_restarts=1, nproc=2) == 0
    rows = jobs(runs_dir)
    assert [(row.state, row.exit_code) for row in rows] == [("rank_lost", 87), ("completed", 0)]
    assert rows[0].reason == "rank 0 was killed by SIGKILL"
    assert "rank_lost at step 3 (exit 87): rank 0 was killed by SIGKILL; restart 1 of 1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_refusal_of_one_rank_is_a_refusal_of_the_job(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert begin(runs_dir, "refuse", monkeypatch, max_restarts=3, nproc=2) == 78
    (row,) = jobs(runs_dir)
    assert (row.state, row.reason) == ("rejected", "plan error [plan_refused] at seed: no such thing.")
    assert "plan error [plan_refused] at seed: no such thing." in capsys.readouterr().err.splitlines()
    assert not (runs_dir / "demo").exists()
    assert not list((runs_dir / "logs").rglob("*.json"))
    assert os.environ.get("RANK") is None
