"""Learns y from x with a model of its own; what a platform has to know of it stands in six hooks."""

from __future__ import annotations

import json

import torch
from torch import nn

from trn import StepResult


class Squares:
    columns = ("x", "y")

    def setup(self, ctx):
        """Once, before anything else: here there is nothing to prepare."""

    def configure(self, ctx):
        """Model and optimizer; `ctx.params` are the job's hyperparams, `ctx.inputs` its files."""
        model = nn.Sequential(nn.Linear(6, ctx.params["width"]), nn.Tanh(), nn.Linear(ctx.params["width"], 1))
        if "base_model" in ctx.inputs:
            model.load_state_dict(torch.load(ctx.inputs["base_model"], weights_only=True))
        optimizer = torch.optim.AdamW(model.parameters(), lr=ctx.params["learning_rate"])
        return {"model": model.to(ctx.device), "optimizer": optimizer}

    def prepare_batch(self, raw_batch, state, ctx):
        columns = ctx.tensors(raw_batch)
        return columns["x"].float().to(ctx.device), columns["y"].float().to(ctx.device)

    def train_step(self, batch, state, ctx):
        x_BF, y_B = batch
        loss = nn.functional.mse_loss(state["model"](x_BF).squeeze(1), y_B)
        state["optimizer"].zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(state["model"].parameters(), 1.0)
        state["optimizer"].step()
        return StepResult({"loss": loss, "grad_norm": norm, "lr": ctx.params["learning_rate"]})

    def sample(self, state, ctx):
        """Optional: what the model makes of each of the job's prompts, a list of six numbers here."""
        made = {}
        for request in ctx.sample_requests:
            with torch.no_grad():
                y = state["model"](torch.tensor([json.loads(request.prompt)], device=ctx.device, dtype=torch.float32))
            made[f"{request.index:02d}.json"] = json.dumps({"x": json.loads(request.prompt), "y": y.item()})
        return made

    def state_dict(self, state):
        """All that must survive a kill. Random streams and the place in the data are the runtime's business."""
        return {"model": state["model"].state_dict(), "optimizer": state["optimizer"].state_dict()}

    def load_state_dict(self, state, payload, ctx):
        state["model"].load_state_dict(payload["model"])
        state["optimizer"].load_state_dict(payload["optimizer"])
