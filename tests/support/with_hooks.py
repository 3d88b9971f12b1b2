"""A job with all that a six-hook trainer may ask for: a folder of its own, steps that hold back, debug, samples.

Half of what it trains is in its own folder alone, so that a resume without it ends elsewhere. A file `refuses` beside
the trainer makes `save_checkpoint` misbehave in the way that is written there, after the step that stands before it.
"""

from __future__ import annotations

from pathlib import Path

from support.job import write_table

STEPS = 24

TRAINER = """
import os
import random
import signal
from pathlib import Path

import torch
from torch import nn

from trn import StepResult
from trn.trainer import Control

HERE = Path(__file__).parent


class Hooked:
    columns = ("x", "y")

    def setup(self, ctx):
        pass

    def configure(self, ctx):
        body, head = nn.Linear(8, 8), nn.Linear(8, 1)
        optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.01)
        return {"body": body, "head": head, "optimizer": optimizer, "saves": 0}

    def prepare_batch(self, raw_batch, state, ctx):
        return ctx.tensors(raw_batch)

    def train_step(self, batch, state, ctx):
        x = batch["x"] + 0.01 * torch.randn_like(batch["x"])
        error = state["head"](torch.tanh(state["body"](x))).squeeze(1) - batch["y"]
        loss = error.square().mean()
        state["optimizer"].zero_grad()
        loss.backward()
        state["optimizer"].step()
        control = Control(skip_cadence_emit=ctx.step in ctx.params["quiet"])
        return StepResult({"loss": loss, "learning_rate": 0.01}, {"first": float(error[0].detach())}, control)

    def state_dict(self, state):
        return {"body": state["body"].state_dict(), "optimizer": state["optimizer"].state_dict()}

    def load_state_dict(self, state, payload, ctx):
        state["body"].load_state_dict(payload["body"])

    def evaluate(self, batches, state, ctx):
        stop = HERE / "terminate"
        if stop.exists() and stop.read_text() == str(ctx.step):
            stop.unlink()
            os.kill(os.getpid(), signal.SIGTERM)
        with torch.no_grad():
            errors = [state["head"](state["body"](t["x"])).squeeze(1) - t["y"] for t in map(ctx.tensors, batches)]
        return {"val_loss": float(torch.cat(errors).square().mean())}

    def sample(self, state, ctx):
        for one in ctx.sample_requests:
            torch.manual_seed(one.seed)  # is put back
        told = [[one.index, one.prompt, one.mode, one.seed] for one in ctx.sample_requests]
        return {"draw.txt": f"{ctx.step} {told} {torch.rand(2).tolist()} {random.random()}"}

    def save_checkpoint(self, *, state, step, output_dir, final, ctx):
        assert ctx.step == step
        assert not list(output_dir.iterdir())
        refuses = HERE / "refuses"
        at, _, how = refuses.read_text().partition(" ") if refuses.exists() else ("0", "", "")
        torch.rand(3), random.random()  # changes nothing
        (output_dir / "adapter").mkdir()
        (output_dir / "empty" / "too").mkdir(parents=True)
        torch.save(state["head"].state_dict(), output_dir / "adapter" / "head.pt")
        (output_dir / "note.txt").write_text(f"step {step}, {final}\\n")
        if at == str(step):
            return self.misbehave(how, output_dir)
        return {"primary_path": output_dir / "adapter" / "head.pt", "rank": 4}

    def misbehave(self, how, output_dir):
        exec(how, {"output_dir": output_dir, "os": os, "signal": signal})
        return {"primary_path": "nowhere"} if how == "pass" else None

    def load_checkpoint(self, *, state, checkpoint_dir, payload, ctx):
        assert set(payload) == {"body", "optimizer"}
        state["head"].load_state_dict(torch.load(checkpoint_dir / "adapter" / "head.pt", weights_only=True))
        state["optimizer"].load_state_dict(payload["optimizer"])
"""

SPEC = """
config_version: 1
trainer: hooked:Hooked
hyperparams: {{quiet: [{quiet}]}}
dataset: {{parquet_paths: [train.parquet], batch_size: 4, end: cycle}}
validation: {{parquet_paths: [validation.parquet], every_steps: 5, every_epochs: 0}}
seed: 5
device: cpu
precision: none
ddp: false
max_steps: {steps}
steps_per_epoch: 12
metric_every: 2
checkpoint_every: 4
sample_every: 6
sample_prompts: [a cat, {{prompt: a dog, mode: edit, seed: 7}}]
sample_seed: 3
threads: 1
checkpoint: {{keep: {keep}, every_epochs: 0}}
log: {{enabled: false}}
heartbeat: {{interval_seconds: 0}}
{more}
"""


def write_hooked(
    folder: Path, *, quiet: tuple[int, ...] = (), steps: int = STEPS, keep: int = 100, more: str = ""
) -> Path:
    """The data, the trainer and the spec in `folder`; returns the spec's path. `quiet` are the steps that hold back."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "train.parquet", 60, seed=1, row_group_rows=20)
    write_table(folder / "validation.parquet", 8, seed=2)
    (folder / "hooked.py").write_text(TRAINER)
    spec = folder / "spec.yaml"
    spec.write_text(SPEC.format(quiet=", ".join(map(str, quiet)), steps=steps, keep=keep, more=more))
    return spec
