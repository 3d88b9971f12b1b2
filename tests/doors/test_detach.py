"""Jobs that nobody stays with: detached ones, with a stand-in for the runner, and what becomes of them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import kept
from support.door import until
from support.job import write_job
from support.kept import enqueue, left, request_of, row_of
from support.processes import alive
from trn.devices import Lease
from trn.doors import keeper
from trn.doors.given import shown_argv
from trn.doors.processes import Processes
from trn.doors.staying import Start
from trn.doors.submitting import asked_to_submit, submit
from trn.errors import StorageError, UsageError
from trn.jobs import OPEN_STATES, job_log, observe, open_store, outcome_of
from trn.jobs.log import job_log_lines
from trn.jobs.request import request_path, write_request
from trn.launch import Layout
from trn.ranks import World
from trn.records import JobRow, read_lines

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    kept.stand_in(monkeypatch, tmp_path)
    return tmp_path / "runs"


def start_of(runs_dir: Path, *then: str, max_restarts: int = 0, nproc: int = 1) -> Start:
    arguments = ["--run-dir", str(runs_dir / "demo"), *(("--then", *then) if then else ())]
    return Start(runs_dir, "demo", arguments, Processes(Layout(nproc), World(), max_restarts), "", 30.0)


def rows(runs_dir: Path) -> list[JobRow]:
    with open_store(runs_dir) as store:
        return list(store.of_run("demo"))


def ended(runs_dir: Path, job_id: str) -> JobRow:
    """The row of a job, once it has ended and nothing of it waits."""
    until(lambda: row_of(runs_dir, job_id).state not in OPEN_STATES, timeout_s=60)
    until(lambda: not request_path(runs_dir, job_id).exists())
    return row_of(runs_dir, job_id)


def test_a_detached_job_is_told_by_its_id_and_ends_by_itself(runs_dir: Path, capsys: Capture) -> None:
    stop = runs_dir.parent / "stop"
    assert submit(start_of(runs_dir, f"until={stop}"), "detach", as_json=False) == 0
    (row,) = rows(runs_dir)
    captured = capsys.readouterr()
    assert captured.out == f"{row.job_id}\n"
    said = f"trn: detached as job {row.job_id}; `trn logs -f demo` follows it, `trn cancel demo` ends it"
    assert captured.err.splitlines()[0] == f"trn: run demo in {runs_dir / 'demo'}"
    assert captured.err.splitlines()[-1] == said
    assert (row.state, observe(row, runs_dir).state) == ("running", "running")
    assert row.pid is not None
    assert os.getsid(row.pid) != os.getsid(0)
    stop.touch()
    row = ended(runs_dir, row.job_id)
    assert (row.state, row.exit_code) == ("completed", 0)
    moves = [line["state"] for line in read_lines(runs_dir / "jobs" / "index.jsonl")]
    assert moves == ["submitted", "starting", "running", "completed"]  # also in a folder that had no store
    first = next(read_lines(job_log_lines(job_log(runs_dir, row))))
    assert (first["event"], first["argv"]) == ("job_submitted", shown_argv())


def test_a_detached_refusal_is_told_here_and_leaves_nothing(runs_dir: Path, capsys: Capture) -> None:
    assert submit(start_of(runs_dir, "refuse"), "detach", as_json=True) == 78
    captured = capsys.readouterr()
    assert "plan error [plan_refused] at seed: no such thing." in captured.err.splitlines()
    assert "trn: refused (exit 78); nothing was changed." in captured.err.splitlines()
    (row,) = rows(runs_dir)
    document = {"job_id": row.job_id, "run_id": "demo", "run_dir": str(runs_dir / "demo"), "state": "rejected"}
    assert json.loads(captured.out) == document
    until(lambda: left(runs_dir) == set())


@pytest.mark.slow
def test_a_detached_job_that_dies_goes_on_in_a_new_one(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("TRN_TEST_THEN", "die-once")
    assert submit(start_of(runs_dir, max_restarts=1), "detach", as_json=True) in (0, 71)
    until(lambda: [row.state for row in rows(runs_dir)] == ["crashed", "completed"])
    until(lambda: not request_path(runs_dir, rows(runs_dir)[0].job_id).exists())


@pytest.mark.slow
@pytest.mark.parametrize(("how", "when"), [("detach", "loading"), ("detach", "planning"), ("queue", "planning")])
def test_ctrl_c_at_a_submission_is_the_jobs(runs_dir: Path, how: str, when: str) -> None:
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from support import kept
from trn.doors import keeper, staying
from trn.doors.processes import Processes
from trn.doors.staying import Start
from trn.doors.submitting import submit
from trn.launch import Layout
from trn.ranks import World
keeper._keeper, staying._runner = kept._keeper, kept._runner
child = "import time; print('planning'); time.sleep(60)"
runs = Path({str(runs_dir)!r})
start = Start(runs, "demo", ["-c", child], Processes(Layout(1), World(), 0), "", 30.0)
sys.exit(submit(start, {how!r}, False))
"""
    script = runs_dir.parent / "plain.py"
    script.write_text("import sys; exec(sys.argv[sys.argv.index('-c') + 1])\n")
    environ = os.environ | {"TRN_TEST_RUNNER": str(script)}
    door = subprocess.Popen([sys.executable, "-c", code], env=environ, stderr=subprocess.PIPE, text=True)
    assert door.stderr is not None
    if when == "loading":  # the keeper is about to be started
        until(lambda: (runs_dir / ".trn" / "queue").is_dir(), timeout_s=30)
    else:
        until(lambda: "planning" in door.stderr.readline())  # type: ignore[union-attr]  # asserted above
    door.send_signal(signal.SIGINT)
    _, told = door.communicate(timeout=30)
    assert door.returncode == 92, told
    assert [row.state for row in rows(runs_dir)] == ["cancelled"]
    until(lambda: left(runs_dir) == set())


def test_a_keeper_that_is_killed_at_once_is_told_and_leaves_no_request(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("TRN_TEST_DIE", "lock")
    assert submit(start_of(runs_dir, "complete"), "detach", as_json=False) == 71
    captured = capsys.readouterr()
    told = "trn: its keeper was ended before it could take the job; nothing was started"
    assert (captured.out, captured.err.splitlines()) == ("", [told])
    assert rows(runs_dir) == []
    assert left(runs_dir) == set()


def test_a_keeper_that_cannot_be_started_is_told_in_one_line(tmp_path: Path) -> None:
    for changes, where in (({"cwd": "/not/there"}, "/not/there"), ({"python": "/not/python"}, "/not/python")):
        request = request_of(tmp_path / "runs", "demo", "complete", **changes)
        with pytest.raises(StorageError, match=f"at {where}: its keeper cannot be started: No such file") as found:
            keeper.start_keeper(tmp_path / "runs", request, Lease(), os.environ)
        assert "\n" not in str(found.value)


def start_keeper(runs_dir: Path, job_id: str, **environ: str) -> int:
    """A keeper run to its end; returns its exit status."""
    command = [*kept._keeper(sys.executable), "--runs-dir", str(runs_dir), "--job-id", job_id]
    return subprocess.run(command, env={**os.environ, **environ}, check=False, timeout=60).returncode


def test_a_run_outlives_its_keeper_and_tells_its_own_ending(runs_dir: Path) -> None:
    stop = runs_dir.parent / "stop"
    request = request_of(runs_dir, "demo", f"until={stop}")
    write_request(runs_dir, request)
    assert start_keeper(runs_dir, request.job_id, TRN_TEST_DIE="child") == -signal.SIGKILL
    until(lambda: observe(row_of(runs_dir, request.job_id), runs_dir).state == "running")
    stop.touch()
    until(lambda: outcome_of(runs_dir / "demo", request.job_id) is not None)
    row = row_of(runs_dir, request.job_id)
    assert row.state in OPEN_STATES
    until(lambda: observe(row, runs_dir).state == "completed")


@pytest.mark.slow
def test_a_keeper_killed_before_it_took_the_job_leaves_it_to_the_next(runs_dir: Path) -> None:
    with open_store(runs_dir) as store:
        row = enqueue(store, "demo", "complete")
    assert start_keeper(runs_dir, row.job_id, TRN_TEST_DIE="lock") == -signal.SIGKILL
    assert observe(row_of(runs_dir, row.job_id), runs_dir).state == "queued"
    assert start_keeper(runs_dir, row.job_id) == 0
    assert ended(runs_dir, row.job_id).state == "completed"


def test_a_job_whose_keeper_was_killed_before_it_started_anything_is_lost_and_not_started_twice(
    runs_dir: Path,
) -> None:
    with open_store(runs_dir) as store:
        row = enqueue(store, "demo", "complete")
    assert start_keeper(runs_dir, row.job_id, TRN_TEST_DIE="row") == -signal.SIGKILL
    assert observe(row_of(runs_dir, row.job_id), runs_dir).state == "lost"
    assert start_keeper(runs_dir, row.job_id) == 0
    assert not (runs_dir / "demo").exists()


def test_a_keeper_leaves_a_cancelled_job_alone(runs_dir: Path) -> None:
    with open_store(runs_dir) as store:
        row = enqueue(store, "demo", "complete")
        store.advance(row.job_id, "cancelled", exit_code=92)
    assert start_keeper(runs_dir, row.job_id) == 0
    assert row_of(runs_dir, row.job_id).state == "cancelled"
    assert left(runs_dir) == set()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"queue": True}, "--detach starts it now"),
        ({"dry_run": True}, "--dry-run prints the plan"),
        ({"launcher": "inline"}, "in this very process"),
        ({"launcher": "slurm"}, "slurm has a queue of its own"),
    ],
)
def test_what_makes_no_sense_together_is_refused_in_one_line(more: dict[str, object], said: str) -> None:
    given = {"detach": True, "queue": more.pop("queue", False)}
    options = {"launcher": "local", **more}
    with pytest.raises(UsageError, match=said) as found:
        asked_to_submit(given, **options)  # type: ignore[arg-type]  # options of a command line
    assert "\n" not in str(found.value)


def test_a_secret_in_the_arguments_is_not_stored(runs_dir: Path) -> None:
    start = start_of(runs_dir, "complete", "--set", "hyperparams.api_key=sk-123456789012345678901234")
    for how in ("detach", "queue"):
        with pytest.raises(UsageError, match=r"hyperparams.api_key=\*\*\* holds what may be a secret"):
            submit(start, how, as_json=False)
    assert not runs_dir.exists()


def test_a_job_over_several_machines_is_not_detached(runs_dir: Path) -> None:
    processes = Processes(Layout(1, 2, 0, "127.0.0.1:1"), World(), 0)
    with pytest.raises(UsageError, match="jobs of one machine"):
        submit(Start(runs_dir, "demo", [], processes, "", 30.0), "detach", as_json=False)


@pytest.mark.slow
def test_a_closed_terminal_does_not_reach_a_detached_job(runs_dir: Path) -> None:
    """The keeper ignores a hang-up, and its runner hears of none."""
    stop = runs_dir.parent / "stop"
    assert submit(start_of(runs_dir, f"until={stop}"), "detach", as_json=False) == 0
    (row,) = rows(runs_dir)
    lock = runs_dir / ".trn" / "launch" / f"{row.job_id}.lock"
    kept_by = int(lock.read_text().split()[0].removeprefix("pid="))
    os.kill(kept_by, signal.SIGHUP)
    stop.touch()
    assert ended(runs_dir, row.job_id).state == "completed"
    until(lambda: not alive(kept_by))
    events = [line["event"] for line in read_lines(runs_dir / "demo" / "reports" / "events.jsonl")]
    assert events.count("job_started") == 1


# With a real training


def trn(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "import sys; from trn.doors.cli import main; sys.exit(main())", *arguments]


def steps(runs_dir: Path) -> list[int]:
    return [line["step"] for line in read_lines(runs_dir / "demo" / "reports" / "train_metrics.jsonl")]


@pytest.mark.slow
def test_a_detached_training_outlives_its_terminal_and_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRN_LEASES_DIR", str(tmp_path / "leases"))
    spec, runs_dir = write_job(tmp_path / "job", max_steps=1000, checkpoint_every=100), tmp_path / "runs"
    pid, terminal = pty.fork()
    if pid == 0:  # a fork of the test process: nothing here but exec
        where = ["--config", str(spec), "--run-id", "demo", "--runs-dir", str(runs_dir)]
        os.execv(sys.executable, trn("run", *where, "--detach"))
    shown = b""
    with contextlib.suppress(OSError):  # so a terminal says that nobody is there any more
        while data := os.read(terminal, 65536):
            shown += data
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown.decode()
    (row,) = rows(runs_dir)
    assert row.job_id in shown.decode()
    until(lambda: len(steps(runs_dir)) > 100, timeout_s=60)
    assert observe(row, runs_dir).state == "running"
    assert row.pid is not None
    os.kill(row.pid, signal.SIGTERM)
    assert ended(runs_dir, row.job_id).state == "preempted"
    done = subprocess.run(
        trn("resume", str(runs_dir / "demo"), "--detach", "--json"), capture_output=True, check=True, timeout=60
    )
    resumed = json.loads(done.stdout)
    assert (resumed["run_id"], resumed["state"]) == ("demo", "running")
    assert ended(runs_dir, resumed["job_id"]).state == "completed"
    assert steps(runs_dir) == list(range(1, 1001))
