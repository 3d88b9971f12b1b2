"""Which way a run's batches come, and what a worker process makes before its first one.

A worker has a trainer of its own: found by its name, made, set up, never configured. Nothing of the trainer that trains
is copied into it, so there is no state for the two to disagree about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import torch

from trn.checkpoint import rng
from trn.errors import TrainerError
from trn.feed import Feed
from trn.feed.tensors import to_tensors
from trn.loop.batches import Batches, Rows, Transformed
from trn.loop.stop import StopRequest
from trn.loop.worker import Transform
from trn.loop.workers import WorkerBatches
from trn.plan import make_params, use_spec_folder
from trn.ranks.group import Group
from trn.reopen import prepare_torch
from trn.runner.output import mask_output
from trn.spec.plan_model import Plan
from trn.trainer import Context, Trainer, has_own_transform, load_trainer

__all__ = ["open_batches"]


def open_batches(plan: Plan, trainer: Trainer, ctx: Context, feed: Feed, stop: StopRequest) -> Batches:
    """The batches of `feed` as the trainer and `dataset.workers` want them."""
    if not has_own_transform(trainer):
        return Rows(feed)
    if not plan.dataset.workers:
        return Transformed(feed, trainer, seed=plan.seed, rank=ctx.rank, stop=stop)
    make = _MakeTransform(plan, rank=ctx.rank, local_rank=ctx.local_rank, world_size=ctx.world_size)
    alone = ctx.world_size == 1
    return WorkerBatches(
        feed, make, workers=plan.dataset.workers, seed=plan.seed, rank=ctx.rank, stop=stop if alone else None
    )


@dataclass(frozen=True)
class _MakeTransform:
    """Called in a worker; gives the `transform` of a trainer that was made there."""

    plan: Plan
    rank: int
    local_rank: int
    world_size: int

    def __call__(self) -> Transform:
        """Raises what loading the trainer and its `setup` raise."""
        plan = self.plan
        mask_output()
        use_spec_folder(Path(plan.spec_folder))
        prepare_torch(plan)  # as many threads as the runner: with others, sums come out otherwise
        trainer: Any = load_trainer(plan.trainer.name)
        ctx = Context(
            plan=plan,
            params=make_params(trainer, plan.trainer.params),
            device=torch.device("cpu"),
            run_dir=Path(plan.run_dir),
            cancelled=lambda: False,
            tensors=to_tensors,
            ranks=_Apart(self.rank, self.world_size),
            local_rank=self.local_rank,
        )
        rng.seed_all(plan.seed)
        trainer.setup(ctx)

        def transform(rows: pa.RecordBatch, row_ids: np.ndarray, row_passes: np.ndarray) -> Any:
            ctx._enter_batch(row_ids, row_passes)
            return trainer.transform(rows, ctx)

        return transform


class _Apart(Group):
    """What a worker knows of the ranks: which one it works for, and that it has no part in what they do together."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size

    def exchange(self, values: Sequence[float]) -> list[list[float]]:
        self._refuse()

    def gather(self, value: Any) -> list[Any]:
        self._refuse()

    def sum_(self, tensors: Sequence[torch.Tensor], *, have_met: bool = False) -> None:
        self._refuse()

    def copy_from_first(self, tensors: Sequence[torch.Tensor]) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise TrainerError(
            "a worker of a rank takes no part in what the ranks do together.",
            where="ctx.ranks",
            hint="In `setup`, torch.utils.data.get_worker_info() is None where it is not called in a worker.",
        )
