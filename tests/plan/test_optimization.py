"""Keys of optimizer and schedule that would change nothing: refused by the plan, with the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from torch import Tensor, nn

from trn.errors import PlanRefused
from trn.plan.optimization import plan_optimization
from trn.spec import Spec
from trn.spec.plan_model import BudgetPlan
from trn.trainer import Context, Step, TorchTrainer

BUDGET = BudgetPlan(max_steps=20, steps_per_epoch=5, batches_per_pass=5, by_passes=False)


class Linear(TorchTrainer):
    def build(self, ctx: Context) -> nn.Module:
        return nn.Linear(3, 1)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
        return Step(model(batch["x"]).square().mean())


def spec_of(**more: Any) -> Spec:
    given = {
        "config_version": 1,
        "trainer": "t:Linear",
        "dataset": {"parquet_paths": ["a.parquet"]},
        "seed": 1,
        "device": "cpu",
        "precision": "none",
        "ddp": False,
        "max_steps": BUDGET.max_steps,
    }
    return Spec.model_validate(given | more)


RPROP = {"name": "rprop", "lr": 0.1}
IDLE: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": RPROP, "schedule": {"kind": "linear"}}, "schedule.kind: rprop finds the rate of each weight"),
    ({"optimizer": RPROP, "schedule": {"kind": "constant", "warmup_steps": 2}}, "schedule.warmup_steps: rprop"),
    ({"optimizer": RPROP | {"groups": [{"match": ["*"], "lr_mult": 0}]}}, r"optimizer.groups\[0\].lr_mult: rprop"),
    ({"optimizer": RPROP, "guard": {"policy": "skip"}}, "guard.lr_decay: rprop .* Set it to 1.0"),
    ({"optimizer": RPROP | {"no_decay": ["bias"]}}, "optimizer.no_decay: rprop has no weight decay"),
    (
        {"optimizer": RPROP | {"groups": [{"match": ["*"], "weight_decay_mult": 0}]}},
        r"optimizer.groups\[0\].weight_decay_mult: rprop has no weight decay",
    ),
]


@pytest.mark.parametrize(("given", "message"), IDLE)
def test_what_an_optimizer_would_not_heed_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanRefused, match=message) as caught:
        plan_optimization(spec_of(**given), Linear(), BUDGET)
    assert "\n" not in str(caught.value)


def test_an_optimizer_that_asks_for_its_rate_once_is_planned_with_it() -> None:
    skip = {"policy": "skip", "lr_decay": 1.0}
    optimizer, schedule = plan_optimization(spec_of(optimizer=RPROP, guard=skip), Linear(), BUDGET)
    assert optimizer is not None
    assert optimizer.arguments == {"lr": 0.1}
    assert schedule is not None
    assert (schedule.kind, schedule.lr_max) == ("constant", 0.1)
