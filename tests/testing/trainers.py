"""A trainer that keeps every promise, and others that break one each."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from trn import Context, Step, StepResult, TorchTrainer

PROMISES = ("hooks", "build", "batches", "steps", "state", "evaluate", "learns", "resume", "watching", "refuses")
"""What check_trainer proves of a trainer that has every hook but `export`."""


def table(rows: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """`x` [rows, 4] and `y`, a function of it."""
    x = np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)
    return {"x": x, "y": (x[:, 0] - x[:, 1] * x[:, 2]).astype(np.float32)}


@dataclass(frozen=True)
class Params:
    width: int = 8


class Good(TorchTrainer):
    """Everything that could make a resume inexact is in it, and is right."""

    Params = Params
    columns = ("x", "y")

    def build(self, ctx: Context) -> nn.Module:
        width = ctx.params.width
        return nn.Sequential(
            nn.Linear(4, width), nn.BatchNorm1d(width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, 1)
        )

    def transform(self, raw_batch: pa.RecordBatch, ctx: Context) -> dict[str, Tensor]:
        batch = ctx.tensors(raw_batch)
        if not len(ctx.row_ids):
            return batch  # no training rows: an evaluation
        noise = np.stack([ctx.rng(int(row)).normal(0, 0.01, 4) for row in ctx.row_ids]).astype(np.float32)
        return {"x": batch["x"] + torch.from_numpy(noise) + random.gauss(0, 0.001), "y": batch["y"]}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
        error = model(batch["x"]).squeeze(1) - batch["y"]
        return Step(error.square().mean(), {"mae": error.abs().mean()}, count=len(error))


class BuildsOtherwise(Good):
    made = itertools.count()

    def build(self, ctx: Context) -> nn.Module:
        model = super().build(ctx)
        nn.init.constant_(model[0].bias, float(next(self.made)))
        return model


class LooksAtTheClock(Good):
    def transform(self, raw_batch: pa.RecordBatch, ctx: Context) -> dict[str, Tensor]:
        batch = super().transform(raw_batch, ctx)
        return {**batch, "x": batch["x"] + time.perf_counter_ns() % 1000}


class CountsBatches(Good):
    """Its second batch is not what the same rows are as a first one."""

    def setup(self, ctx: Context) -> None:
        self.seen = 0

    def transform(self, raw_batch: pa.RecordBatch, ctx: Context) -> dict[str, Tensor]:
        self.seen += 1
        batch = super().transform(raw_batch, ctx)
        return {**batch, "x": batch["x"] * (1 + self.seen)}


class RemembersInItself(Good):
    """A counter that a resume loses."""

    def setup(self, ctx: Context) -> None:
        self.calls = 0

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
        step = super().loss(model, batch)
        if model.training:
            self.calls += 1
        return Step(step.loss * (1 + 0.01 * self.calls), {}, step.count)


class LeavesOutTheOptimizer(Good):
    def load_state_dict(self, state: Any, payload: dict[str, Any], ctx: Context) -> None:
        state.model.load_state_dict(payload["model"])


class EvaluatesInTraining(Good):
    """The forgotten .train() at the end of an evaluation."""

    def evaluate(self, batches: Iterable[pa.RecordBatch], state: Any, ctx: Context) -> dict[str, float]:
        state.model.eval()
        with torch.no_grad():
            losses = [float(self.loss(state.model, self.prepare_batch(one, state, ctx)).loss) for one in batches]
        return {"val_loss": sum(losses) / len(losses)}


class EvaluatesWithTheBatchNormOn(Good):
    """Running means move with each evaluation."""

    def evaluate(self, batches: Iterable[pa.RecordBatch], state: Any, ctx: Context) -> dict[str, float]:
        with torch.no_grad():
            losses = [float(self.loss(state.model, self.prepare_batch(one, state, ctx)).loss) for one in batches]
        return {"val_loss": sum(losses) / len(losses)}


class SavesAndCounts(Good):
    """Asking for its state changes it."""

    saves = 0

    def state_dict(self, state: Any) -> dict[str, Any]:
        self.saves += 1
        return {**super().state_dict(state), "saves": self.saves}

    def load_state_dict(self, state: Any, payload: dict[str, Any], ctx: Context) -> None:
        self.saves = payload["saves"]
        super().load_state_dict(state, payload, ctx)


class TrainsLessWhenItEvaluated(Good):
    """What evaluate leaves in `self` changes the steps after it."""

    def setup(self, ctx: Context) -> None:
        self.factor = 1.0

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
        step = super().loss(model, batch)
        return Step(step.loss * self.factor if model.training else step.loss, {}, step.count)

    def evaluate(self, batches: Iterable[pa.RecordBatch], state: Any, ctx: Context) -> dict[str, float]:
        self.factor = 0.5
        return super().evaluate(batches, state, ctx)

    def state_dict(self, state: Any) -> dict[str, Any]:
        return {**super().state_dict(state), "factor": self.factor}

    def load_state_dict(self, state: Any, payload: dict[str, Any], ctx: Context) -> None:
        self.factor = payload["factor"]
        super().load_state_dict(state, payload, ctx)


class LearnsNothing(Good):
    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
        step = super().loss(model, batch)
        return Step(step.loss.detach() + 0.0 * step.loss, {}, step.count)


class UpdatesBeforeItLooks(Good):
    """A weight that a refused step leaves changed."""

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
        if model.training:
            with torch.no_grad():
                model[0].bias += 0.001
        return super().loss(model, batch)


class StoresALambda(Good):
    def state_dict(self, state: Any) -> dict[str, Any]:
        return {**super().state_dict(state), "schedule": [lambda step: step]}


class ByHand:
    """Six hooks, and no evaluation."""

    columns = ("x", "y")

    def setup(self, ctx: Context) -> None: ...

    def configure(self, ctx: Context) -> dict[str, Any]:
        model = nn.Linear(4, 1)
        return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.05)}

    def prepare_batch(self, raw_batch: pa.RecordBatch, state: Any, ctx: Context) -> dict[str, Tensor]:
        return ctx.tensors(raw_batch)

    def train_step(self, batch: Any, state: Any, ctx: Context) -> StepResult:
        loss = (state["model"](batch["x"]).squeeze(1) - batch["y"]).square().mean()
        state["optimizer"].zero_grad()
        loss.backward()
        state["optimizer"].step()
        return StepResult({"train_loss": loss})

    def state_dict(self, state: Any) -> dict[str, Any]:
        return {name: one.state_dict() for name, one in state.items()}

    def load_state_dict(self, state: Any, payload: dict[str, Any], ctx: Context) -> None:
        for name, one in state.items():
            one.load_state_dict(payload[name])


class ReportsNaN(ByHand):
    def train_step(self, batch: Any, state: Any, ctx: Context) -> StepResult:
        result = super().train_step(batch, state, ctx)
        return StepResult({**result.metrics, "speed": float("nan") if ctx.step == 3 else 1.0})


class LacksAHook:
    setup = ByHand.setup
    configure = ByHand.configure


class TakesTooMuch(ByHand):
    def train_step(self, batch: Any, state: Any, ctx: Context, scaler: Any) -> StepResult:  # type: ignore[override]
        return super().train_step(batch, state, ctx)
