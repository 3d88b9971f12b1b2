"""How large a trainer's model, gradients and optimizer are, found without making them.

The model is built on torch's meta device, whose tensors have shapes and no memory; so a model of any size is measured
in its building time. Only for a TorchTrainer as it is: what another trainer makes, only a run can show. `setup` is not
called, since it may read, write and take long.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trn.checkpoint.snapshot import PAGE_BYTES
from trn.feed.tensors import to_tensors
from trn.files import free_bytes
from trn.plan.device import torch_device
from trn.plan.forecast import Forecast, Sizes, few_tokens, forecast_of, row_length, rows_read
from trn.plan.params import make_params
from trn.spec.plan_model import OptimizerPlan, Plan
from trn.spec.words import printable
from trn.trainer import Context, TorchTrainer, Trainer
from trn.trainer.optimizers import build_optimizer

__all__ = ["make_forecast", "sizes_of", "tokens_per_row", "warn_of_few_tokens"]

_HEAD_BYTES = 90
"""Before the bytes of a tensor in a torch file, measured."""


def make_forecast(plan: Plan, trainer: Trainer) -> Forecast:
    """What the run of the plan will take. Writes nothing; a stranger's `build` is called, and may print."""
    unknown: dict[str, str] = {}
    notes: list[str] = []
    sizes = None
    if not isinstance(trainer, TorchTrainer) or type(trainer).configure is not TorchTrainer.configure:
        unknown["parameters"] = "what this trainer's own `configure` makes, only a run can show"
    else:
        try:
            model, notes = _build(trainer, _context(plan, trainer))
            assert plan.optimizer is not None, "the plan of a TorchTrainer has an optimizer"
            sizes = sizes_of(model, plan.optimizer, has_average=plan.ema is not None)
        except Exception as error:  # noqa: BLE001 - a stranger's code: whatever it raises, the plan is still good
            unknown["parameters"] = f"making and measuring its model raised {_told(error)}"
    per_row = tokens_per_row(plan, trainer)
    if per_row is None:
        is_counted = plan.trainer.counts == "tokens"
        unknown["tokens"] = "the data have no one list of fixed length" if is_counted else "the trainer counts samples"
    runs_dir = Path(plan.runs_dir)
    nearest = next(folder for folder in (runs_dir, *runs_dir.parents) if folder.is_dir())
    return forecast_of(
        plan, sizes, tokens_per_row=per_row, free_bytes=free_bytes(nearest), unknown=unknown, notes=notes
    )


def warn_of_few_tokens(plan: Plan, trainer: Trainer, model: nn.Module) -> str | None:
    """What the forecast says of too little text, for a model that is there; None where there is nothing to say."""
    per_row = tokens_per_row(plan, trainer)
    if per_row is None:
        return None
    return few_tokens(plan, rows_read(plan) * per_row, sum(parameter.numel() for parameter in model.parameters()))


def tokens_per_row(plan: Plan, trainer: Trainer) -> int | None:
    """How many tokens a row counts for: as many as its list is long, unless the trainer has a `tokens_of` to say."""
    length = row_length(plan.dataset) if plan.trainer.counts == "tokens" else None
    if length is None:
        return None
    tokens_of: Any = getattr(trainer, "tokens_of", None)
    return length if tokens_of is None else int(tokens_of(length))


def _context(plan: Plan, trainer: Trainer) -> Context:
    return Context(
        plan=plan,
        params=make_params(trainer, plan.trainer.params),
        device=torch_device(plan.device),
        run_dir=Path(plan.run_dir),
        cancelled=lambda: False,
        tensors=to_tensors,
    )


def _build(trainer: TorchTrainer, ctx: Context) -> tuple[nn.Module, list[str]]:
    """The model, without memory where its `build` can do that; and what to say of it."""
    notes = []
    if type(trainer).state_dict is not TorchTrainer.state_dict:
        notes.append("this trainer has a `state_dict` of its own: checkpoints may hold more than model and optimizer.")
    try:
        with torch.device("meta"):
            return trainer.build(ctx), notes
    except Exception as error:  # noqa: BLE001 - a stranger's code that needs values, not only shapes
        notes.append(f"the model was really made to be measured: without memory, `build` raised {_told(error)}")
    return trainer.build(ctx), notes


def sizes_of(model: nn.Module, optimizer: OptimizerPlan, *, has_average: bool = False) -> Sizes:
    """The sizes of a model on any device, with the state that the optimizer has after its first step."""
    parameters = list(model.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    saved = {id(one): one for one in model.state_dict(keep_vars=True).values() if isinstance(one, Tensor)}
    state = _optimizer_state(optimizer, trainable)
    average = [_averaged_size(one) for one in saved.values()] if has_average else []
    in_file = [*map(_size, saved.values()), *state, *average]
    return Sizes(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in trainable),
        weights_bytes=_bytes([*parameters, *model.buffers()]),
        gradients_bytes=_bytes(trainable),
        optimizer_bytes=sum(state),
        average_bytes=sum(average),
        saved_bytes=sum(in_file),
        saved_tensors=len(in_file),
        file_bytes=sum(-(-(size + _HEAD_BYTES) // PAGE_BYTES) * PAGE_BYTES for size in in_file),
    )


def _optimizer_state(plan: OptimizerPlan, parameters: Sequence[nn.Parameter]) -> list[int]:
    """Bytes of each tensor that the optimizer keeps: one parameter of each shape makes one step."""
    kinds = Counter((tuple(parameter.shape), parameter.dtype) for parameter in parameters)
    sizes: list[int] = []
    for (shape, dtype), count in kinds.items():
        try:
            state = _state_after_a_step(plan, shape, dtype, "meta")
        except RuntimeError:  # asgd and adafactor look at values
            state = _state_after_a_step(plan, shape, dtype, "cpu")
        sizes += [_size(tensor) for tensor in state] * count
    return sizes


def _state_after_a_step(plan: OptimizerPlan, shape: Sequence[int], dtype: torch.dtype, device: str) -> list[Tensor]:
    parameter = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))
    # the fused kernels keep the same state, and do not exist on this device
    optimizer = build_optimizer(plan.model_copy(update={"fused": False}), [parameter])
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(map(_size, tensors))


def _size(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()


def _averaged_size(tensor: Tensor) -> int:
    """Of its moving average, which is in float32 at the least."""
    wide = torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype
    return math.prod(tensor.shape) * wide.itemsize


def _told(error: Exception) -> str:
    """An exception on one line."""
    text = str(error).strip()
    return printable(f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__)
