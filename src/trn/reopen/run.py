"""A run, alive at one of its checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trn.checkpoint import rng
from trn.checkpoint.meta import CheckpointMeta
from trn.errors import DeviceError, TrainerError, TrnError
from trn.feed.tensors import to_tensors
from trn.loop.evaluation import enter_settled
from trn.plan import make_params, torch_device
from trn.records import Json
from trn.reopen.checkpoint import open_checkpoint, progress_of
from trn.reopen.code import find_trainer, refuse_own_loop
from trn.reopen.folder import read_run
from trn.reopen.settings import prepare_torch
from trn.reopen.state import apply_payload
from trn.spec.plan_model import Plan
from trn.trainer import Context, Trainer

__all__ = ["Reopened", "reopen"]


@dataclass(frozen=True)
class Reopened:
    """The objects of a run as they were after `meta.step`; `ctx` stands at that step, alone in its world."""

    plan: Plan
    """The run's, with the folder where it lies now and the device that is used. Its fingerprint is the run's own."""
    trainer: Trainer
    ctx: Context
    state: Any
    meta: CheckpointMeta
    where: Path
    """The checkpoint's file."""
    code_sha256: str
    """Of the code that was imported: the plan's, unless another one was allowed."""
    payload: Mapping[str, Any]
    """What the checkpoint holds, mapped: it stays readable where a run that is training takes the file away."""

    def reports(self) -> list[tuple[str, Json]]:
        """What the trainer reported with ctx.report, kind and fields, since this was asked last."""
        return self.ctx._reported()


def reopen(
    run_dir: Path,
    *,
    checkpoint: str = "best",
    device: str | None = None,
    code: Path | None = None,
    allow_change: Collection[str] = (),
) -> Reopened:
    """The run in `run_dir` at the checkpoint that is named: best, last, a step, or a file of it.

    Torch is set for the whole process as the plan says. `code` is where the trainer is imported from instead of the
    plan's own folder. Raises ResumeRefused (no run, other code, a checkpoint that does not hold), NoGoodCheckpoint,
    DeviceError, TrainerError; then nothing of the checkpoint was loaded or all of it is thrown away.
    """
    plan = read_run(run_dir.resolve())
    refuse_own_loop(plan)
    meta, payload = open_checkpoint(plan, checkpoint)
    progress = progress_of(meta)
    here = _device(plan, device)
    found = find_trainer(plan, code, allow_change)
    plan = plan.model_copy(update={"device": device or plan.device})
    prepare_torch(plan)
    ctx = Context(
        plan=plan,
        params=make_params(found.trainer, plan.trainer.params),
        device=here,
        run_dir=Path(plan.run_dir),
        cancelled=lambda: False,
        tensors=to_tensors,
    )
    state = _configure(found.trainer, ctx)
    apply_payload(plan, meta, payload, found.trainer, state, ctx)
    enter_settled(ctx, plan, progress)
    where = Path(plan.run_dir) / "checkpoints" / meta.file
    return Reopened(plan, found.trainer, ctx, state, meta, where, found.code_sha256, payload)


def _device(plan: Plan, override: str | None) -> torch.device:
    try:
        device = torch_device(override or plan.device)
    except DeviceError as error:
        raise DeviceError(error.message, where=error.where, hint="Use one that is here: --device cpu.") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what a trainer calls "cuda" is this one
    return device


def _configure(trainer: Trainer, ctx: Context) -> Any:
    """What the trainer builds, its weights drawn as at the run's beginning."""
    rng.seed_all(ctx.plan.seed)
    try:
        trainer.setup(ctx)
        return trainer.configure(ctx)
    except (TrnError, MemoryError):
        raise
    except Exception as error:
        raise TrainerError(f"{type(error).__name__}: {error}", where="setup or configure") from error
