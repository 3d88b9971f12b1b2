"""A Context without a run, to call one hook with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from trn.feed import RawBatch
from trn.feed.tensors import to_tensors
from trn.files import make_folder
from trn.plan import make_params, torch_device
from trn.testing.memory import Rows
from trn.testing.workspace import Workspace
from trn.trainer import Context

__all__ = ["make_context"]


def make_context(
    trainer: type | str | None,
    rows: Rows | None = None,
    *,
    batch: RawBatch | None = None,
    params: Mapping[str, Any] | None = None,
    columns: Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | str | Path | None = None,
    step: int = 1,
    folder: Path | None = None,
) -> Context:
    """A Context as a hook of that step has it: plan, params, device, and folders that are there and empty.

    `batch`, from `memory_rows`, is what `row_ids` and `rng` speak of; without `rows` the plan is made over it. The
    other arguments are those of `run_steps`. Nothing is seeded or set: that is the test's business. Raises what
    planning raises.
    """
    if rows is None and columns is None and batch is not None:
        rows = pa.Table.from_batches([batch.record_batch])
    space = Workspace.make(trainer, rows, folder=folder, columns=columns, params=params, spec=spec)
    plan, made = space.plan("run", max_steps=max(step, _STEPS))
    run_dir = Path(plan.run_dir)
    for name in ("checkpoints", "reports", "samples", "logs"):
        make_folder(run_dir / name)
    ctx = Context(
        plan=plan,
        params=make_params(made, plan.trainer.params),
        device=torch_device(plan.device),
        run_dir=run_dir,
        cancelled=lambda: False,
        tensors=to_tensors,
    )
    if batch is not None:
        epoch = max(step - 1, 0) // plan.budget.steps_per_epoch
        ctx._enter_step(step, epoch, batch.row_ids, batch.row_passes, 1.0)
    else:
        ctx._enter_step(step, 0, ctx.row_ids, ctx._row_passes, 1.0)
    return ctx


_STEPS = 1000
"""Budget of the plan: long enough that a schedule has not ended."""
