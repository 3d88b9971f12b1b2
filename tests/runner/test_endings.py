"""Every way a job can end, with real processes: the outcome, the exit code and the folder tell the same truth."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.compare import assert_identical, events, lines, outcome
from support.forkserver import ForkServer
from support.job import command, write_job
from support.processes import alive
from trn.files import is_locked
from trn.records import ENDINGS, read_json

pytestmark = pytest.mark.slow


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def journal_reaches(run_dir: Path, count: int) -> Callable[[], bool]:
    path = run_dir / "reports/train_metrics.jsonl"
    return lambda: path.exists() and path.read_bytes().count(b"\n") >= count


def change(spec: Path, old: str, new: str) -> None:
    text = spec.read_text()
    assert old in text
    spec.write_text(text.replace(old, new))


def only_ending(run_dir: Path, job_id: str) -> dict[str, object]:
    found = [one for one in events(run_dir) if one["event"] in ENDINGS and one["job_id"] == job_id]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("number", "word", "code"),
    [
        (signal.SIGTERM, "preempted", 75),
        (signal.SIGHUP, "preempted", 75),
        (signal.SIGUSR1, "preempted", 75),
        (signal.SIGINT, "cancelled", 92),
    ],
)
def test_a_signal_finishes_the_step_saves_and_resumes_identically(
    server: ForkServer, tmp_path: Path, number: signal.Signals, word: str, code: int
) -> None:
    spec, log, run_dir = write_job(tmp_path / "job", max_steps=400), tmp_path / "log", tmp_path / "run"
    assert server.run(command(spec, tmp_path, "oracle"), log) == 0, log.read_text()
    pid = server.start(command(spec, tmp_path, "run"), log)
    wait_for(journal_reaches(run_dir, 33))
    os.kill(pid, number)
    assert server.wait(pid) == code, log.read_text()
    ended = outcome(run_dir)
    assert (ended["status"], ended["exit_code"], ended["resumable"]) == (word, code, True)
    assert ended["step"] == len(lines(run_dir, "train_metrics.jsonl")) == ended["checkpoint"]["step"] < 400
    assert number.name in ended["reason"]
    assert only_ending(run_dir, ended["job_id"])["outcome"] == word
    assert server.run(command(spec, tmp_path, "run", "--resume"), log) == 0, log.read_text()
    assert_identical(run_dir, tmp_path / "oracle")
    assert (run_dir / f"reports/outcomes/{ended['job_id']}.json").is_file()
    assert [job["resume"] for job in read_json(run_dir / "reports/run_meta.json")["jobs"]] == [False, True]


def test_a_second_sigint_ends_at_once(server: ForkServer, tmp_path: Path) -> None:
    spec, log, run_dir = write_job(tmp_path / "job"), tmp_path / "log", tmp_path / "run"
    trainer, within = spec.parent / "noisy.py", tmp_path / "within"
    trainer.write_text(
        trainer.read_text().replace(
            "error = model", f"import time; open({str(within)!r}, 'w'); time.sleep(60)\n        error = model"
        )
    )
    pid = server.start(command(spec, tmp_path, "run"), log)
    wait_for(within.exists)
    began_s = time.monotonic()
    os.kill(pid, signal.SIGINT)
    for pause_s in (0.3, 1.0, 3.0):  # on a machine that stands still meanwhile, two are one to the process
        time.sleep(pause_s)
        if not alive(pid):
            break
        os.kill(pid, signal.SIGINT)
    assert server.wait(pid) == 92, log.read_text()
    assert time.monotonic() - began_s < 40
    assert outcome(run_dir)["status"] == "cancelled"
    assert "second SIGINT" in outcome(run_dir)["reason"]


DOOR = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "trn.runner", *sys.argv[1:], "--door-pid", str(os.getpid())],
                         start_new_session=True)
child.wait()
"""


def test_a_runner_that_loses_its_door_saves_and_can_be_resumed(server: ForkServer, tmp_path: Path) -> None:
    spec, log, run_dir = write_job(tmp_path / "job", max_steps=2000), tmp_path / "log", tmp_path / "run"
    environ = {**os.environ, "PYTHONHASHSEED": "0"}  # as the other jobs of this run
    door = subprocess.Popen([sys.executable, "-c", DOOR, *command(spec, tmp_path, "run")], env=environ)
    wait_for(journal_reaches(run_dir, 20))
    door.kill()
    door.wait()
    wait_for((run_dir / "reports/outcome.json").exists)
    ended = outcome(run_dir)
    assert (ended["status"], ended["exit_code"]) == ("preempted", 75)
    assert "is gone" in ended["reason"]
    assert ended["checkpoint"]["step"] == ended["step"] >= 20
    wait_for(lambda: is_locked(run_dir / ".lock") is None)
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()


def test_a_time_limit_saves_and_says_so(server: ForkServer, tmp_path: Path) -> None:
    spec, log, run_dir = write_job(tmp_path / "job", max_steps=100_000), tmp_path / "log", tmp_path / "run"
    change(spec, "seed: 42", "seed: 42\nlimits: {max_runtime_seconds: 0.5}")
    assert server.run(command(spec, tmp_path, "run"), log) == 93, log.read_text()
    ended = outcome(run_dir)
    assert ended["status"] == "time_limit"
    assert ended["checkpoint"]["step"] == ended["step"] > 0


def test_a_stop_in_the_middle_of_an_evaluation_is_made_good_on_resume(server: ForkServer, tmp_path: Path) -> None:
    spec, log, run_dir = write_job(tmp_path / "job", max_steps=60), tmp_path / "log", tmp_path / "run"
    trainer = spec.parent / "noisy.py"
    slow = """
    def evaluate(self, batches, state, ctx):
        def slowed():
            slept = ctx.run_dir / "slept"
            for number, batch in enumerate(batches):
                if number == 2 and ctx.step == 60 and ctx.run_dir.name == "run" and not slept.exists():
                    slept.touch()
                    import time
                    while not ctx.cancelled():
                        time.sleep(0.001)
                yield batch
        return super().evaluate(slowed(), state, ctx)
"""
    trainer.write_text(trainer.read_text() + slow)
    assert server.run(command(spec, tmp_path, "oracle"), log) == 0, log.read_text()
    pid = server.start(command(spec, tmp_path, "run"), log)
    wait_for(lambda: (run_dir / "slept").exists())
    os.kill(pid, signal.SIGTERM)
    assert server.wait(pid) == 75, log.read_text()
    assert outcome(run_dir)["step"] == 60
    assert [line["step"] for line in lines(run_dir, "val_metrics.jsonl")] == [25, 40, 50]
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    assert lines(run_dir, "val_metrics.jsonl") == lines(tmp_path / "oracle", "val_metrics.jsonl")
    assert outcome(run_dir)["best"] == outcome(tmp_path / "oracle")["best"]
    assert (run_dir / "checkpoints/best.meta.json").exists()


def test_a_loss_that_is_not_finite_ends_the_run_before_the_update(server: ForkServer, tmp_path: Path) -> None:
    spec, log, run_dir = write_job(tmp_path / "job"), tmp_path / "log", tmp_path / "run"
    trainer = spec.parent / "noisy.py"
    trainer.write_text(
        trainer.read_text().replace(
            "        self.rows =", '        if ctx.step == 30:\n            x[3] = float("nan")\n        self.rows ='
        )
    )
    assert server.run(command(spec, tmp_path, "run"), log) == 80, log.read_text()
    ended = outcome(run_dir)
    assert (ended["status"], ended["step"], ended["checkpoint"]["step"]) == ("numerical_instability", 29, 25)
    assert [line["step"] for line in lines(run_dir, "train_metrics.jsonl")] == list(range(1, 30))
    gate = events(run_dir, "gate")[-1]
    assert (gate["step"], gate["field"], gate["value"], len(gate["row_ids"])) == (30, "train_loss", "nan", 8)
    assert b"NaN" not in (run_dir / "reports/events.jsonl").read_bytes()
    assert log.read_text().count("step 30: train_loss is nan") == 1


def test_a_trainer_that_raises_is_named_with_its_traceback_in_the_log(server: ForkServer, tmp_path: Path) -> None:
    spec, log, run_dir = write_job(tmp_path / "job"), tmp_path / "log", tmp_path / "run"
    trainer = spec.parent / "noisy.py"
    trainer.write_text(
        trainer.read_text().replace("error = model", "assert self.rows < 0, 'no such rows'\n        error = model")
    )
    assert server.run(command(spec, tmp_path, "run"), log) == 70
    assert outcome(run_dir)["reason"].endswith("AssertionError: no such rows")
    assert "noisy.py" in log.read_text()
    assert "Traceback" in log.read_text()


def test_a_run_killed_in_the_runner_has_no_outcome_and_an_unfinished_job(server: ForkServer, tmp_path: Path) -> None:
    spec, log, run_dir = write_job(tmp_path / "job", max_steps=5000), tmp_path / "log", tmp_path / "run"
    pid = server.start(command(spec, tmp_path, "run"), log)
    wait_for(journal_reaches(run_dir, 10))
    os.kill(pid, signal.SIGKILL)
    assert server.wait(pid) == -signal.SIGKILL
    assert not (run_dir / "reports/outcome.json").exists()
    assert not [one for one in events(run_dir) if one["event"] in ENDINGS]
