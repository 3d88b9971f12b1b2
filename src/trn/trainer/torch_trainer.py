"""The short way to a trainer: say what the model and the loss are, and get the six hooks.

    class Regressor(TorchTrainer):
        columns = ("x", "y")

        def build(self, ctx):
            return nn.Linear(8, 1)

        def loss(self, model, batch):
            return Step(nn.functional.mse_loss(model(batch["x"]), batch["y"]), count=len(batch["y"]))

A step: micro-batches forward and backward -> sums over the ranks -> finite? (loss and true global gradient norm)
-> clip -> update. A value that is not finite is refused before the optimizer moves, on all ranks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pyarrow as pa
import torch
from torch import Tensor, nn

from trn.errors import NumericalInstability, TrainerError
from trn.gates import require_finite
from trn.trainer.contract import Context, StepResult, Trainer
from trn.trainer.fused import update
from trn.trainer.micro_batches import split_batch
from trn.trainer.optimizers import build_optimizer
from trn.trainer.schedules import lr_at
from trn.trainer.together import Sums, add_up, add_up_with_gradients, share_buffers

__all__ = ["NoParams", "Step", "TorchState", "TorchTrainer", "has_own_transform"]

Batch = Mapping[str, Tensor]

_NAMED_FIRST = ("train_loss", "grad_norm")
"""Of several values that are not finite, the one that says most about why is named."""


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
    step: int = 0
    """The last step that was made."""


class TorchTrainer(ABC):
    """Give `build` and `loss`; the rest has a meaning already, and `transform` and `sample` may be added.

    `Params` is a frozen dataclass that the spec's `hyperparams` must fit; `columns` are read when the spec names
    none; `counts` says what `Step.count` counts: with "tokens" the journal has tokens_per_sec and tokens_seen.
    """

    Params: ClassVar[type] = NoParams
    columns: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[Literal["samples", "tokens"]] = "samples"
    cross_entropy: ClassVar[bool] = False
    """Whether the loss is a mean cross-entropy in nats: then a gate ends the run when its val_loss diverges."""
    honours: ClassVar[frozenset[str]] = frozenset({"optimizer", "schedule", "clip_grad_norm", "guard", "ddp"})

    @abstractmethod
    def build(self, ctx: Context) -> nn.Module:
        """The model, on any device; weights drawn from torch's global generator are reproducible by the seed."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Step:
        """Mean loss of one micro-batch. In evaluation it is called without gradients, with `model.eval()`."""

    def vocab_size(self, params: Any) -> int | None:
        """How many classes a cross-entropy tells apart, for the cap of a first validation; None: no such cap."""
        return None

    def transform(self, raw_batch: pa.RecordBatch, ctx: Context) -> Batch:
        """Rows to tensors, all with the rows as their first dimension; by default the columns as they are.

        It may run in a worker: see the contract.
        """
        return ctx.tensors(raw_batch)

    def setup(self, ctx: Context) -> None:  # noqa: B027 - a hook of the contract; most trainers need nothing here
        """Nothing to prepare: the runner has seeded and set threads."""

    def configure(self, ctx: Context) -> TorchState:
        model = self.build(ctx)
        if not isinstance(model, nn.Module):
            raise TrainerError(f"build() returned {type(model).__name__}; expected a torch.nn.Module.")
        model.to(ctx.device)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not parameters:
            raise TrainerError("the model of build() has no parameter with a gradient.")
        assert ctx.plan.optimizer is not None, "the plan of a TorchTrainer has an optimizer"
        return TorchState(model, build_optimizer(ctx.plan.optimizer, parameters), parameters)

    def prepare_batch(self, raw_batch: pa.RecordBatch | Batch, state: TorchState, ctx: Context) -> Batch:
        """On the device: rows, or what `transform` made of them."""
        batch = self.transform(raw_batch, ctx) if isinstance(raw_batch, pa.RecordBatch) else raw_batch
        return {name: tensor.to(ctx.device) for name, tensor in batch.items()}

    def train_step(self, batch: Batch, state: TorchState, ctx: Context) -> StepResult:
        plan = ctx.plan
        assert plan.optimizer is not None, "the plan of a TorchTrainer has an optimizer"
        assert plan.schedule is not None, "the plan of a TorchTrainer has a schedule"
        optimizer = state.optimizer
        # a forward pass moves buffers (the means of a batch norm), and a refused step must leave them as they were
        buffers = [(one, one.clone()) for one in state.model.buffers()] if plan.guard.policy == "skip" else []
        for parameter in state.parameters:
            parameter.grad = None
        if ctx.world_size == 1:
            loss, count, metrics = self._backward(batch, state, plan.optimizer.accumulate)
        else:
            loss, count, metrics = self._backward_together(batch, state, ctx, plan.optimizer.accumulate)
        gradients = [p.grad for p in state.parameters if p.grad is not None]
        if not gradients:
            raise TrainerError("no parameter got a gradient from the loss.")
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        lr = lr_at(plan.schedule, ctx.step - 1) * ctx.lr_factor
        metrics |= {"train_loss": loss, "grad_norm": norm.item(), "lr": lr}
        # what is no number at all is told by the loop
        bad = [name for name, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)]
        if bad:
            for buffer, before in buffers:
                buffer.copy_(before)
            first = next((name for name in _NAMED_FIRST if name in bad), bad[0])
            raise NumericalInstability(step=ctx.step, field=first, value=metrics[first])
        if plan.clip_grad_norm is not None:
            # as torch.nn.utils.clip_grad_norm_ does it, in 2 calls instead of 60
            torch._foreach_mul_(gradients, torch.clamp(plan.clip_grad_norm / (norm + 1e-6), max=1.0))
        for group in optimizer.param_groups:
            group["lr"] = lr
        update(optimizer)
        share_buffers(ctx.ranks, state.model)
        state.step = ctx.step
        metrics["lr"] = float(optimizer.param_groups[0]["lr"])
        return StepResult(metrics, tokens=count if self.counts == "tokens" else None)

    def state_dict(self, state: TorchState) -> dict[str, Any]:
        """Model, optimizer, and the versions that modules declare. Raises NumericalInstability for broken weights."""
        norms = torch._foreach_norm([parameter.detach() for parameter in state.parameters])
        require_finite(state.step, "the weights after the update", torch.stack(list(norms)).sum().item())
        weights = state.model.state_dict()
        declared = getattr(weights, "_metadata", {})
        versions = {prefix: local.get("version") for prefix, local in declared.items()}
        return {"model": dict(weights), "versions": versions, "optimizer": state.optimizer.state_dict()}

    def load_state_dict(self, state: TorchState, payload: dict[str, Any], ctx: Context) -> None:
        weights = OrderedDict(payload["model"])
        # a module that migrates old weights asks for the version that they were saved with
        versions = {prefix: {"version": version} for prefix, version in payload["versions"].items()}
        weights._metadata = OrderedDict(versions)  # type: ignore[attr-defined]  # where torch keeps it
        state.model.load_state_dict(weights, strict=True)
        _load_optimizer(state.optimizer, payload["optimizer"])

    def evaluate(self, batches: Iterable[pa.RecordBatch], state: TorchState, ctx: Context) -> dict[str, float]:
        """Means over all batches, weighted by count: `val_loss`, and `val_NAME` for each metric of `loss`."""
        own = Sums()
        modes = [(module, module.training) for module in state.model.modules()]
        state.model.eval()
        try:
            with torch.no_grad():
                for raw_batch in batches:
                    step = _checked(self.loss(state.model, self.prepare_batch(raw_batch, state, ctx)))
                    found = {"loss": step.loss, **step.metrics}.items() if step.count else ()
                    own.add(step.count, {f"val_{name}": _number(value) for name, value in found})
        finally:
            for module, mode in modes:
                module.training = mode
        return add_up(ctx.ranks, own).means()

    def _backward(self, batch: Batch, state: TorchState, accumulate: int) -> tuple[float, int, dict[str, Any]]:
        """Gradients of the mean over all micro-batches; returns (mean loss, count, mean metrics)."""
        if accumulate == 1:
            step = _checked(self.loss(state.model, batch))
            if step.count == 0:
                raise TrainerError("every row of the batch has weight 0: there is nothing to learn from.")
            step.loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
            return step.loss.item(), step.count, {name: _number(value) for name, value in step.metrics.items()}
        sums = self._backward_of_sums(batch, state, accumulate)
        if sums.count == 0:
            raise TrainerError("every row of the batch has weight 0: there is nothing to learn from.")
        gradients = [p.grad for p in state.parameters if p.grad is not None]
        torch._foreach_div_(gradients, float(sums.count))
        means = sums.means()
        return means.pop("loss"), sums.count, means

    def _backward_together(
        self, batch: Batch, state: TorchState, ctx: Context, accumulate: int
    ) -> tuple[float, int, dict[str, Any]]:
        """The same, over the rows of all ranks; of a short batch, a rank may have none."""
        sums = add_up_with_gradients(ctx.ranks, self._backward_of_sums(batch, state, accumulate), state.parameters)
        means = sums.means()
        return means.pop("loss"), sums.count, means

    def _backward_of_sums(self, batch: Batch, state: TorchState, accumulate: int) -> Sums:
        """Gradients of sums over all micro-batches: divided by a count, the mean, whatever the count of each part."""
        sums = Sums()
        for micro in split_batch(batch, accumulate):
            step = _checked(self.loss(state.model, micro))
            if step.count == 0:
                continue  # the mean of nothing is no number, and weighs nothing
            (step.loss * step.count).backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
            found = {"loss": step.loss, **step.metrics}
            sums.add(step.count, {name: _number(value) for name, value in found.items()})
        return sums


def has_own_transform(trainer: Trainer) -> bool:
    """Whether a trainer has the hook `transform`: any but TorchTrainer's, which gives out the columns as they are."""
    transform = getattr(trainer, "transform", None)
    return callable(transform) and getattr(transform, "__func__", transform) is not TorchTrainer.transform


def _checked(step: Step) -> Step:
    """A step whose count is a plain number. Raises TrainerError for what is no Step."""
    if not isinstance(step, Step):
        raise TrainerError(f"loss() returned {type(step).__name__}; expected a Step.")
    if "loss" in step.metrics:
        raise TrainerError("it stands for the loss itself; give yours another name.", where="metric 'loss'")
    count = step.count.item() if isinstance(step.count, Tensor) else step.count
    return Step(step.loss, step.metrics, int(count))


def _load_optimizer(optimizer: torch.optim.Optimizer, payload: dict[str, Any]) -> None:
    """Give an optimizer its state back to the bit.

    torch casts every state tensor to its parameter's type; where that was another one (nadam, asgd), the saved tensor
    is put back. Clones: the optimizer keeps what it is given, and must not stay tied to a mapped checkpoint file.
    """
    saved = _cloned(payload)
    optimizer.load_state_dict(saved)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    for index, parameter in zip(indices, parameters, strict=True):
        for name, value in saved["state"].get(index, {}).items():
            live = optimizer.state[parameter][name]
            if isinstance(value, Tensor) and live.dtype != value.dtype:
                optimizer.state[parameter][name] = value.to(live.device)


def _number(value: Tensor | float) -> float:
    return value.item() if hasattr(value, "item") else value


def _cloned(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.clone()
    if isinstance(tree, dict):
        return {key: _cloned(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_cloned(value) for value in tree)
    return tree
