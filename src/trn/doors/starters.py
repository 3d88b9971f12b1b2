"""What `trn init` writes: for each kind of start the texts of its files, whole and ready to run.

They are the first code of ours that many people read, and what they copy: short, commented, and tested by running
each of them as it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DATA_MAKER", "STARTERS", "Starter"]

DATA_MAKER = "make_data.py"
"""The script that writes the data of a start, beside itself; a start without it gets them from `trn data`."""


@dataclass(frozen=True)
class Starter:
    """One kind of start: its files by name, and the arguments of the two `trn` commands to go on with."""

    files: Mapping[str, str]
    commands: tuple[tuple[str, ...], tuple[str, ...]]
    """`{dir}` in them stands for the folder."""


_MAKE_DATA = '''\
"""Write a small table to try the trainer with: `python make_data.py`. Put your own data in its place.

A column `x` of four numbers a row and a column `y`, a noisy function of them. Any parquet files will do: name them in
spec.yaml, and their columns in the trainer.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = {"train": 4096, "validation": 512}


def main() -> None:
    generator = np.random.default_rng(seed=1)
    for name, rows in ROWS.items():
        x = generator.uniform(-1, 1, size=(rows, 4)).astype(np.float32)
        y = np.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2] - x[:, 3] ** 2 + 0.05 * generator.normal(size=rows)
        columns = {
            "x": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 4),
            "y": pa.array(y.astype(np.float32)),
        }
        # a shuffled run reads whole row groups: small ones cost little memory
        pq.write_table(pa.table(columns), Path(__file__).with_name(f"{name}.parquet"), row_group_size=512)


if __name__ == "__main__":
    main()
'''

_TORCH_TRAINER = '''\
"""A regressor: say what the model and the loss are, and the runtime does the rest."""

from dataclasses import dataclass

from torch import nn

from trn import Step, TorchTrainer


@dataclass(frozen=True)
class Params:
    """The `hyperparams` of spec.yaml: their names, types and defaults. Anything else there is refused."""

    width: int = 32


class Regressor(TorchTrainer):
    Params = Params
    columns = ("x", "y")  # what is read of the data

    def build(self, ctx):
        """The model; it is moved to the device for you."""
        width = ctx.params.width
        return nn.Sequential(nn.Linear(4, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def loss(self, model, batch):
        """The mean loss of a batch, further metrics for the journal, and over how many rows it is the mean."""
        error = model(batch["x"]).squeeze(1) - batch["y"]
        return Step(error.square().mean(), {"absolute_error": error.abs().mean()}, count=len(error))
'''

_TORCH_SPEC = """\
config_version: 1
trainer: trainer:Regressor # the class in trainer.py, beside this file
hyperparams: {width: 32} # the trainer's own Params
dataset:
  parquet_paths: [train.parquet] # relative to this file; globs are fine
  batch_size: 64
validation:
  parquet_paths: [validation.parquet] # once a pass over the training data
seed: 1
device: cpu # cuda:0, mps
precision: none
ddp: false
epochs: 5 # the budget: five passes, 320 steps; or max_steps
checkpoint_every: 50 # steps; a resume goes on from the newest
optimizer: {name: adamw, lr: 1.0e-2}
schedule: {kind: warmup_cosine, warmup_steps: 20}
clip_grad_norm: 1.0
# `trn schema` prints every key, and `trn run --dry-run` the plan that becomes of them
"""

_HOOKS_TRAINER = '''\
"""A trainer by hand: six hooks, its own model, optimizer and update. Nothing is inherited."""

from dataclasses import dataclass

import torch
from torch import nn

from trn import StepResult


@dataclass
class State:
    """What is trained; hooks get it from `configure` and hand it on."""

    model: nn.Module
    optimizer: torch.optim.Optimizer


class HandMade:
    columns = ("x", "y")  # what is read of the data

    def setup(self, ctx):
        """Once, before anything else: here there is nothing to prepare."""

    def configure(self, ctx):
        """Build what is trained. ctx.params are the `hyperparams` of spec.yaml, a mapping."""
        width = ctx.params["width"]
        model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1)).to(ctx.device)
        return State(model, torch.optim.SGD(model.parameters(), lr=ctx.params["learning_rate"], momentum=0.9))

    def prepare_batch(self, raw_batch, state, ctx):
        """From a pyarrow.RecordBatch with this step's rows to what train_step takes."""
        columns = ctx.tensors(raw_batch)
        return columns["x"].to(ctx.device), columns["y"].to(ctx.device)

    def train_step(self, batch, state, ctx):
        """Forward, backward, update."""
        x, y = batch
        loss = nn.functional.mse_loss(state.model(x).squeeze(1), y)
        state.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
        state.optimizer.step()
        return StepResult({"train_loss": loss, "grad_norm": norm, "lr": state.optimizer.param_groups[0]["lr"]})

    def evaluate(self, batches, state, ctx):
        """Optional: without it, leave `validation` out of the spec."""
        total, rows = 0.0, 0
        with torch.no_grad():
            for raw_batch in batches:
                x, y = self.prepare_batch(raw_batch, state, ctx)
                total += (state.model(x).squeeze(1) - y).square().sum().item()
                rows += len(y)
        return {"val_loss": total / rows}

    def state_dict(self, state):
        """All that must survive a kill. Global random streams and the place in the data are saved for you."""
        return {"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}

    def load_state_dict(self, state, payload, ctx):
        """The same, given back."""
        state.model.load_state_dict(payload["model"])
        state.optimizer.load_state_dict(payload["optimizer"])
'''

_HOOKS_SPEC = """\
config_version: 1
trainer: trainer:HandMade # the class in trainer.py, beside this file
hyperparams: {width: 32, learning_rate: 0.1} # given to the hooks as ctx.params
dataset:
  parquet_paths: [train.parquet] # relative to this file; globs are fine
  batch_size: 64
validation:
  parquet_paths: [validation.parquet] # once a pass over the training data
seed: 1
device: cpu # cuda:0, mps
precision: none
ddp: false
epochs: 5 # the budget: five passes, 320 steps; or max_steps
checkpoint_every: 50 # steps; a resume goes on from the newest
# optimizer, schedule and clip_grad_norm are refused here: the trainer makes its own update, and nobody would obey them
# `trn schema` prints every key, and `trn run --dry-run` the plan that becomes of them
"""

_LM_SPEC = """\
# A small language model. First its data, in the folder that this file expects:
#
#   trn data text --out data              Python's own library, about 10 s
#   trn data text --help                  your own text, another vocabulary or context
config_version: 1
trainer: lm # comes with trn: pip install 'trn-runtime[lm]'
hyperparams:
  width: 128
  depth: 2
  heads: 4
  vocab: 4096 # as the data was made with
  context: 256 # likewise
  tokenizer: data/tokenizer # only the sample needs it
  prompt: "def "
  sample_tokens: 96
dataset:
  parquet_paths: [data/train.parquet]
  columns: [tokens]
  batch_size: 12
validation:
  parquet_paths: [data/validation.parquet]
  every_steps: 100
  every_epochs: 0
seed: 42
device: cpu # cuda:0, mps
precision: none
ddp: false
max_steps: 400 # a minute or two on two cores
checkpoint_every: 100
sample_every: 400
optimizer: {name: adamw, weight_decay: 0.1, betas: [0.9, 0.95]}
schedule: {kind: warmup_cosine, warmup_steps: 30, lr_max: 5.0e-3, lr_min: 5.0e-4}
clip_grad_norm: 1.0
"""

_RUN = ("run", "--config", "{dir}/spec.yaml")

STARTERS = {
    "torch": Starter(
        {"trainer.py": _TORCH_TRAINER, "spec.yaml": _TORCH_SPEC, DATA_MAKER: _MAKE_DATA}, (_RUN, ("status",))
    ),
    "hooks": Starter(
        {"trainer.py": _HOOKS_TRAINER, "spec.yaml": _HOOKS_SPEC, DATA_MAKER: _MAKE_DATA}, (_RUN, ("status",))
    ),
    "lm": Starter({"spec.yaml": _LM_SPEC}, (("data", "text", "--out", "{dir}/data"), _RUN)),
}
"""By the name of their kind."""
