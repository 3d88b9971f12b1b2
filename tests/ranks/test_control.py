"""Ranks wait together, and one that is asked to stop keeps no other waiting."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from support.compare import outcome
from support.together import ranks, write_together

pytestmark = pytest.mark.slow

TRAINER = """
import os
import signal
import threading

import torch

from trn import StepResult
from trn.trainer import Control


class Waiting:
    columns = ("x", "y")
    honours = frozenset({"ddp"})

    def setup(self, ctx): ...

    def configure(self, ctx):
        return {"w": torch.zeros(4)}

    def prepare_batch(self, raw_batch, state, ctx):
        return None

    def train_step(self, batch, state, ctx):
        CONTROL
        return StepResult({"loss": 1.0}, control=control)

    def evaluate(self, batches, state, ctx):
        for _ in batches:
            pass
        return {"val_loss": 1.0}

    def state_dict(self, state):
        return dict(state)

    def load_state_dict(self, state, payload, ctx):
        state["w"].copy_(payload["w"])
"""


def job_of(tmp_path: Path, control: str) -> Path:
    spec = write_together(tmp_path)
    (tmp_path / "waiting.py").write_text(TRAINER.replace("CONTROL", control))
    text = spec.read_text().replace("together:Together", "waiting:Waiting")
    gone = ("hyperparams", "optimizer", "clip_grad_norm", "sample_every")
    spec.write_text("\n".join(line for line in text.splitlines() if not line.startswith(gone)))
    return spec


def test_a_stop_of_one_rank_ends_the_pause_of_all(tmp_path: Path) -> None:
    control = """control = Control(backoff_seconds=3600) if ctx.step == 3 else None
        if ctx.step == 3 and ctx.rank == 1:
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()"""
    spec = job_of(tmp_path, control)
    with ranks(2, spec, "r") as world:
        world.wait_for_steps(tmp_path / "runs/r", 3)
        waits_s = time.monotonic()
        assert world.wait() == [75, 75], world.log(0)
    assert time.monotonic() - waits_s < 15
    assert outcome(tmp_path / "runs/r")["step"] == 3
