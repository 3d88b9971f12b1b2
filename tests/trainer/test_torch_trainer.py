"""The step of TorchTrainer against one written by hand, and its refusal before the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.compare import differences
from support.plans import context_of, plan_of
from trn.errors import NumericalInstability, PlanRefused, TrainerError
from trn.spec.plan_model import EmaPlan, GuardPlan, OptimizerPlan, SchedulePlan
from trn.trainer import Context, Step, TorchState, TorchTrainer
from trn.trainer.optimizers import OPTIMIZERS, build_optimizer, optimizer_arguments


class Linear(TorchTrainer):
    """Mean squared error of a linear map; `weight` makes the counts of the rows uneven."""

    def build(self, ctx: Context) -> nn.Module:
        torch.manual_seed(5)
        return nn.Linear(3, 1)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
        weight = batch["weight"]
        error = (model(batch["x"]).squeeze(1) - batch["y"]) ** 2
        return Step((error * weight).sum() / weight.sum(), {"mean_x": batch["x"].mean()}, count=int(weight.sum()))


def batch_of(rows: int = 8, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(rows, 3, generator=generator),
        "y": torch.randn(rows, generator=generator),
        "weight": torch.arange(1, rows + 1).float(),
    }


def started(tmp_path: Path, **changes: Any) -> tuple[Linear, TorchState, Context]:
    trainer, ctx = Linear(), context_of(plan_of(tmp_path / "run", **changes))
    trainer.setup(ctx)
    return trainer, trainer.configure(ctx), ctx


def at_step(ctx: Context, step: int) -> Context:
    ctx._step = step
    return ctx


def test_a_step_is_the_one_a_person_would_write(tmp_path: Path) -> None:
    trainer, state, ctx = started(tmp_path, clip_grad_norm=0.5)
    result = trainer.train_step(batch_of(), state, at_step(ctx, 1))

    torch.manual_seed(5)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = batch_of()
    loss = (((model(batch["x"]).squeeze(1) - batch["y"]) ** 2) * batch["weight"]).sum() / batch["weight"].sum()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    assert differences("", dict(state.model.state_dict()), dict(model.state_dict())) == []
    assert result.metrics["train_loss"] == loss.item()
    assert result.metrics["grad_norm"] == norm.item()
    assert result.metrics["lr"] == 0.1


def test_micro_batches_with_uneven_counts_give_the_gradient_of_the_whole(tmp_path: Path) -> None:
    whole_trainer, whole, whole_ctx = started(tmp_path / "a")
    expected = whole_trainer.train_step(batch_of(), whole, at_step(whole_ctx, 1))
    plan = OptimizerPlan(name="sgd", arguments={"lr": 0.1}, fused=False, accumulate=4)
    trainer, state, ctx = started(tmp_path / "b", optimizer=plan)
    result = trainer.train_step(batch_of(), state, at_step(ctx, 1))
    # the sums are the same, their order is not: float32 rounding
    for name in ("train_loss", "grad_norm"):
        assert result.metrics[name] == pytest.approx(expected.metrics[name], rel=1e-6)
    for mine, theirs in zip(state.parameters, whole.parameters, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused_before_the_optimizer_moves(tmp_path: Path, value: float) -> None:
    trainer, state, ctx = started(tmp_path)
    trainer.train_step(batch_of(), state, at_step(ctx, 1))
    before = torch.cat([parameter.detach().flatten().clone() for parameter in state.parameters])
    bad = batch_of()
    bad["y"][3] = value
    with pytest.raises(NumericalInstability) as caught:
        trainer.train_step(bad, state, at_step(ctx, 2))
    assert (caught.value.step, caught.value.field) == (2, "train_loss")
    after = torch.cat([parameter.detach().flatten() for parameter in state.parameters])
    assert torch.equal(before, after)


def test_a_gradient_that_is_not_finite_is_refused_though_the_loss_is_finite(tmp_path: Path) -> None:
    class Rooted(Linear):
        def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
            # the square root of zero: value 0, slope infinite
            return Step((model(batch["x"]) * 0.0).abs().sum().sqrt(), count=1)

    trainer, ctx = Rooted(), context_of(plan_of(tmp_path / "run"))
    state = trainer.configure(ctx)
    before = [parameter.detach().clone() for parameter in state.parameters]
    with pytest.raises(NumericalInstability) as caught:
        trainer.train_step(batch_of(), state, at_step(ctx, 1))
    assert caught.value.field == "grad_norm"
    assert all(torch.equal(a, b) for a, b in zip(before, state.parameters, strict=True))


def test_update_n_uses_the_learning_rate_of_index_n_minus_one(tmp_path: Path) -> None:
    plan = SchedulePlan(kind="linear", warmup_steps=2, total_steps=10, lr_max=1.0, lr_min=0.0)
    trainer, state, ctx = started(tmp_path, schedule=plan)
    rates = [trainer.train_step(batch_of(), state, at_step(ctx, step)).metrics["lr"] for step in (1, 2, 3, 7, 11)]
    assert rates == [0.0, 0.5, 1.0, 0.5, 0.0]


def test_state_given_back_continues_bit_for_bit(tmp_path: Path) -> None:
    adamw = OptimizerPlan(name="adamw", arguments={"lr": 0.1, "betas": [0.9, 0.99]}, fused=None, accumulate=1)
    trainer, state, ctx = started(tmp_path / "a", optimizer=adamw)
    for step in range(1, 4):
        trainer.train_step(batch_of(seed=step), state, at_step(ctx, step))
    again, fresh, other = started(tmp_path / "b", optimizer=adamw)
    again.load_state_dict(fresh, trainer.state_dict(state), other)
    for step in range(4, 7):
        trainer.train_step(batch_of(seed=step), state, at_step(ctx, step))
        again.train_step(batch_of(seed=step), fresh, at_step(other, step))
    assert differences("", trainer.state_dict(state), again.state_dict(fresh)) == []


def test_evaluation_is_the_mean_over_all_rows_and_changes_nothing(tmp_path: Path) -> None:
    trainer, state, ctx = started(tmp_path)
    parts: list[Any] = [batch_of(6, seed=1), batch_of(2, seed=2)]
    metrics = trainer.evaluate(parts, state, ctx)
    total = sum(trainer.loss(state.model, part).loss.item() * int(part["weight"].sum()) for part in parts)
    assert metrics["val_loss"] == pytest.approx(total / (21 + 3), rel=1e-12)
    assert set(metrics) == {"val_loss", "val_mean_x"}
    assert state.model.training
    assert all(parameter.grad is None for parameter in state.parameters)


def test_an_optimizer_takes_only_its_own_arguments() -> None:
    given = {"lr": 0.1, "betas": [0.9, 0.999], "momentum": 0.9, "weight_decay": 0.0, "eps": 1e-8, "nesterov": False}
    assert set(optimizer_arguments("adamw", given, set())) == {"lr", "betas", "weight_decay", "eps"}
    with pytest.raises(PlanRefused, match="adamw does not take momentum"):
        optimizer_arguments("adamw", given, {"momentum"})
    with pytest.raises(PlanRefused, match="unknown name 'adamv'"):
        optimizer_arguments("adamv", given, set())


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_listed_optimizer_makes_a_step(name: str) -> None:
    parameter = nn.Parameter(torch.ones(4, 4))
    plan = OptimizerPlan(name=name, arguments={"lr": 0.01}, fused=None, accumulate=1)
    optimizer = build_optimizer(plan, [parameter])
    parameter.grad = torch.ones(4, 4)
    optimizer.step()
    assert not torch.equal(parameter.detach(), torch.ones(4, 4))


def test_fused_is_used_where_it_may_and_refused_where_it_cannot() -> None:
    parameter = nn.Parameter(torch.ones(4))
    fused = build_optimizer(OptimizerPlan(name="adamw", arguments={"lr": 0.1}, fused=None, accumulate=1), [parameter])
    assert fused.param_groups[0]["fused"] is True
    plain = build_optimizer(OptimizerPlan(name="adamw", arguments={"lr": 0.1}, fused=False, accumulate=1), [parameter])
    assert not plain.param_groups[0]["fused"]
    with pytest.raises(PlanRefused, match="cannot be fused"):
        build_optimizer(OptimizerPlan(name="adadelta", arguments={"lr": 0.1}, fused=True, accumulate=1), [parameter])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["adamw", "nadam", "asgd", "sgd", "rmsprop"])
def test_an_optimizer_gets_its_state_back_to_the_bit(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    class Wide(Linear):
        def build(self, ctx: Context) -> nn.Module:
            return super().build(ctx).to(dtype)

        def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
            return Step((model(batch["x"].to(dtype)).squeeze(1) - batch["y"]).square().mean(), count=len(batch["y"]))

    plan = plan_of(
        tmp_path / "run", optimizer=OptimizerPlan(name=name, arguments={"lr": 0.01}, fused=None, accumulate=1)
    )
    trainer, ctx = Wide(), context_of(plan)
    state, fresh = trainer.configure(ctx), trainer.configure(ctx)
    for step in (1, 2):
        trainer.train_step(batch_of(seed=step), state, at_step(ctx, step))
    trainer.load_state_dict(fresh, trainer.state_dict(state), ctx)
    assert differences("", trainer.state_dict(state), trainer.state_dict(fresh)) == []


def test_a_module_is_told_the_version_its_weights_were_saved_with(tmp_path: Path) -> None:
    class Versioned(nn.Linear):
        _version = 2

        def _load_from_state_dict(self, state_dict: Any, prefix: str, metadata: Any, *more: Any) -> None:
            if metadata.get("version") is None:
                state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"] * 2
            super()._load_from_state_dict(state_dict, prefix, metadata, *more)

    class Migrating(Linear):
        def build(self, ctx: Context) -> nn.Module:
            torch.manual_seed(1)
            return Versioned(3, 1)

    trainer, ctx = Migrating(), context_of(plan_of(tmp_path / "run"))
    state, fresh = trainer.configure(ctx), trainer.configure(ctx)
    trainer.load_state_dict(fresh, trainer.state_dict(state), ctx)
    assert differences("", dict(state.model.state_dict()), dict(fresh.model.state_dict())) == []


def test_broken_weights_are_refused_when_they_are_to_be_saved(tmp_path: Path) -> None:
    trainer, state, ctx = started(tmp_path)
    trainer.train_step(batch_of(), state, at_step(ctx, 1))
    with torch.no_grad():
        state.parameters[0][0, 0] = math.nan
    with pytest.raises(NumericalInstability, match="the weights after the update"):
        trainer.state_dict(state)


def test_a_layer_that_build_froze_in_evaluation_stays_so(tmp_path: Path) -> None:
    class Frozen(Linear):
        def build(self, ctx: Context) -> nn.Module:
            model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
            model[0].eval()
            return model

    trainer, ctx = Frozen(), context_of(plan_of(tmp_path / "run"))
    state = trainer.configure(ctx)
    trainer.evaluate([batch_of()], state, ctx)  # type: ignore[list-item]  # these tests hand in tensors
    assert [module.training for module in state.model.modules()] == [True, False, True]


def test_a_buffer_made_by_expand_is_put_back_and_loaded_like_any_other(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(3, 1)
            self.register_buffer("mask_BF", torch.ones(1, 3).expand(8, 3))

        def forward(self, x_BF: Tensor) -> Tensor:
            result: Tensor = self.map(x_BF * self.mask_BF)
            return result

    class Expanded(Linear):
        def build(self, ctx: Context) -> nn.Module:
            torch.manual_seed(5)
            return Masked()

    plan = plan_of(
        tmp_path / "run",
        guard=GuardPlan(policy="skip", max_skips=3, lr_decay=0.5),
        ema=EmaPlan(decay=0.9, evaluate=True),
    )
    trainer, ctx = Expanded(), context_of(plan)
    state, fresh = trainer.configure(ctx), trainer.configure(ctx)
    trainer.train_step(batch_of(), state, at_step(ctx, 1))
    before = {name: one.clone() for name, one in state.model.state_dict().items()}
    bad = batch_of()
    bad["y"][3] = math.nan
    with pytest.raises(NumericalInstability):
        trainer.train_step(bad, state, at_step(ctx, 2))
    assert differences("", before, dict(state.model.state_dict())) == []
    trainer.load_state_dict(fresh, trainer.state_dict(state), ctx)
    assert differences("", trainer.state_dict(state), trainer.state_dict(fresh)) == []


def test_a_micro_batch_of_weight_zero_weighs_nothing_and_a_whole_one_is_named(tmp_path: Path) -> None:
    plan = OptimizerPlan(name="sgd", arguments={"lr": 0.1}, fused=False, accumulate=2)
    trainer, state, ctx = started(tmp_path, optimizer=plan)
    batch = batch_of()
    batch["weight"][:4] = 0
    result = trainer.train_step(batch, state, at_step(ctx, 1))
    assert math.isfinite(float(result.metrics["train_loss"]))
    batch["weight"][:] = 0
    with pytest.raises(TrainerError, match="nothing to learn from"):
        trainer.train_step(batch, state, at_step(ctx, 2))


@pytest.mark.parametrize("name", ["loss", "train_loss", "grad_norm", "lr", "loss_scale"])
def test_a_metric_may_not_stand_in_for_what_every_step_gives(tmp_path: Path, name: str) -> None:
    class Posing(Linear):
        def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
            step = super().loss(model, batch)
            return Step(step.loss, {name: 0.0}, step.count)

    trainer, ctx = Posing(), context_of(plan_of(tmp_path / "run"))
    with pytest.raises(TrainerError, match=f"metric '{name}': .* give yours another name"):
        trainer.train_step(batch_of(), trainer.configure(ctx), at_step(ctx, 1))


Make = Callable[[Tensor, nn.Module], Any]

BAD_STEPS: list[tuple[Make, str]] = [
    (lambda error, model: error.mean(), "returned Tensor; expected a Step"),
    (lambda error, model: None, "returned NoneType; expected a Step"),
    (lambda error, model: Step(error), r"a 0-d tensor, the mean; found shape \[8\]. Return its .mean"),
    (lambda error, model: Step(error.mean().reshape(1)), r"found shape \[1\]"),
    (lambda error, model: Step(0.5), "found float"),  # type: ignore[arg-type]  # that is the mistake
    (lambda error, model: Step(error.mean().detach()), "the loss has no gradient: it was detached"),
    (lambda error, model: Step(torch.zeros((), requires_grad=True) * 2), "no parameter got a gradient"),
    (lambda error, model: Step(error.mean(), [1.0]), "numbers by name; found list"),  # type: ignore[arg-type]
    (lambda error, model: Step(error.mean(), {"each": error}), "metric 'each': expected one number"),
    (lambda error, model: Step(error.mean(), {"word": "low"}), "metric 'word': expected a finite number"),  # type: ignore[dict-item]
    (lambda error, model: Step(error.mean(), count=-1), "count of a Step is a whole number from 0 on; found -1"),
    (lambda error, model: Step(error.mean(), count=2.5), "found 2.5"),  # type: ignore[arg-type]
    (lambda error, model: Step(error.mean(), count=math.nan), "found nan"),  # type: ignore[arg-type]
    (lambda error, model: Step(error.mean(), count="8"), "found '8'"),  # type: ignore[arg-type]
    (lambda error, model: Step(error.mean(), count=error), "found tensor"),  # type: ignore[arg-type]
    (lambda error, model: Step(error.mean(), count=0), "nothing to learn from"),
]


class Given(Linear):
    """Its step is whatever is asked for."""

    def __init__(self, make: Make) -> None:
        self.make = make

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Any:
        return self.make(super().loss(model, batch).loss + model(batch["x"]).squeeze(1), model)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("make", "message"), BAD_STEPS)
def test_what_is_no_step_is_told_in_one_line_and_changes_nothing(
    tmp_path: Path, make: Make, message: str, accumulate: int
) -> None:
    plan = OptimizerPlan(name="sgd", arguments={"lr": 0.1}, fused=False, accumulate=accumulate)
    trainer, ctx = Given(make), context_of(plan_of(tmp_path / "run", optimizer=plan))
    state = trainer.configure(ctx)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    if accumulate == 2:
        message = message.replace("[8", "[4")
    if accumulate == 1 and "'word'" in message:
        return  # the loop tells it
    with pytest.raises(TrainerError, match=message) as caught:
        trainer.train_step(batch_of(), state, at_step(ctx, 1))
    assert "\n" not in str(caught.value)
    assert differences("", dict(state.model.state_dict()), before) == []


def test_a_metric_may_be_a_tensor_with_a_gradient_and_a_count_any_whole_number(tmp_path: Path) -> None:
    count: Any = torch.tensor(8.0)
    trainer = Given(lambda error, model: Step(error.mean(), {"top": error.max()}, count))
    ctx = context_of(plan_of(tmp_path / "run"))
    result = trainer.train_step(batch_of(), trainer.configure(ctx), at_step(ctx, 1))
    assert type(result.metrics["top"]) is float


def test_a_metric_that_is_no_number_refuses_the_step_before_the_update(tmp_path: Path) -> None:
    trainer, ctx = Given(lambda error, model: Step(error.mean(), {"x": math.nan})), context_of(plan_of(tmp_path / "r"))
    state = trainer.configure(ctx)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    with pytest.raises(NumericalInstability) as caught:
        trainer.train_step(batch_of(), state, at_step(ctx, 1))
    assert caught.value.field == "x"
    assert differences("", dict(state.model.state_dict()), before) == []
