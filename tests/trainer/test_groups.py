"""Parameter groups: who belongs where, that 0 means 0, and that a resume gives each parameter its own state back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.compare import differences
from support.plans import context_of, plan_of
from trn.errors import PlanRefused, ResumeRefused
from trn.spec.plan_model import GroupPlan, OptimizerPlan, SchedulePlan
from trn.trainer import Context, Step, TorchState, TorchTrainer
from trn.trainer import fused as fused_module
from trn.trainer.groups import group_parameters
from trn.trainer.optimizers import OPTIMIZERS, SETS_OWN_RATES, build_optimizer


class RootNorm(nn.Module):
    """A normalising module that is not torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x_BF: Tensor) -> Tensor:
        return x_BF * self.scale


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.BatchNorm1d(4), RootNorm())
        self.head = nn.Linear(4, 1)

    def forward(self, x_BF: Tensor) -> Tensor:
        result: Tensor = self.head(self.backbone(x_BF))
        return result


class Fit(TorchTrainer):
    def build(self, ctx: Context) -> nn.Module:
        torch.manual_seed(5)
        return Net()

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
        return Step((model(batch["x"]).squeeze(1) - batch["y"]).square().mean(), count=len(batch["y"]))


def batch_of(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(8, 3, generator=generator), "y": torch.randn(8, generator=generator)}


def optimizer_of(*groups: tuple[str, float, float], name: str = "adamw", **more: Any) -> OptimizerPlan:
    planned = [GroupPlan(match=match.split(), lr_mult=lr, weight_decay_mult=decay) for match, lr, decay in groups]
    arguments = {"lr": 0.1, "weight_decay": 0.01}
    return OptimizerPlan(name=name, arguments=arguments, fused=None, accumulate=1, groups=planned, **more)


def started(tmp_path: Path, optimizer: OptimizerPlan, **changes: Any) -> tuple[Fit, TorchState, Context]:
    schedule = SchedulePlan(kind="constant", warmup_steps=0, total_steps=20, lr_max=0.1, lr_min=0.0)
    trainer, ctx = Fit(), context_of(plan_of(tmp_path / "run", optimizer=optimizer, schedule=schedule, **changes))
    return trainer, trainer.configure(ctx), ctx


def train(parts: tuple[Fit, TorchState, Context], steps: range) -> list[Any]:
    trainer, state, ctx = parts
    results = []
    for step in steps:
        ctx._step = step
        results.append(trainer.train_step(batch_of(step), state, ctx).metrics)
    return results


def names(plan: OptimizerPlan, model: nn.Module | None = None) -> list[tuple[float, float, list[str]]]:
    found = group_parameters(plan, model or Net())
    return [(one.lr_mult, one.weight_decay_mult, list(one.parameters)) for one in found]


def test_without_groups_there_is_one_of_all_parameters_that_learn() -> None:
    model = Net()
    model.head.bias.requires_grad_(False)
    learning = [name for name, one in model.named_parameters() if one.requires_grad]
    assert names(optimizer_of(), model) == [(1.0, 1.0, learning)]


def test_equal_multipliers_are_one_group_in_order_of_first_appearance() -> None:
    plan = optimizer_of(("backbone.*", 0.1, 1.0), ("*.bias", 1.0, 0.0))
    assert names(plan) == [
        (0.1, 1.0, ["backbone.0.weight", "backbone.1.weight", "backbone.2.weight", "backbone.3.scale"]),
        (0.1, 0.0, ["backbone.0.bias", "backbone.1.bias", "backbone.2.bias"]),
        (1.0, 1.0, ["head.weight"]),
        (1.0, 0.0, ["head.bias"]),
    ]


def test_several_groups_that_match_are_multiplied_and_each_counts_once() -> None:
    plan = optimizer_of(("backbone.0.* *.0.weight backbone.*", 0.5, 1.0), ("backbone.0.weight", 0.5, 0.25))
    assert names(plan)[0] == (0.25, 0.25, ["backbone.0.weight"])


def test_neither_bias_nor_norm_decays_where_the_plan_says_so() -> None:
    decaying = {
        kind: [name for _, decay, group in names(optimizer_of(no_decay=[kind])) if decay for name in group]
        for kind in ("bias", "norm")
    }
    assert decaying["bias"] == [
        *("backbone.0.weight", "backbone.1.weight", "backbone.2.weight", "backbone.3.scale", "head.weight")
    ]
    assert decaying["norm"] == ["backbone.0.weight", "backbone.0.bias", "head.weight", "head.bias"]
    assert [decay for _, decay, _ in names(optimizer_of(no_decay=["bias", "norm"]))] == [1.0, 0.0]


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(2, 4), nn.RMSNorm(4), nn.InstanceNorm1d(4, affine=True), nn.SyncBatchNorm(4), RootNorm()]
)
def test_every_normalising_module_is_known_by_its_class(norm: nn.Module) -> None:
    found = names(optimizer_of(no_decay=["norm"]), nn.Sequential(norm))
    assert [decay for _, decay, _ in found] == [0.0]


def test_a_tied_parameter_is_trained_once_and_known_by_each_of_its_names() -> None:
    model = Net()
    model.twin = nn.Linear(4, 1)
    model.twin.weight = model.head.weight
    found = names(optimizer_of(("twin.weight", 0.5, 1.0)), model)
    assert (0.5, 1.0, ["head.weight"]) in found
    assert sum(len(group) for _, _, group in found) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("backbon.0.weight", "'backbon.0.weight' matches no parameter that is trained. Near is backbone.0.weight."),
        ("Head.*", "'Head.*' matches no parameter"),
        ("zzz", "There are backbone.0.weight, backbone.0.bias, backbone.1.weight and 6 more."),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_names_that_are_near(
    tmp_path: Path, pattern: str, says: str
) -> None:
    with pytest.raises(PlanRefused) as caught:
        started(tmp_path, optimizer_of(("head.*", 1.0, 1.0), (f"head.* {pattern}", 0.5, 1.0)))
    assert "at optimizer.groups[1].match: " in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_step_is_that_of_groups_written_by_hand(tmp_path: Path) -> None:
    plan = optimizer_of(("backbone.*", 0.1, 1.0), no_decay=["bias", "norm"])
    trainer, state, ctx = started(tmp_path, plan)
    results = train((trainer, state, ctx), range(1, 6))
    torch.manual_seed(5)
    model = Net()
    by_name = dict(model.named_parameters())
    plain = {"backbone.0.weight", "head.weight"}
    groups = []
    for lr, decay in ((0.1, 1.0), (0.1, 0.0), (1.0, 1.0), (1.0, 0.0)):
        chosen = [
            one
            for name, one in by_name.items()
            if (0.1 if name.startswith("backbone") else 1.0, 1.0 if name in plain else 0.0) == (lr, decay)
        ]
        groups.append({"params": chosen, "lr": 0.1 * lr, "weight_decay": 0.01 * decay})
    optimizer = torch.optim.AdamW(groups, fused=True)
    for step in range(1, 6):
        optimizer.zero_grad()
        trainer.loss(model, batch_of(step)).loss.backward()
        optimizer.step()
    assert differences("", dict(state.model.state_dict()), dict(model.state_dict())) == []
    assert [one["lr"] for one in results] == [0.1] * 5, "the journal has the rate before the multipliers"


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - SETS_OWN_RATES - {"muon"}))  # that takes matrices only
def test_a_multiplier_of_zero_leaves_the_weights_as_they_are(tmp_path: Path, name: str) -> None:
    plan = optimizer_of(("backbone.*", 0.0, 1.0), ("head.*", 2.0, 0.0), name=name)
    trainer, state, ctx = started(tmp_path, plan)
    assert isinstance(state.model, Net)
    before = {key: one.detach().clone() for key, one in state.model.named_parameters()}
    results = train((trainer, state, ctx), range(1, 4))
    for key, one in state.model.named_parameters():
        assert torch.equal(one, before[key]) is key.startswith("backbone"), key
    assert results[0]["lr"] == 0.1


def test_the_rate_of_skipped_steps_and_of_the_schedule_reaches_every_group(tmp_path: Path) -> None:
    trainer, state, ctx = started(tmp_path, optimizer_of(("backbone.*", 0.5, 1.0)))
    assert state.rates is not None
    ctx._lr_factor = 0.25
    (metrics,) = train((trainer, state, ctx), range(1, 2))
    assert [group["lr"] for group in state.optimizer.param_groups] == [0.0125, 0.025]
    assert metrics["lr"] == 0.025


def test_several_groups_still_take_the_short_way_of_a_fused_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, state, ctx = started(tmp_path, optimizer_of(("backbone.*", 0.1, 1.0), no_decay=["bias"]))
    assert len(state.optimizer.param_groups) == 4
    assert fused_module._is_plain(state.optimizer)
    monkeypatch.setattr(type(state.optimizer), "step", lambda *_: pytest.fail("the long way"))
    train((trainer, state, ctx), range(1, 3))


@pytest.mark.parametrize("name", ["adamw", "sgd", "nadam"])
def test_a_resume_with_groups_is_bit_for_bit_the_run_that_went_through(tmp_path: Path, name: str) -> None:
    plan = optimizer_of(("backbone.*", 0.1, 1.0), ("head.bias", 0.0, 1.0), no_decay=["bias", "norm"], name=name)
    through = started(tmp_path, plan)
    train(through, range(1, 9))
    first = started(tmp_path, plan)
    train(first, range(1, 4))
    torch.save(first[0].state_dict(first[1]), tmp_path / "saved.pt")
    again = started(tmp_path, plan)
    again[0].load_state_dict(again[1], torch.load(tmp_path / "saved.pt", weights_only=True), again[2])
    train(again, range(4, 9))
    assert differences("", through[0].state_dict(through[1]), again[0].state_dict(again[1])) == []


def test_a_state_of_other_groups_is_refused(tmp_path: Path) -> None:
    first = started(tmp_path, optimizer_of(("backbone.*", 0.1, 1.0)))
    train(first, range(1, 3))
    saved = first[0].state_dict(first[1])
    other = started(tmp_path, optimizer_of(("head.*", 0.1, 1.0)))  # as many groups, of the same size
    alone = started(tmp_path, optimizer_of())
    with pytest.raises(ResumeRefused, match="expected groups of"):
        alone[0].load_state_dict(alone[1], saved, alone[2])
    saved["optimizer"]["param_groups"][0]["param_names"][1] = "backbone.0.scale"
    with pytest.raises(ResumeRefused) as caught:
        other[0].load_state_dict(other[1], saved, other[2])
    assert "at optimizer group 0: expected 'backbone.0.bias', found 'backbone.0.scale'." in str(caught.value)


def test_a_plain_list_of_parameters_is_one_group_as_it_was() -> None:
    parameters = list(Net().parameters())
    optimizer = build_optimizer(optimizer_of(), parameters)
    assert [group["params"] for group in optimizer.param_groups] == [parameters]
