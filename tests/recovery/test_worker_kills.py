"""Worker processes change no bit of a run, however often it is killed, and none of them outlives it.

TRN_WORKER_KILLS=all kills runs of every kind of remainder with and without workers, instead of some of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.compare import assert_identical, events, outcome
from support.forkserver import ForkServer
from support.heavy import write_heavy
from support.job import command
from trn.records import read_lines

pytestmark = pytest.mark.slow

EVERY = [(workers, remainder) for workers in (0, 2) for remainder in ("carry", "drop", "keep")]
SOME = [(0, "keep"), (2, "carry"), (2, "drop")]
FEW_S = 15.0  # on a machine with other work to do; alone it is 2


def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def workers_of(job: Path) -> list[int]:
    return [int(path.name) for path in (job / "pids").iterdir()]


def straight(server: ForkServer, folder: Path, **job: object) -> Path:
    """The folder of a run without workers that nobody interrupted."""
    spec = write_heavy(folder / "straight", workers=0, **job)  # type: ignore[arg-type]
    log = folder / "log"
    assert server.run(command(spec, folder, "oracle"), log) == 0, log.read_text()
    return folder / "oracle"


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_bit(server: ForkServer, tmp_path: Path, workers: int) -> None:
    oracle = straight(server, tmp_path)
    spec = write_heavy(tmp_path / "job", workers=workers)
    (tmp_path / "job/pids").mkdir()
    log = tmp_path / "log"
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    assert_identical(tmp_path / "run", oracle)
    ran = workers_of(tmp_path / "job")
    assert len(ran) == workers
    assert all(map(is_gone, ran))


SEVEN_HOOKS = """
import random

import numpy as np
import torch
from torch import nn

from trn import StepResult


class Heavy:
    columns = ("x", "y", "word")

    def setup(self, ctx):
        self.scale = 2.0

    def configure(self, ctx):
        model = nn.Linear(4, 1)
        return model, torch.optim.SGD(model.parameters(), lr=0.01)

    def transform(self, raw_batch, ctx):
        x = raw_batch.column("x").flatten().to_numpy().reshape(-1, 4) * self.scale + np.random.normal(0, 0.1)
        words = raw_batch.column("word").to_pylist()
        return {"words": words, "parts": (torch.from_numpy(x), [raw_batch.column("y").to_numpy()], random.random())}

    def prepare_batch(self, batch, state, ctx):
        x, (y,), drawn = batch["parts"]
        return x.to(ctx.device), torch.from_numpy(y.copy()), drawn + len(batch["words"])

    def train_step(self, batch, state, ctx):
        model, optimizer = state
        x, y, drawn = batch
        loss = (model(x).squeeze(1) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return StepResult({"train_loss": loss, "drawn": drawn + float(torch.rand(()))})

    def evaluate(self, batches, state, ctx):
        return {"val_loss": float(sum(len(one) for one in batches))}

    def state_dict(self, state):
        return {"model": state[0].state_dict(), "optimizer": state[1].state_dict()}

    def load_state_dict(self, state, payload, ctx):
        state[0].load_state_dict(payload["model"])
        state[1].load_state_dict(payload["optimizer"])
"""


def test_a_trainer_of_seven_hooks_is_given_what_its_transform_returned(server: ForkServer, tmp_path: Path) -> None:
    for workers, run_id in ((0, "oracle"), (2, "run")):
        spec = write_heavy(tmp_path / run_id / "job", workers=workers)
        (spec.parent / "laden.py").write_text(SEVEN_HOOKS)
        spec.write_text(spec.read_text().replace("optimizer: {lr: 0.01, accumulate: 2}\n", ""))
        log = tmp_path / "log"
        assert server.run(command(spec, tmp_path / "runs", run_id), log) == 0, log.read_text()
    assert_identical(tmp_path / "runs/run", tmp_path / "runs/oracle")


@pytest.mark.parametrize(("workers", "remainder"), EVERY if os.environ.get("TRN_WORKER_KILLS") == "all" else SOME)
def test_a_run_killed_thrice_in_an_epoch_and_stopped_at_its_edges_ends_bit_identical(
    server: ForkServer, tmp_path: Path, workers: int, remainder: str
) -> None:
    """Epochs are of 10 steps; a pass of 10.6, 10 or 11. The second epoch is killed, the third begins with a resume."""
    oracle = straight(server, tmp_path, remainder=remainder, checkpoint_every=1)
    job = tmp_path / "job"
    spec = write_heavy(job, workers=workers, remainder=remainder, checkpoint_every=1)
    log = tmp_path / "log"
    for name, step, code in (
        ("stop_at", 10, 75),
        ("kill_at", 12, -9),
        ("kill_at", 15, -9),
        ("kill_at", 18, -9),
        ("stop_at", 20, 75),
        ("kill_at", 23, -9),
    ):
        (job / name).write_text(str(step))
        assert server.run(command(spec, tmp_path, "run"), log) == code, log.read_text()
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    begun = [event["from_step"] for event in events(tmp_path / "run", "resumed")]
    assert (begun[0], begun[4]) == (10, 20)
    assert all(10 <= step <= 17 for step in begun[1:4])
    assert_identical(tmp_path / "run", oracle)


def test_the_number_of_workers_may_change_at_a_resume(server: ForkServer, tmp_path: Path) -> None:
    oracle = straight(server, tmp_path)
    job, log = tmp_path / "job", tmp_path / "log"
    for workers, step in ((0, 6), (2, 17), (1, 26), (0, None)):
        spec = write_heavy(job, workers=workers)
        if step is not None:
            (job / "kill_at").write_text(str(step))
        code = server.run(command(spec, tmp_path, "run"), log)
        assert code == (0 if step is None else -9), log.read_text()
    assert_identical(tmp_path / "run", oracle)


def test_workers_of_several_ranks_change_no_bit_either(tmp_path: Path) -> None:
    spec = write_heavy(tmp_path / "job", max_steps=25)
    ran = [sys.executable, "-m", "trn.doors.cli", "run", "--config", str(spec), "--runs-dir", str(tmp_path / "runs")]
    (tmp_path / "job/pids").mkdir()
    for workers, run_id in ((0, "oracle"), (1, "run")):
        sets = ["--set", "ddp=true", "--set", f"dataset.workers={workers}", "--nproc", "2", "--run-id", run_id]
        done = subprocess.run([*ran, *sets], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        pids = workers_of(tmp_path / "job")
        assert len(pids) == 2 + 2 * workers  # the ranks themselves, then their workers
        assert all(map(is_gone, pids))
    assert_identical(tmp_path / "runs/run", tmp_path / "runs/oracle")


def test_a_batch_that_is_left_out_is_the_same_with_workers(server: ForkServer, tmp_path: Path) -> None:
    rule = "guard: {policy: skip}"
    oracle = straight(server, tmp_path, bad_rows=(11, 50), more=rule)
    spec = write_heavy(tmp_path / "job", workers=2, bad_rows=(11, 50), more=rule)
    log = tmp_path / "log"
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    skipped = [[event["step"], event["row_ids"]] for event in events(tmp_path / "run", "step_skipped")]
    assert skipped == [[event["step"], event["row_ids"]] for event in events(oracle, "step_skipped")]
    assert len(skipped) >= 8
    assert_identical(tmp_path / "run", oracle)


def test_a_signal_to_all_processes_of_a_run_stops_it_in_order(server: ForkServer, tmp_path: Path) -> None:
    oracle = straight(server, tmp_path)
    job, log = tmp_path / "job", tmp_path / "log"
    spec = write_heavy(job, workers=2)
    for number, code in ((signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGHUP, 75), (signal.SIGINT, 92)):
        (job / "slow").write_text("0.1")
        lines = tmp_path / "run/reports/train_metrics.jsonl"
        before = len(list(read_lines(lines))) if lines.exists() else 0
        pid = server.start(command(spec, tmp_path, "run"), log)
        until(lambda lines=lines, before=before: lines.exists() and len(list(read_lines(lines))) > before)  # type: ignore[misc]
        os.killpg(pid, number)
        assert server.wait(pid) == code, log.read_text()
    (job / "slow").unlink()
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert_identical(tmp_path / "run", oracle)


def test_a_stop_is_obeyed_while_a_worker_never_ends(server: ForkServer, tmp_path: Path) -> None:
    oracle = straight(server, tmp_path)
    job, log = tmp_path / "job", tmp_path / "log"
    spec = write_heavy(job, workers=2)
    (job / "pids").mkdir()
    third_batch = read_third_batch(oracle, server, tmp_path)
    (job / "hang_at").write_text(str(third_batch))
    pid = server.start(command(spec, tmp_path, "run"), log)
    until((job / "hanging").exists)
    time.sleep(0.5)
    began_s = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert server.wait(pid) == 75, log.read_text()
    assert time.monotonic() - began_s < FEW_S
    assert outcome(tmp_path / "run")["status"] == "preempted"
    assert all(map(is_gone, workers_of(job)))
    (job / "hang_at").unlink()
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    assert_identical(tmp_path / "run", oracle)


def read_third_batch(oracle: Path, server: ForkServer, folder: Path) -> int:
    """A row of the third batch: what a run is told of that fails at it."""
    spec = write_heavy(folder / "asked", more="guard: {policy: skip}", bad_rows=(11,), max_steps=12)
    log = folder / "asked.log"
    assert server.run(command(spec, folder, "asked-run"), log) == 0, log.read_text()
    return int(events(folder / "asked-run", "step_skipped")[0]["row_ids"][3])


def test_killing_the_runner_leaves_no_orphan_whatever_its_workers_do(server: ForkServer, tmp_path: Path) -> None:
    job, log = tmp_path / "job", tmp_path / "log"
    spec = write_heavy(job, workers=2)
    (job / "pids").mkdir()
    (job / "hang_at").write_text("30")
    pid = server.start(command(spec, tmp_path, "run"), log)
    until((job / "hanging").exists)
    until(lambda: len(workers_of(job)) == 2)
    group = [one for one in all_processes() if os.getpgid(one) == pid]
    assert len(group) >= 4  # the runner, the fork server, two workers
    os.kill(pid, signal.SIGKILL)  # it alone, not its group
    assert server.wait(pid) == -9
    until(lambda: all(map(is_gone, group)), FEW_S)


def all_processes() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                os.getpgid(int(name))
            except ProcessLookupError:
                continue
            found.append(int(name))
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_a_transform_that_raises_ends_the_run_with_one_line_and_its_own_traceback(
    server: ForkServer, tmp_path: Path, workers: int
) -> None:
    job, log = tmp_path / "job", tmp_path / "log"
    spec = write_heavy(job, workers=workers)
    (job / "fail_at").write_text("30")
    assert server.run(command(spec, tmp_path, "run"), log) == 70
    told = outcome(tmp_path / "run")
    assert told["status"] == "trainer_raised"
    said = f"trainer error [trainer_raised] at transform at step {told['step'] + 1}: ValueError: row 30 is no good"
    assert told["reason"] == said
    assert said in log.read_text()
    assert 'raise ValueError(f"row' in log.read_text()
    assert (told["step"] > 0) == bool(list(read_lines(tmp_path / "run/reports/train_metrics.jsonl")))


def test_a_worker_that_is_killed_ends_the_run_in_seconds(server: ForkServer, tmp_path: Path) -> None:
    job, log = tmp_path / "job", tmp_path / "log"
    spec = write_heavy(job, workers=2)
    (job / "pids").mkdir()
    (job / "die_at").write_text("30")
    began_s = time.monotonic()
    assert server.run(command(spec, tmp_path, "run"), log) == 70
    assert time.monotonic() - began_s < 2 * FEW_S
    told = outcome(tmp_path / "run")
    assert told["status"] == "trainer_raised"
    assert "was killed by SIGKILL" in told["reason"]
    assert told["reason"].endswith("If memory ran out, take fewer workers or smaller batches.")
    assert "Traceback" not in log.read_text()
    assert all(map(is_gone, workers_of(job)))
