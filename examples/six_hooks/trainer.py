"""A trainer by hand: six hooks, its own model, optimizer and update. Nothing is inherited."""

from dataclasses import dataclass

import torch
from torch import nn

from trn import Export, StepResult


@dataclass
class State:
    model: nn.Module
    optimizer: torch.optim.Optimizer


class HandMade:
    columns = ("x", "y")

    def setup(self, ctx):
        """Once, before anything else: here there is nothing to prepare."""

    def configure(self, ctx):
        width = ctx.params["width"]
        model = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 1)).to(ctx.device)
        return State(model, torch.optim.SGD(model.parameters(), lr=ctx.params["learning_rate"], momentum=0.9))

    def prepare_batch(self, raw_batch, state, ctx):
        """A pyarrow.RecordBatch with this step's rows, to what train_step takes."""
        columns = ctx.tensors(raw_batch)
        return columns["x"].to(ctx.device), columns["y"].to(ctx.device)

    def train_step(self, batch, state, ctx):
        x_BF, y_B = batch
        loss = nn.functional.mse_loss(state.model(x_BF).squeeze(1), y_B)
        state.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
        state.optimizer.step()
        return StepResult({"train_loss": loss, "grad_norm": norm, "lr": state.optimizer.param_groups[0]["lr"]})

    def evaluate(self, batches, state, ctx):
        """Optional: without it a spec with `validation` is refused."""
        total, rows = 0.0, 0
        with torch.no_grad():
            for raw_batch in batches:
                x_BF, y_B = self.prepare_batch(raw_batch, state, ctx)
                total += (state.model(x_BF).squeeze(1) - y_B).square().sum().item()
                rows += len(y_B)
        return {"val_loss": total / rows}

    def export(self, batch, state, ctx):
        """Optional: how the model is called, for `trn export`."""
        return Export(state.model, {"x": batch[0]}, ("y",), dynamic={"x": {0: "batch"}})

    def state_dict(self, state):
        """All that must survive a kill. Random streams and the place in the data are the runtime's business."""
        return {"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}

    def load_state_dict(self, state, payload, ctx):
        state.model.load_state_dict(payload["model"])
        state.optimizer.load_state_dict(payload["optimizer"])
