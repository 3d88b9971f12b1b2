"""Trainers and folders that misbehave: the ending stays true, and nothing outside the run's folder is touched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.compare import events, lines, outcome
from support.forkserver import OPERATIONS, ForkServer
from support.hostile_trainers import HOSTILE_TRAINERS, write_hostile
from support.job import command, write_job
from trn.verify import verify_run

pytestmark = pytest.mark.slow


def insert(spec: Path, code: str) -> None:
    """Let the trainer run `code` at the head of its transform."""
    trainer = spec.parent / "noisy.py"
    marked = "        batch = ctx.tensors(raw_batch)\n"
    assert marked in trainer.read_text()
    trainer.write_text(
        trainer.read_text().replace(marked, "".join(f"        {one}\n" for one in code.split("\n")) + marked)
    )


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(3)",
        "raise KeyboardInterrupt",
        "raise GeneratorExit",
        "raise type('Own', (BaseException,), {})('mine')",
        r"raise ValueError('\udcff')",
    ],
)
def test_whatever_a_hook_raises_is_the_trainers(server: ForkServer, tmp_path: Path, code: str) -> None:
    spec = write_job(tmp_path / "job", max_steps=20)
    insert(spec, code)
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 70, (tmp_path / "log").read_text()
    assert outcome(tmp_path / "run")["status"] == "trainer_raised"


def test_a_secret_in_an_exception_reaches_no_artifact(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_" + "abcdefghijklmnopqrstuvwxyz012345"
    spec = write_job(tmp_path / "job", max_steps=20)
    insert(spec, f"raise ValueError('cannot log in with {secret}')")
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 70
    found = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert found == []


def test_a_thread_that_a_trainer_leaves_does_not_keep_the_process(tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=20)
    insert(spec, "import threading, time\nif ctx.step == 1: threading.Thread(target=time.sleep, args=(600,)).start()")
    run = subprocess.run(
        [sys.executable, "-m", "trn.runner", *command(spec, tmp_path, "run")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "threads of the trainer were still running" in run.stderr


def test_a_forked_child_that_raises_does_not_end_the_run(server: ForkServer, tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=20)
    insert(spec, "import os\nif ctx.step == 5 and os.fork() == 0: raise RuntimeError('in the child')")
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert [event["event"] for event in events(tmp_path / "run") if event["event"] in ("failed", "completed")] == [
        "completed"
    ]
    assert [one for one in verify_run(tmp_path / "run") if one.problem is not None] == []


def test_a_forked_child_dies_of_sigterm(server: ForkServer, tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=20)
    insert(
        spec,
        "import multiprocessing, time\n"
        "if ctx.step == 5:\n"
        "    child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,))\n"
        "    child.start(); child.terminate(); child.join()",
    )
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 0, (tmp_path / "log").read_text()


def test_an_evaluation_that_swallows_the_stop_is_not_recorded(server: ForkServer, tmp_path: Path) -> None:
    spec, run_dir = write_job(tmp_path / "job", max_steps=400), tmp_path / "run"
    trainer = spec.parent / "noisy.py"
    swallowing = """
    def evaluate(self, batches, state, ctx):
        seen = []
        try:
            for batch in batches:
                seen.append(batch)
                (ctx.run_dir / "evaluating").touch()
                end = __import__("time").monotonic() + 20
                while ctx.step == 25 and not ctx.cancelled() and __import__("time").monotonic() < end:
                    pass
        except Exception:
            pass
        return super().evaluate(seen, state, ctx)
"""
    trainer.write_text(trainer.read_text() + swallowing)
    pid = server.start(command(spec, tmp_path, "run"), tmp_path / "log")
    while not (run_dir / "evaluating").exists():
        time.sleep(0.001)
    os.kill(pid, signal.SIGTERM)
    assert server.wait(pid) == 75
    assert lines(run_dir, "val_metrics.jsonl") == []
    assert outcome(run_dir)["step"] == 25


def test_a_budget_below_where_the_run_stands_is_refused(server: ForkServer, tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=100_000)
    spec.write_text(spec.read_text() + "\nlimits: {max_runtime_seconds: 1.5}\n")
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 93
    plan = (tmp_path / "run/reports/resolved_config.json").read_bytes()
    spec.write_text(spec.read_text().replace("max_steps: 100000", "max_steps: 11"))
    resume = command(
        spec, tmp_path, "run", "--resume", "--allow-change", "max_steps", "--set", "schedule.warmup_steps=10"
    )
    assert server.run(resume, tmp_path / "again") == 78, (tmp_path / "again").read_text()
    assert "beyond a budget of 11" in (tmp_path / "again").read_text()
    assert (tmp_path / "run/reports/resolved_config.json").read_bytes() == plan


def test_a_project_that_moved_goes_on_with_its_new_place(server: ForkServer, tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=400)
    pid = server.start(command(spec, tmp_path, "run"), tmp_path / "log")
    while not (tmp_path / "run/checkpoints/last.pt").exists():
        time.sleep(0.001)
    os.kill(pid, signal.SIGTERM)
    assert server.wait(pid) == 75
    shutil.move(spec.parent, tmp_path / "moved")
    resume = command(tmp_path / "moved/spec.yaml", tmp_path, "run", "--resume")
    assert server.run(resume, tmp_path / "again") == 0, (tmp_path / "again").read_text()


@pytest.mark.parametrize("name", HOSTILE_TRAINERS)
def test_what_a_trainer_may_not_give_is_told_in_one_line_and_leaves_nothing_half_written(
    server: ForkServer, tmp_path: Path, name: str
) -> None:
    one, run_dir, log = HOSTILE_TRAINERS[name], tmp_path / "runs/run", tmp_path / "log"
    code = server.run(command(write_hostile(one, tmp_path / "job"), tmp_path / "runs", "run"), log)
    said = [line for line in log.read_text().splitlines() if not line.startswith(OPERATIONS)]
    assert code == one.code, said
    if one.code == 78:
        assert not run_dir.exists()
    else:
        assert outcome(run_dir)["exit_code"] == code
        assert one.says in outcome(run_dir)["reason"]
        assert [line["step"] for line in lines(run_dir, "train_metrics.jsonl")] == list(range(1, one.steps + 1))
        assert [one for one in verify_run(run_dir) if one.problem is not None] == []
        left = {path.name for path in run_dir.rglob(".*")} - {".lock"}
        assert left == set()
    if said:  # of an ending by a gate, the outcome alone tells
        assert len(said) == 1
        assert one.says in said[0]


@pytest.fixture
def stopped(server: ForkServer, tmp_path: Path) -> Path:
    spec = write_job(tmp_path / "job", max_steps=60)
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 0
    (tmp_path / "run/reports/outcome.json").unlink()
    return tmp_path / "run"


@pytest.mark.parametrize(
    "name", [".lock", "reports/events.jsonl", "reports/val_metrics.jsonl", "checkpoints/step-00000060.pt"]
)
@pytest.mark.parametrize("kind", ["symlink", "hardlink", "fifo"])
def test_links_and_pipes_in_a_run_are_refused_and_their_targets_untouched(
    server: ForkServer, stopped: Path, name: str, kind: str
) -> None:
    if kind == "hardlink" and name.endswith(".pt"):
        return  # checkpoints have several names by design
    victim = stopped.parent / "victim"
    victim.write_text("precious, without a newline")
    (stopped / name).unlink()
    if kind == "symlink":
        (stopped / name).symlink_to(victim)
    elif kind == "hardlink":
        os.link(victim, stopped / name)
    else:
        os.mkfifo(stopped / name)
    log = stopped.parent / "resume.log"
    from trn.records import new_job_id

    assert server.run(["--job-id", new_job_id(), "--run-dir", str(stopped)], log) == 78, log.read_text()
    assert victim.read_text() == "precious, without a newline"


def test_a_folder_of_checkpoints_that_is_a_link_is_refused(server: ForkServer, stopped: Path) -> None:
    elsewhere = stopped.parent / "elsewhere"
    shutil.move(stopped / "checkpoints", elsewhere)
    (stopped / "checkpoints").symlink_to(elsewhere)
    before = sorted(os.listdir(elsewhere))
    log = stopped.parent / "resume.log"
    assert server.run(["--job-id", "job-x", "--run-dir", str(stopped)], log) == 78
    assert sorted(os.listdir(elsewhere)) == before
