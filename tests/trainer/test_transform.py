"""The hook `transform`: who has it, what `prepare_batch` takes, and what a worker's context refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from support.plans import context_of, plan_of
from trn.errors import TrainerError
from trn.trainer import Context, Step, TorchState, TorchTrainer, has_own_transform


class Plain(TorchTrainer):
    def build(self, ctx: Context) -> nn.Module:
        return nn.Linear(1, 1)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
        return Step(model(batch["x"]).mean())


class Doubling(Plain):
    def transform(self, raw_batch: pa.RecordBatch, ctx: Context) -> Mapping[str, Tensor]:
        return {"x": 2 * ctx.tensors(raw_batch)["x"]}


class SixHooks:
    def prepare_batch(self, raw_batch: Any, state: Any, ctx: Context) -> Any:
        return raw_batch


class SevenHooks(SixHooks):
    def transform(self, raw_batch: Any, ctx: Context) -> Any:
        return raw_batch


def test_a_transform_is_one_that_somebody_wrote() -> None:
    found: list[Any] = [Plain(), Doubling(), SixHooks(), SevenHooks()]
    assert [has_own_transform(one) for one in found] == [False, True, False, True]


def test_prepare_batch_takes_rows_and_what_transform_made_of_them(tmp_path: Path) -> None:
    trainer, ctx = Doubling(), context_of(plan_of(tmp_path / "run"))
    ctx.tensors = lambda raw_batch, *names: {"x": torch.tensor(raw_batch.column("x").to_numpy())}
    state: Any = TorchState(nn.Linear(1, 1), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1), [])
    rows = pa.RecordBatch.from_pydict({"x": [1.0, 2.0]})
    from_rows = trainer.prepare_batch(rows, state, ctx)
    from_ready = trainer.prepare_batch(trainer.transform(rows, ctx), state, ctx)
    assert from_rows["x"].tolist() == from_ready["x"].tolist() == [2.0, 4.0]


@pytest.mark.parametrize("name", ["step", "epoch", "lr_factor"])
def test_a_worker_knows_its_rows_and_refuses_to_name_a_step(tmp_path: Path, name: str) -> None:
    ctx, there = (context_of(plan_of(tmp_path / "run")) for _ in range(2))
    assert getattr(ctx, name) == (1.0 if name == "lr_factor" else 0)
    ids, passes = np.array([5, 8]), np.array([0, 1], np.int32)
    ctx._enter_batch(ids, passes)
    there._enter_step(3, 0, ids, passes, 1.0)
    assert ctx.row_ids.tolist() == [5, 8]
    assert [ctx.rng(row).random() for row in (5, 8)] == [there.rng(row).random() for row in (5, 8)]
    with pytest.raises(TrainerError, match=rf"at ctx\.{name}: a worker prepares batches ahead.*ctx\.rng\(row_id\)"):
        getattr(ctx, name)
