"""The short way to a trainer: say what the model and the loss are, and get the six hooks.

    class Regressor(TorchTrainer):
        columns = ("x", "y")

        def build(self, ctx):
            return nn.Linear(8, 1)

        def loss(self, model, batch):
            return Step(nn.functional.mse_loss(model(batch["x"]), batch["y"]), count=len(batch["y"]))

A step: micro-batches forward and backward -> finite? (loss and true global gradient norm) -> clip -> update. A value
that is not finite is refused before the optimizer moves.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trn.errors import TrainerError
from trn.gates import require_finite
from trn.trainer.contract import Context, StepResult
from trn.trainer.optimizers import build_optimizer
from trn.trainer.schedules import lr_at

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["NoParams", "Step", "TorchState", "TorchTrainer"]

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class NoParams:
    """The parameters of a trainer that has none."""


@dataclass(frozen=True)
class Step:
    """What `loss` returns: a mean, and over how many things it is the mean.

    `loss` is a 0-d tensor with a gradient; `metrics` are means over the same `count` things. Means of micro-batches
    and ranks are combined by `count`.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    count: int = 1


@dataclass
class TorchState:
    """What TorchTrainer trains: handed to every hook as `state`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]


class TorchTrainer(ABC):
    """Give `build` and `loss`; the rest has a meaning already, and `transform` and `sample` may be added.

    `Params` is a frozen dataclass that the spec's `hyperparams` must fit; `columns` are read when the spec names
    none; `counts` says what `Step.count` counts: with "tokens" the journal has tokens_per_sec and tokens_seen.
    """

    Params: ClassVar[type] = NoParams
    columns: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[Literal["samples", "tokens"]] = "samples"
    honours: ClassVar[frozenset[str]] = frozenset({"optimizer", "schedule", "clip_grad_norm"})

    @abstractmethod
    def build(self, ctx: Context) -> nn.Module:
        """The model, on any device; weights drawn from torch's global generator are reproducible by the seed."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Step:
        """Mean loss of one micro-batch. In evaluation it is called without gradients, with `model.eval()`."""

    def transform(self, raw_batch: pa.RecordBatch, ctx: Context) -> Batch:
        """Rows to tensors, all with the rows as their first dimension; by default the columns as they are."""
        return ctx.tensors(raw_batch)

    def setup(self, ctx: Context) -> None:  # noqa: B027 - a hook of the contract; most trainers need nothing here
        """Nothing to prepare: the runner has seeded and set threads."""

    def configure(self, ctx: Context) -> TorchState:
        model = self.build(ctx)
        if not isinstance(model, nn.Module):
            raise TrainerError(f"build() returned {type(model).__name__}; expected a torch.nn.Module.")
        model.to(ctx.device).train()
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not parameters:
            raise TrainerError("the model of build() has no parameter with a gradient.")
        assert ctx.plan.optimizer is not None, "the plan of a TorchTrainer has an optimizer"
        return TorchState(model, build_optimizer(ctx.plan.optimizer, parameters), parameters)

    def prepare_batch(self, raw_batch: pa.RecordBatch, state: TorchState, ctx: Context) -> Batch:
        batch = self.transform(raw_batch, ctx)
        return {name: tensor.to(ctx.device) for name, tensor in batch.items()}

    def train_step(self, batch: Batch, state: TorchState, ctx: Context) -> StepResult:
        plan = ctx.plan
        assert plan.optimizer is not None, "the plan of a TorchTrainer has an optimizer"
        assert plan.schedule is not None, "the plan of a TorchTrainer has a schedule"
        optimizer = state.optimizer
        optimizer.zero_grad(set_to_none=True)
        loss, count, metrics = self._backward(batch, state, plan.optimizer.accumulate)
        gradients = [p.grad for p in state.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        grad_norm = norm.item()
        require_finite(ctx.step, "train_loss", loss)
        require_finite(ctx.step, "grad_norm", grad_norm)
        if plan.clip_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(state.parameters, plan.clip_grad_norm, norm)
        lr = lr_at(plan.schedule, ctx.step - 1)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        lr = float(optimizer.param_groups[0]["lr"])
        metrics |= {"train_loss": loss, "grad_norm": grad_norm, "lr": lr}
        return StepResult(metrics, tokens=count if self.counts == "tokens" else None)

    def state_dict(self, state: TorchState) -> dict[str, Any]:
        return {"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}

    def load_state_dict(self, state: TorchState, payload: dict[str, Any], ctx: Context) -> None:
        state.model.load_state_dict(payload["model"], strict=True)
        # the optimizer keeps the tensors it is given; ours must not stay tied to a mapped checkpoint file
        state.optimizer.load_state_dict(_cloned(payload["optimizer"]))

    def evaluate(self, batches: Iterable[pa.RecordBatch], state: TorchState, ctx: Context) -> dict[str, float]:
        """Means over all batches, weighted by count: `val_loss`, and `val_NAME` for each metric of `loss`."""
        sums: dict[str, float] = {}
        count = 0
        state.model.eval()
        try:
            with torch.no_grad():
                for raw_batch in batches:
                    step = self.loss(state.model, self.prepare_batch(raw_batch, state, ctx))
                    count += step.count
                    for name, value in {"loss": step.loss, **step.metrics}.items():
                        sums[f"val_{name}"] = sums.get(f"val_{name}", 0.0) + _number(value) * step.count
        finally:
            state.model.train()
        return {name: total / count for name, total in sums.items()} if count else {}

    def _backward(self, batch: Batch, state: TorchState, accumulate: int) -> tuple[float, int, dict[str, Any]]:
        """Gradients of the mean over all micro-batches; returns (mean loss, count, mean metrics)."""
        if accumulate == 1:
            step = self.loss(state.model, batch)
            step.loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
            return step.loss.item(), step.count, dict(step.metrics)
        loss, count = 0.0, 0
        metrics: dict[str, Any] = {}
        for micro in _split(batch, accumulate):
            step = self.loss(state.model, micro)
            # gradients of sums, divided by the total count below: the mean over all, whatever each part's count
            (step.loss * step.count).backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
            loss += step.loss.item() * step.count
            count += step.count
            for name, value in step.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + _number(value) * step.count
        gradients = [p.grad for p in state.parameters if p.grad is not None]
        torch._foreach_div_(gradients, float(count))
        return loss / count, count, {name: value / count for name, value in metrics.items()}


def _number(value: Tensor | float) -> float:
    return value.item() if isinstance(value, Tensor) else value


def _split(batch: Batch, parts: int) -> list[Batch]:
    rows = len(next(iter(batch.values())))
    edges = [rows * part // parts for part in range(parts + 1)]
    return [
        {name: tensor[low:high] for name, tensor in batch.items()}
        for low, high in itertools.pairwise(edges)
        if high > low
    ]


def _cloned(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.clone()
    if isinstance(tree, dict):
        return {key: _cloned(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_cloned(value) for value in tree)
    return tree
