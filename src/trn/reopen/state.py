"""What a verified checkpoint holds, given back to the trainer and to the random streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trn.checkpoint import rng
from trn.checkpoint.discover import load_payload
from trn.checkpoint.meta import CheckpointMeta
from trn.errors import ResumeRefused, TrnError
from trn.loop.seeds import derived_seed
from trn.spec.plan_model import Plan
from trn.trainer import Context, Trainer

__all__ = ["apply_payload", "apply_state", "cannot_load"]

_LONGEST = 400


def apply_state(plan: Plan, meta: CheckpointMeta, trainer: Trainer, state: Any, ctx: Context) -> None:
    """Load a verified checkpoint and apply it. Raises ResumeRefused when it cannot be loaded or a part is missing."""
    try:
        payload = load_payload(Path(plan.run_dir), meta)
    except Exception as error:  # whatever a file may do to the loader
        raise cannot_load(meta, error) from error
    apply_payload(plan, meta, payload, trainer, state, ctx)


def apply_payload(
    plan: Plan, meta: CheckpointMeta, payload: dict[str, Any], trainer: Trainer, state: Any, ctx: Context
) -> None:
    """Give the trainer its state back, with its own folder where there is one, then every random stream.

    Raises ResumeRefused when a part is missing.
    """
    where = f"checkpoints/{meta.file}"
    try:
        missing = {"trainer", "progress", "rng"} - set(payload)
        if missing or payload["progress"] != meta.progress or not payload["rng"]:
            raise ResumeRefused("its parts and its meta do not fit together.", where=where)
        trainer.load_state_dict(state, payload["trainer"], ctx)
        _load_own_folder(plan, meta, payload["trainer"], trainer, state, ctx)
        if ctx.rank < len(payload["rng"]):
            rng.restore(payload["rng"][ctx.rank])
        else:  # a rank that the run did not have so far
            rng.seed_all(derived_seed(plan.seed, f"rank {ctx.rank}", meta.step))
    except TrnError:
        raise
    except Exception as error:  # whatever a trainer may do with it
        raise cannot_load(meta, error) from error


def _load_own_folder(
    plan: Plan, meta: CheckpointMeta, given: dict[str, Any], trainer: Trainer, state: Any, ctx: Context
) -> None:
    """Give the trainer the folder that its `save_checkpoint` wrote, where the checkpoint has one.

    A checkpoint of code that did not have the hooks yet has none, and nothing is asked.
    """
    if meta.folder is None:
        return
    folder = Path(plan.run_dir) / "checkpoints" / meta.folder
    hook: Any = getattr(trainer, "load_checkpoint", None)
    if not callable(hook):
        raise ResumeRefused(
            f"it was saved by a trainer with `save_checkpoint`, and {plan.trainer.name!r} has no `load_checkpoint`.",
            where=f"checkpoints/{meta.folder}",
            hint="Give the trainer both hooks back.",
        )
    hook(state=state, checkpoint_dir=folder, payload=given, ctx=ctx)


def cannot_load(meta: CheckpointMeta, error: Exception) -> ResumeRefused:
    first, *rest = str(error).splitlines() or [""]
    if first.endswith(":"):  # which names and shapes do not fit, torch says in the lines after it
        first = " ".join(" ".join([first, *rest]).split())
    said = first if len(first) <= _LONGEST else f"{first[:_LONGEST]} ..."
    return ResumeRefused(f"it cannot be loaded: {type(error).__name__}: {said}", where=f"checkpoints/{meta.file}")
