"""Loops by hand: one that draws from every random stream, in a script of its own, and a plain one to be called.

A step takes about a millisecond.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import trn
from support.job import write_table

SCRIPT = """
import random
import sys

import numpy as np
import torch
from torch import nn

import trn


class Counter:
    def __init__(self):
        self.seen = 0

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def main(runs_dir, run_id, *sets):
    with trn.open_run("spec.yaml", run_id=run_id, runs_dir=runs_dir, sets=sets) as run:
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=run.plan.budget.max_steps)
        counter = Counter()
        run.track(model=model, optimizer=optimizer)
        run.track(scheduler=scheduler, counter=counter)

        @run.evaluation
        def evaluate(batches):
            model.eval()
            with torch.no_grad():
                errors = [(model(one["x"]).squeeze(1) - one["y"]).square().mean().item() for one in batches]
            model.train()
            return {"val_loss": sum(errors) / len(errors), "val_draw": random.random()}

        for batch in run.feed:
            x = batch["x"] + 0.01 * torch.randn(batch["x"].shape) + 0.01 * random.gauss(0.0, 1.0)
            x[0] += float(np.random.normal()) + float(run.ctx.rng(int(run.ctx.row_ids[0])).normal())
            loss = (model(x).squeeze(1) - batch["y"]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            run.gate(train_loss=loss, grad_norm=norm)
            optimizer.step()
            run.log(lr=optimizer.param_groups[0]["lr"], seen=counter.seen)
            counter.seen += len(batch["y"])  # after the log: still a part of this step
            if run.step < run.plan.budget.max_steps:
                scheduler.step()
    return run.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
"""

SPEC = """
config_version: 1
dataset:
  parquet_paths: [train-0.parquet, train-1.parquet]
  batch_size: 8
  window: 2
  end: cycle
validation: {parquet_paths: [validation.parquet], every_steps: 25}
seed: 42
device: cpu
precision: none
ddp: false
max_steps: 120
steps_per_epoch: 40
checkpoint_every: 10
threads: 1
checkpoint: {keep: 2}
log: {enabled: false}
heartbeat: {interval_seconds: 0}
"""


def write_own_loop(folder: Path) -> Path:
    """The data, the spec and the script in `folder`; returns the script."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "train-0.parquet", 200, seed=1)
    write_table(folder / "train-1.parquet", 123, seed=2, row_group_rows=50)
    write_table(folder / "validation.parquet", 61, seed=3)
    (folder / "spec.yaml").write_text(SPEC)
    script = folder / "own.py"
    script.write_text(SCRIPT)
    return script


def train(run: trn.Run, steps: int | None = None, bad_step: int = 0) -> nn.Module:
    """A plain loop to the end of the run, or of a step; `bad_step` has a loss that is no number. Returns the model."""
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    run.track(model=model, optimizer=optimizer)
    for batch in run.feed:
        loss = (model(batch["x"]).squeeze(1) - batch["y"]).square().mean()
        if run.step == bad_step:
            loss = loss * math.nan
        optimizer.zero_grad()
        loss.backward()
        run.gate(train_loss=loss, grad_norm=nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        run.log(lr=0.05)
        if run.step == steps:
            break
    return model


def logged(run: trn.Run) -> None:
    """A loop that learns nothing."""
    for _ in run.feed:
        run.log(train_loss=1.0)


def open_and(spec: dict[str, Any], folder: Path, body: Callable[[trn.Run], object], **options: Any) -> trn.Run:
    """Run `body` inside of a run called `run`; returns it after its end."""
    with trn.open_run(spec, run_id="run", runs_dir=folder, **options) as run:
        body(run)
    return run
