"""The short way to a trainer: say what the model and the loss are, and get the six hooks.

    class Regressor(TorchTrainer):
        columns = ("x", "y")

        def build(self, ctx):
            return nn.Linear(8, 1)

        def loss(self, model, batch):
            return Step(nn.functional.mse_loss(model(batch["x"]), batch["y"]), count=len(batch["y"]))

A step: micro-batches forward and backward -> sums over the ranks -> finite? (loss and true global gradient norm)
-> clip -> update -> average. A value that is not finite is refused before the optimizer moves, on all ranks; a scaled
loss whose gradients are too large is scaled down, and the step made again.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import pyarrow as pa
import torch
from torch import nn

from trn.errors import NumericalInstability, ResumeRefused, TrainerError
from trn.gates import require_finite
from trn.trainer.activations import checkpoint_activations
from trn.trainer.averaging import Average, hold_buffers, make_buffers_writable, put_back_buffers
from trn.trainer.compiling import Compiled
from trn.trainer.contract import Context, StepResult, Trainer
from trn.trainer.fused import update
from trn.trainer.gradients import find_gradients
from trn.trainer.groups import Group, applied_rate, group_parameters, set_learning_rates
from trn.trainer.losses import Batch, Step, call_loss, plain_number
from trn.trainer.optimizers import build_optimizer, load_optimizer
from trn.trainer.scaling import LossScale, ScaleOverflow
from trn.trainer.schedules import Rates
from trn.trainer.together import Sums, add_up, share_buffers
from trn.trainer.weights import load_weights

__all__ = ["NoParams", "Step", "TorchState", "TorchTrainer", "has_own_transform"]

_NAMED_FIRST = ("train_loss", "grad_norm")
"""Of several values that are not finite, the one that says most about why is named."""


@dataclass(frozen=True)
class NoParams:
    """The parameters of a trainer that has none."""


@dataclass
class TorchState:
    """What TorchTrainer trains: handed to every hook as `state`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    step: int = 0
    """The last step that was made."""
    scale: LossScale | None = None
    """Of the loss; None but for precision: fp16."""
    average: Average | None = None
    """Of the weights; None without `ema`."""
    groups: list[Group] = field(default_factory=list)
    """Those of the optimizer, in its order."""
    rates: Rates | None = None
    """The learning rate of each step."""
    compiled: Compiled | None = None
    """The model as the loss gets it; None without `compile`."""

    def run(self, batch: Batch, work: Callable[[nn.Module], Any]) -> Any:
        """`work` with the model as the loss gets it."""
        return work(self.model) if self.compiled is None else self.compiled.run(batch, work)


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
    honours: ClassVar[frozenset[str]] = frozenset(
        {
            "optimizer",
            "schedule",
            "clip_grad_norm",
            "guard",
            "ddp",
            "precision",
            "ema",
            "compile",
            "weights",
            "activation_checkpointing",
        }
    )

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
        make_buffers_writable(model)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not parameters:
            raise TrainerError("the model of build() has no parameter with a gradient.")
        plan = ctx.plan
        assert plan.optimizer is not None, "the plan of a TorchTrainer has an optimizer"
        assert plan.schedule is not None, "the plan of a TorchTrainer has a schedule"
        if plan.weights is not None and ctx.is_new:
            ctx.report("weights_loaded", **load_weights(plan.weights, model).to_json())
        checkpoint_activations(model, plan.activation_checkpointing)
        groups = group_parameters(plan.optimizer, model)
        optimizer = build_optimizer(plan.optimizer, groups)
        return TorchState(
            model,
            optimizer,
            parameters,
            groups=groups,
            rates=Rates(plan.schedule),
            compiled=None if plan.compile is None else Compiled(plan.compile, model, ctx.report),
            scale=None if plan.loss_scale is None else LossScale(plan.loss_scale.initial),
            average=None if plan.ema is None else Average(model, plan.ema.decay),
        )

    def prepare_batch(self, raw_batch: pa.RecordBatch | Batch, state: TorchState, ctx: Context) -> Batch:
        """On the device: rows, or what `transform` made of them. A copy where the step may be made again (fp16)."""
        batch = self.transform(raw_batch, ctx) if isinstance(raw_batch, pa.RecordBatch) else raw_batch
        copy = state.scale is not None
        return {name: tensor.to(ctx.device, copy=copy) for name, tensor in batch.items()}

    def train_step(self, batch: Batch, state: TorchState, ctx: Context) -> StepResult:
        plan = ctx.plan
        assert plan.optimizer is not None, "the plan of a TorchTrainer has an optimizer"
        assert state.rates is not None, "a state that configure made has its rates"
        scale = None if state.scale is None else state.scale.now
        # a forward pass moves buffers (the means of a batch norm), and a refused step must leave them as they were
        may_undo = plan.guard.policy == "skip" or scale is not None
        buffers = hold_buffers(state.model) if may_undo else []
        for parameter in state.parameters:
            parameter.grad = None
        options: dict[str, Any] = {"accumulate": plan.optimizer.accumulate, "scale": scale}
        find: Any = partial(find_gradients, self.loss, parameters=state.parameters, batch=batch, ctx=ctx, **options)
        try:
            loss, count, metrics = state.run(batch, find)
        except NumericalInstability:  # of the trainer's own judgement
            put_back_buffers(buffers)
            state.scale = None if state.scale is None else state.scale.after_refusal()
            raise
        if state.compiled is not None:
            state.compiled.agree(ctx.ranks)
        gradients = [p.grad for p in state.parameters if p.grad is not None]
        if not gradients:
            raise TrainerError("no parameter got a gradient from the loss.")
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        lr = state.rates.at(ctx.step - 1) * ctx.lr_factor
        metrics |= {"train_loss": loss, "grad_norm": norm.item(), "lr": lr}
        if scale is not None:
            metrics["loss_scale"] = scale
        # what is no number at all is told by the loop
        bad = [name for name, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)]
        if bad:
            put_back_buffers(buffers)
            raise _refusal(state, ctx.step, {name: metrics[name] for name in bad})
        _update(state, ctx, gradients, norm, lr)
        metrics["lr"] = applied_rate(state.optimizer, state.groups, lr)
        return StepResult(metrics, tokens=count if self.counts == "tokens" else None)

    def state_dict(self, state: TorchState) -> dict[str, Any]:
        """Model, optimizer, what `ema` and fp16 add, and the versions that modules declare.

        Raises NumericalInstability for broken weights.
        """
        norms = torch._foreach_norm([parameter.detach() for parameter in state.parameters])
        require_finite(state.step, "the weights after the update", torch.stack(list(norms)).sum().item())
        weights = state.model.state_dict()
        declared = getattr(weights, "_metadata", {})
        versions = {prefix: local.get("version") for prefix, local in declared.items()}
        payload = {"model": dict(weights), "versions": versions, "optimizer": state.optimizer.state_dict()}
        if state.average is not None:
            payload["ema"] = state.average.state_dict()
        if state.scale is not None:
            payload["loss_scale"] = state.scale.to_json()
        if state.rates is not None and (rates := state.rates.state_dict()) is not None:
            payload["schedule"] = rates
        if state.compiled is not None:
            payload["compile"] = state.compiled.state_dict()
        return payload

    def load_state_dict(self, state: TorchState, payload: dict[str, Any], ctx: Context) -> None:
        weights = OrderedDict(payload["model"])
        # a module that migrates old weights asks for the version that they were saved with
        versions = {prefix: {"version": version} for prefix, version in payload["versions"].items()}
        weights._metadata = OrderedDict(versions)  # type: ignore[attr-defined]  # where torch keeps it
        state.model.load_state_dict(weights, strict=True)
        load_optimizer(state.optimizer, payload["optimizer"])
        for key, part in {"ema": state.average, "loss_scale": state.scale}.items():
            if (part is not None) != (key in payload):
                raise ResumeRefused(f"the checkpoint has {'none' if part else 'one'}, unlike the plan.", where=key)
        if state.average is not None:
            state.average.load_state_dict(payload["ema"])
        if state.scale is not None:
            state.scale = LossScale.from_json(payload["loss_scale"])
        if state.rates is not None:
            state.rates.load_state_dict(payload.get("schedule"))
        if state.compiled is not None:
            state.compiled.load_state_dict(payload["compile"])

    def averaged(self, state: TorchState) -> AbstractContextManager[None]:
        """Inside `with`, `state.model` is the moving average of its weights; without `ema` it is as it is.

        Nothing is copied. Do not train, save or load inside.
        """
        return nullcontext() if state.average is None else state.average.in_model()

    def evaluate(self, batches: Iterable[pa.RecordBatch], state: TorchState, ctx: Context) -> dict[str, float]:
        """Means over all batches, weighted by count: `val_loss`, and `val_NAME` for each metric of `loss`.

        Of the averaged weights where the plan's `ema.evaluate` says so.
        """
        own = Sums()
        modes = [(module, module.training) for module in state.model.modules()]
        state.model.eval()
        is_of_average = ctx.plan.ema is not None and ctx.plan.ema.evaluate
        try:
            with torch.no_grad(), self.averaged(state) if is_of_average else nullcontext():
                for raw_batch in batches:
                    batch = self.prepare_batch(raw_batch, state, ctx)
                    step: Step = state.run(batch, partial(call_loss, self.loss, batch=batch, ctx=ctx))
                    found = {"loss": step.loss, **step.metrics}.items() if step.count else ()
                    own.add(step.count, {f"val_{name}": plain_number(name, value) for name, value in found})
        finally:
            for module, mode in modes:
                module.training = mode
        if state.compiled is not None:
            state.compiled.agree(ctx.ranks)
        return add_up(ctx.ranks, own).means()

    def evaluated(self, metrics: Mapping[str, float], state: TorchState, ctx: Context) -> None:
        """An evaluation of the run came to its end: reduce_on_plateau follows the metric of the best checkpoint."""
        if state.rates is not None and state.rates.follows_evaluations:
            assert ctx.plan.checkpoint.best_metric is not None, "a plan with validation has a best"
            state.rates.observe(metrics[ctx.plan.checkpoint.best_metric], ctx.step)


def _update(state: TorchState, ctx: Context, gradients: list[torch.Tensor], norm: torch.Tensor, lr: float) -> None:
    """All that an accepted step changes: weights and moments, buffers of other ranks, average, scale."""
    plan = ctx.plan
    if plan.clip_grad_norm is not None:
        # as torch.nn.utils.clip_grad_norm_ does it, in 2 calls instead of 60
        torch._foreach_mul_(gradients, torch.clamp(plan.clip_grad_norm / (norm + 1e-6), max=1.0))
    set_learning_rates(state.optimizer, state.groups, lr)
    update(state.optimizer)
    share_buffers(ctx.ranks, state.model)
    if state.average is not None:
        state.average.update()
    if state.scale is not None and plan.loss_scale is not None:
        state.scale = state.scale.after_update(plan.loss_scale.growth_interval)
    state.step = ctx.step


def _refusal(state: TorchState, step: int, bad: Mapping[str, float]) -> NumericalInstability:
    """Why a step was refused; the scale is then as before it, or, where it may be what is to blame, smaller."""
    field = next((name for name in _NAMED_FIRST if name in bad), next(iter(bad)))
    if state.scale is not None:
        if bad.keys() == {"grad_norm"} and state.scale.can_shrink():
            state.scale = state.scale.after_overflow()
            return ScaleOverflow(step=step, value=bad[field], scale=state.scale.now)
        state.scale = state.scale.after_refusal()
    return NumericalInstability(step=step, field=field, value=bad[field])


def has_own_transform(trainer: Trainer) -> bool:
    """Whether a trainer has the hook `transform`: any but TorchTrainer's, which gives out the columns as they are."""
    transform = getattr(trainer, "transform", None)
    return callable(transform) and getattr(transform, "__func__", transform) is not TorchTrainer.transform
