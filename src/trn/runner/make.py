"""What is trained, made on each rank alike: before anything of a run is changed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trn.checkpoint import rng
from trn.checkpoint.meta import CheckpointMeta
from trn.errors import PlanRefused, ResumeRefused, TrainerError, TrnError
from trn.feed.tensors import to_tensors
from trn.loop.agreement import Agreement
from trn.loop.pulse import Pulse
from trn.loop.seeds import derived_seed
from trn.loop.stop import StopRequest
from trn.plan import make_params, torch_device
from trn.reopen import apply_state
from trn.runner.company import Company
from trn.runner.live import check_live
from trn.spec.plan_model import Plan
from trn.trainer import Context, TorchState, Trainer
from trn.trainer.together import share_buffers

__all__ = ["Made", "make"]


@dataclass(frozen=True)
class Made:
    """The trainer's objects, checked against the plan and brought back to the checkpoint; or why there are none."""

    ctx: Context
    agreement: Agreement
    state: Any = None
    error: BaseException | None = None


def make(plan: Plan, trainer: Trainer, meta: CheckpointMeta | None, stop: StopRequest, company: Company) -> Made:
    """Make it, and compare it with the plan and with the other ranks.

    Raises what the job is refused with; a failure of the trainer's own code, or of another rank, is kept.
    """
    owner = os.getpid()
    device = torch_device(plan.device, local_rank=company.world.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what a trainer calls "cuda" is this rank's
    agreement = Agreement(company.group, stop)
    ctx = Context(
        plan=plan,
        params=make_params(trainer, plan.trainer.params),
        device=device,
        run_dir=Path(plan.run_dir),
        cancelled=agreement.is_stopping,
        tensors=to_tensors,
        ranks=company.group,
        local_rank=company.world.local_rank,
        is_new=meta is None,
    )
    try:
        company.assemble(device, stop)
        rng.seed_all(plan.seed)
        state = _configure(trainer, ctx, stop, company.pulse)
        check_live(plan, trainer, state, device)
        company.require_same_start(_marks(state))
        if meta is not None:
            apply_state(plan, meta, trainer, state, ctx)
        elif ctx.rank:
            # alike while the weights are drawn, and from now on each its own: dropout must not repeat on every rank
            rng.seed_all(derived_seed(plan.seed, f"rank {ctx.rank}", 0))
        if isinstance(state, TorchState):
            share_buffers(company.group, state.model)
        company.group.gather(None)  # nobody goes on before all came so far
        return Made(ctx, agreement, state)
    except (PlanRefused, ResumeRefused):
        raise
    except BaseException as error:  # noqa: BLE001 - raised again where every failure becomes an outcome
        if os.getpid() != owner:
            os._exit(1)  # a child that the trainer forked
        return Made(ctx, agreement, error=error)


def _configure(trainer: Trainer, ctx: Context, stop: StopRequest, pulse: Pulse) -> Any:
    try:
        with stop.breaking_off():
            pulse.begin("setup")
            trainer.setup(ctx)
            pulse.begin("configure")
            return trainer.configure(ctx)
    except (TrnError, MemoryError):
        raise
    except BaseException as error:
        raise TrainerError(f"{type(error).__name__}: {error}", where="setup or configure") from error


def _marks(state: Any) -> list[float]:
    """What tells weights apart without moving them: norm and sum of each parameter."""
    if not isinstance(state, TorchState):
        return []
    weights = [parameter.detach() for parameter in state.parameters]
    return [mark.item() for mark in (*torch._foreach_norm(weights), *(weight.sum() for weight in weights))]
