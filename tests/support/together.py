"""A job for several ranks, and the ranks themselves as processes: started here as srun would, without a launcher.

The model has a batch norm, dropout and a parameter that only some rows use. Each rank writes the rows of its batches to
a file of its own. What goes wrong is asked for with files beside the trainer: `RANK-WHAT` holds the step at which.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trn.records import new_job_id

TRAINER = '''
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from trn import Step, TorchTrainer
from trn.errors import NumericalInstability

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Params:
    noisy: bool = True
    pause_s: float = 0.0


class Model(nn.Module):
    def __init__(self, noisy):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), *([nn.BatchNorm1d(8), nn.Dropout(0.2)] if noisy else []), nn.Tanh())
        self.head = nn.Linear(8, 1)
        self.rare = nn.Parameter(torch.zeros(1))
        self.never = nn.Parameter(torch.ones(1))

    def forward(self, x):
        out = self.head(self.body(x)).squeeze(1)
        is_rare = x[:, 0] > 1.0
        return out + self.rare * is_rare if bool(is_rare.any()) else out


def is_asked(rank, what, step):
    path = HERE / f"{rank}-{what}"
    return path.exists() and path.read_text() == str(step)


class Together(TorchTrainer):
    Params = Params
    columns = ("x", "y")

    def build(self, ctx):
        if (HERE / f"{ctx.rank}-unbuilt").exists():
            raise RuntimeError("no model today")
        model = Model(ctx.params.noisy).double()
        if (HERE / f"{ctx.rank}-unlike").exists():
            nn.init.ones_(model.head.bias)
        return model

    def transform(self, raw_batch, ctx):
        if len(ctx.row_ids):
            with open(HERE / f"rows-{ctx.run_dir.name}-{ctx.rank}.jsonl", "a") as out:
                out.write(json.dumps([ctx.step, ctx.row_ids.tolist()]) + "\\n")
        return ctx.tensors(raw_batch)

    def train_step(self, batch, state, ctx):
        time.sleep(ctx.params.pause_s)
        if is_asked(ctx.rank, "raise", ctx.step):
            raise ValueError("a bad day")
        if is_asked(ctx.rank, "refuse", ctx.step):
            raise NumericalInstability(step=ctx.step, field="x", value=float("nan"))
        if is_asked(ctx.rank, "eat", ctx.step):
            raise MemoryError("no room for it")
        if is_asked(ctx.rank, "sleep", ctx.step):
            time.sleep(600)
        if is_asked(ctx.rank, "die", ctx.step):
            os.kill(os.getpid(), 9)
        if is_asked(ctx.rank, "term", ctx.step):
            os.kill(os.getpid(), 15)
        if is_asked(ctx.rank, "interrupt", ctx.step):
            os.kill(os.getpid(), 2)
        result = super().train_step(batch, state, ctx)
        if is_asked(ctx.rank, "lie", ctx.step):
            result.metrics["train_loss"] += 1.0
        return result

    def evaluate(self, batches, state, ctx):
        found = super().evaluate(batches, state, ctx)
        return {"val_loss": float("nan")} if is_asked(ctx.rank, "spoil", ctx.step) else found

    def loss(self, model, batch):
        error = model(batch["x"]) - batch["y"]
        return Step(error.square().mean(), {"mae": error.abs().mean()}, count=len(error))

    def sample(self, state, ctx):
        return {"draw.txt": str(torch.rand(2).tolist())}


class Sharded(Together):
    """Trains with the others without saying so."""

    honours = Together.honours - {"ddp"}
'''

SPEC = """
config_version: 1
trainer: together:Together
hyperparams: {{noisy: {noisy}, pause_s: {pause_s}}}
dataset: {{parquet_paths: [train.parquet], batch_size: 8, window: 2, end: cycle}}
validation: {{parquet_paths: [validation.parquet], every_steps: 12}}
seed: 5
device: cpu
precision: none
ddp: true
max_steps: {max_steps}
steps_per_epoch: 15
checkpoint_every: 10
sample_every: 20
threads: 1
optimizer: {{name: adamw, lr: 0.01}}
clip_grad_norm: 1.0
checkpoint: {{keep: 3}}
limits: {{grace_seconds: {grace_s}, hang_seconds: {hang_s}}}
{more}
"""


def write_together(
    folder: Path,
    *,
    max_steps: int = 40,
    noisy: bool = True,
    pause_s: float = 0.0,
    grace_s: float = 6.0,
    hang_s: float = 0.0,
    nan_row: int | None = None,
    more: str = "",
) -> Path:
    """Data, trainer and spec; a pass has 100 rows, 12.5 batches, and the 29 of the validation leave ranks uneven."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows, seed in (("train", 100, 1), ("validation", 29, 2)):
        generator = np.random.default_rng(seed)
        x = generator.normal(size=(rows, 4))
        y = np.sin(x[:, 0]) + x[:, 1]
        if nan_row is not None and name == "train":
            x[nan_row] = np.nan
        table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 4), "y": pa.array(y)})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=17)
    (folder / "together.py").write_text(TRAINER)
    spec = folder / "spec.yaml"
    values = {"noisy": str(noisy).lower(), "pause_s": pause_s, "max_steps": max_steps, "more": more}
    spec.write_text(SPEC.format(**values, grace_s=grace_s, hang_s=hang_s))
    return spec


@dataclass
class World:
    """Running ranks; their output goes to `rank-N.log` in `folder`."""

    processes: list[subprocess.Popen[bytes]]
    folder: Path

    def wait(self, timeout_s: float = 60.0) -> list[int]:
        """The exit statuses."""
        end = time.monotonic() + timeout_s
        return [one.wait(max(0.1, end - time.monotonic())) for one in self.processes]

    def wait_for_steps(self, run_dir: Path, steps: int, timeout_s: float = 30.0) -> None:
        """Until so many steps are in the journal."""
        metrics = run_dir / "reports/train_metrics.jsonl"
        end = time.monotonic() + timeout_s
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= steps):
            assert time.monotonic() < end, self.log(0)
            assert all(one.poll() is None for one in self.processes), self.log(0)
            time.sleep(0.02)

    def log(self, rank: int) -> str:
        return (self.folder / f"rank-{rank}.log").read_text()

    def signal(self, rank: int, number: int) -> None:
        self.processes[rank].send_signal(number)


@contextmanager
def ranks(size: int, spec: Path, run_id: str, *more: str, runs_dir: Path | None = None) -> Iterator[World]:
    """`size` ranks of a run of `spec`, new or resumed; whatever is left of them at the end is killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = spec.parent / f"{run_id}-{new_job_id()}"
    folder.mkdir()
    arguments = ["--job-id", new_job_id(), "--config", str(spec), "--run-id", run_id]
    arguments += ["--runs-dir", str(runs_dir or spec.parent / "runs"), *(more or ("--auto-resume",))]
    shared = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    if size > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        shared |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    processes = []
    for rank in range(size):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {}
        with open(folder / f"rank-{rank}.log", "wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "trn.runner", *arguments],
                    env=os.environ | shared | place,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
    try:
        yield World(processes, folder)
    finally:
        for one in processes:
            if one.poll() is None:
                one.send_signal(signal.SIGKILL)
            one.wait()


def run(size: int, spec: Path, run_id: str, *more: str) -> Path:
    """Such a run brought to its end, which must be a good one; returns its folder."""
    with ranks(size, spec, run_id, *more) as world:
        assert world.wait() == [0] * size, [world.log(rank) for rank in range(size)]
    return spec.parent / "runs" / run_id


def batches(spec: Path, run_id: str) -> dict[int, list[int]]:
    """Step -> the rows of its global batch, from what the ranks wrote; the last word on a step counts."""
    found: dict[int, dict[int, list[int]]] = {}
    for path in sorted(spec.parent.glob(f"rows-{run_id}-*.jsonl")):
        rank = int(path.stem.rpartition("-")[2])
        for step, rows in map(_parse, path.read_text().splitlines()):
            found.setdefault(step, {})[rank] = rows
    return {step: [row for rank in sorted(parts) for row in parts[rank]] for step, parts in found.items()}


def _parse(line: str) -> tuple[int, list[int]]:
    import json

    step, rows = json.loads(line)
    return step, rows


def ask(spec: Path, rank: int, what: str, step: int | str = "") -> Path:
    """Let something go wrong on a rank, at a step; the file that asks for it is returned."""
    path = spec.parent / f"{rank}-{what}"
    path.write_text(str(step))
    return path
