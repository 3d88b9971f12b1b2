"""Torch's own schedulers: the rates are torch's, the lengths are the budget's, and a resume finds the same ones."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from support.compare import differences
from support.plans import context_of, plan_of
from trn.errors import PlanRefused, ResumeRefused
from trn.plan.optimization import plan_optimization
from trn.runner.contract import revise
from trn.spec import Spec
from trn.spec.plan_model import BudgetPlan, OptimizerPlan, Plan, SchedulePlan, ValidationPlan
from trn.trainer import Context, Step, TorchState, TorchTrainer, lr_at
from trn.trainer.schedules import Rates
from trn.trainer.torch_schedules import PLATEAU, SCHEDULERS, scheduler_name

STEPS = 40
NEEDED: dict[str, dict[str, Any]] = {
    "StepLR": {"step_size": 7},
    "MultiStepLR": {"milestones": [5, 11]},
    "ExponentialLR": {"gamma": 0.9},
    "CyclicLR": {"step_size_up": 6},
}
"""What a scheduler does not run without."""
LENGTHS = {
    "ConstantLR": "total_iters",
    "CosineAnnealingLR": "T_max",
    "CosineAnnealingWarmRestarts": "T_0",
    "LinearLR": "total_iters",
    "OneCycleLR": "total_steps",
    "PolynomialLR": "total_iters",
}
CURVES = sorted(set(SCHEDULERS) - {PLATEAU})


class Linear(TorchTrainer):
    """Mean squared error of a linear map."""

    def build(self, ctx: Context) -> nn.Module:
        torch.manual_seed(5)
        return nn.Linear(3, 1)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
        return Step((model(batch["x"]).squeeze(1) - batch["y"]).square().mean(), count=len(batch["y"]))


def batch_of(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(8, 3, generator=generator), "y": torch.randn(8, generator=generator)}


def spec_of(schedule: Mapping[str, Any], **more: Any) -> Spec:
    return Spec.model_validate(
        {
            "config_version": 1,
            "trainer": "t:Linear",
            "dataset": {"parquet_paths": ["a.parquet"]},
            "seed": 1,
            "device": "cpu",
            "precision": "none",
            "ddp": False,
            "max_steps": STEPS,
            "optimizer": {"name": "sgd", "lr": 0.1},
            "schedule": schedule,
            **more,
        }
    )


def planned(kind: str, arguments: Mapping[str, Any] | None = None, *, steps: int = STEPS, **more: Any) -> SchedulePlan:
    validation = {"validation": {"parquet_paths": ["a.parquet"]}} if scheduler_name(kind) == PLATEAU else {}
    budget = BudgetPlan(max_steps=steps, steps_per_epoch=5, batches_per_pass=5, by_passes=False)
    spec = spec_of({"kind": kind, "arguments": arguments or {}, **more}, **validation)
    schedule = plan_optimization(spec, Linear(), budget)[1]
    assert schedule is not None
    return schedule


def refusal(schedule: Mapping[str, Any], **more: Any) -> str:
    budget = BudgetPlan(max_steps=STEPS, steps_per_epoch=5, batches_per_pass=5, by_passes=False)
    with pytest.raises(PlanRefused) as caught:
        plan_optimization(spec_of(schedule, **more), Linear(), budget)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 78
    return str(caught.value)


def torchs_own(name: str, steps: int) -> list[float]:
    """The rates as a person would get them, with the length written down."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    arguments = dict(NEEDED.get(name, {}))
    if name in LENGTHS:
        arguments[LENGTHS[name]] = steps
    if name in ("CyclicLR", "OneCycleLR"):
        arguments |= {"max_lr": 0.1, "cycle_momentum": False}
    if name == "CyclicLR":
        arguments["base_lr"] = 0.0
    scheduler = getattr(lr_scheduler, name)(optimizer, **arguments)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < steps:
            scheduler.step()
    return rates


def test_every_scheduler_of_torch_is_known_or_refused_with_its_reason() -> None:
    classes = {
        name
        for name, kind in vars(lr_scheduler).items()
        if isinstance(kind, type) and issubclass(kind, lr_scheduler.LRScheduler) and "LRScheduler" not in name
    }
    unfit = {"LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}
    assert set(SCHEDULERS) == classes - unfit
    for name in unfit:
        assert f"at schedule.kind: {name} " in refusal({"kind": name})


@pytest.mark.parametrize("name", CURVES)
def test_the_rates_are_those_of_torch_bit_for_bit(name: str) -> None:
    plan = planned(name, NEEDED.get(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates = Rates(plan)
        assert [rates.at(index) for index in range(STEPS)] == torchs_own(name, STEPS)


@pytest.mark.parametrize("name", CURVES)
def test_a_warm_up_comes_first_and_the_length_is_what_is_left(name: str) -> None:
    rates = Rates(planned(name, NEEDED.get(name), warmup_steps=8))
    expected = torchs_own(name, STEPS - 8)
    assert [rates.at(index) for index in range(8, STEPS)] == expected
    assert [rates.at(index) for index in range(8)] == [expected[0] * (index / 8) for index in range(8)]


@pytest.mark.parametrize("name", CURVES)
def test_the_rate_of_a_step_does_not_depend_on_where_one_began_to_ask(name: str) -> None:
    plan = planned(name, NEEDED.get(name), warmup_steps=3)
    in_order = Rates(plan)
    rates = [in_order.at(index) for index in range(STEPS)]
    assert [lr_at(plan, index) for index in (25, 4, 39)] == [rates[25], rates[4], rates[39]]
    back_and_forth = Rates(plan)
    assert [back_and_forth.at(index) for index in (30, 2, 30, 29)] == [rates[30], rates[2], rates[30], rates[29]]


@pytest.mark.parametrize("name", sorted(LENGTHS))
def test_beyond_the_budget_it_began_with_a_rate_rests_and_never_climbs(name: str) -> None:
    plan = planned(name)
    rates = Rates(plan)
    before = [rates.at(index) for index in range(STEPS)]
    after = [rates.at(index) for index in range(STEPS, 4 * STEPS)]
    assert len(set(after[1:])) == 1, "it rests"
    is_rising = name in ("LinearLR",)  # one that rises throughout may come to its end
    assert all(rate <= before[-1] or is_rising for rate in after)
    # and from the beginning: the length is not that of the longer budget
    assert lr_at(plan, 3 * STEPS) == after[-1]


def test_what_has_a_length_of_its_own_or_none_goes_on_beyond_the_budget() -> None:
    exponential = Rates(planned("exponential", {"gamma": 0.9}))
    assert exponential.at(3 * STEPS) < exponential.at(STEPS)
    waves = Rates(planned("CosineAnnealingWarmRestarts", {"T_0": 10}))
    assert waves.at(2 * STEPS) == waves.at(0) == 0.1
    cosine = Rates(planned("CosineAnnealingLR", {"T_max": 10}))
    assert cosine.at(20) == pytest.approx(0.1)
    # torch itself raises beyond the end of this one
    cycle = Rates(planned("one_cycle", {"total_steps": 10}))
    assert cycle.at(STEPS) == cycle.at(9)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("cosine_annealing", "CosineAnnealingLR"),
        ("cosine_annealing_lr", "CosineAnnealingLR"),
        ("CosineAnnealingLR", "CosineAnnealingLR"),
        ("cosine_annealing_warm_restarts", "CosineAnnealingWarmRestarts"),
        ("one_cycle", "OneCycleLR"),
        ("onecycle", "OneCycleLR"),
        ("multi_step", "MultiStepLR"),
        ("multistep", "MultiStepLR"),
        ("step", "StepLR"),
        ("exponential", "ExponentialLR"),
        ("polynomial", "PolynomialLR"),
        ("cyclic", "CyclicLR"),
        ("linear_lr", "LinearLR"),
        ("constant_lr", "ConstantLR"),
        ("reduce_on_plateau", "ReduceLROnPlateau"),
        ("reduce_lr_on_plateau", "ReduceLROnPlateau"),
        ("ReduceLROnPlateau", "ReduceLROnPlateau"),
    ],
)
def test_a_scheduler_goes_by_several_names(kind: str, name: str) -> None:
    assert scheduler_name(kind) == name


@pytest.mark.parametrize("lowest", [{"lr_min": 0.01}, {"arguments": {"eta_min": 0.01}}])
def test_the_lowest_rate_may_be_written_in_our_words_or_in_torchs(lowest: dict[str, Any]) -> None:
    more = {"kind": "cosine_annealing", "arguments": {}, **lowest}
    plan = planned(more.pop("kind"), more.pop("arguments"), **more)
    assert (plan.kind, plan.lr_min, plan.arguments) == ("CosineAnnealingLR", 0.01, {})
    assert lr_at(plan, STEPS) == pytest.approx(0.01, rel=1e-12)


def test_the_plan_has_the_arguments_that_torch_would_choose_by_itself() -> None:
    assert planned("step", {"step_size": 5}).arguments == {"step_size": 5, "gamma": 0.1}
    assert planned("one_cycle").arguments == {
        "pct_start": 0.3,
        "anneal_strategy": "cos",
        "div_factor": 25.0,
        "final_div_factor": 10000.0,
        "three_phase": False,
    }


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "cosine_anealing"}, "at schedule.kind: unknown name 'cosine_anealing'. Did you mean cosine_annealing?"),
    ({"kind": "CosineAnealingLR"}, "Did you mean CosineAnnealingLR?"),
    ({"kind": "warmup_cosin"}, "Did you mean warmup_cosine?"),
    ({"kind": "qqqqqq"}, "Known: constant, linear, warmup_cosine, step,"),
    ({"kind": "constant", "arguments": {"gamma": 1}}, "at schedule.arguments: constant takes none."),
    (
        {"kind": "cosine_annealing", "arguments": {"t_max": 5}},
        "at schedule.arguments.t_max: CosineAnnealingLR does not take it. Did you mean T_max?",
    ),
    ({"kind": "step"}, "at schedule.arguments.step_size: StepLR needs it."),
    ({"kind": "step", "arguments": {"step_size": 3, "last_epoch": 5}}, "last_epoch: the step is the run's own."),
    ({"kind": "step", "arguments": {"step_size": 0}}, "StepLR does not work with them: ZeroDivisionError"),
    (
        {"kind": "step", "arguments": {"step_size": "a"}},
        "at schedule.arguments.step_size: expected a number, found 'a'.",
    ),
    ({"kind": "step", "arguments": {"step_size": None}}, "at schedule.arguments.step_size: StepLR needs it."),
    ({"kind": "multi_step", "arguments": {"milestones": ["5"]}}, "expected whole numbers, found a list of 1."),
    ({"kind": "multi_step", "arguments": {"milestones": 5}}, "expected whole numbers, found 5."),
    ({"kind": "one_cycle", "arguments": {"three_phase": 1}}, "three_phase: expected true or false, found 1."),
    (
        {"kind": "one_cycle", "arguments": {"anneal_strategy": "cubic"}},
        "OneCycleLR does not work with them: ValueError",
    ),
    ({"kind": "exponential", "arguments": {"gamma": -1.0}}, "the learning rate of update 2 would be -0.1."),
    ({"kind": "exponential", "arguments": {"gamma": 1e300}}, "the learning rate of update 3 would be inf."),
    ({"kind": "cyclic", "arguments": {"scale_fn": "abs"}}, "scale_fn: it is a function, which a spec cannot say."),
    ({"kind": "cyclic", "arguments": {"cycle_momentum": True}}, "cycle_momentum: the momentum stays that of"),
    ({"kind": "one_cycle", "arguments": {"max_lr": 0.2}}, "max_lr: expected schedule.lr_max (0.1), found 0.2."),
    ({"kind": "one_cycle", "arguments": {"epochs": 3}}, "epochs: its length is a number of steps"),
    ({"kind": "one_cycle", "lr_min": 0.01}, "at schedule.lr_min: OneCycleLR has no lowest rate. Remove it."),
    ({"kind": "cosine_annealing", "lr_min": 0.01, "arguments": {"eta_min": 0.02}}, "eta_min: expected schedule.lr_min"),
    ({"kind": "cosine_annealing", "arguments": {"eta_min": 0.2}}, "eta_min: expected a number from 0 to lr_max (0.1)"),
    ({"kind": "reduce_on_plateau"}, "at schedule.kind: it follows the evaluations, and there is no validation."),
]


@pytest.mark.parametrize(("schedule", "says"), REFUSALS)
def test_what_does_not_fit_is_refused_in_one_line(schedule: dict[str, Any], says: str) -> None:
    assert says in refusal(schedule)


def test_the_mode_of_a_plateau_is_that_of_the_best_checkpoint() -> None:
    validation = {"parquet_paths": ["a.parquet"]}
    schedule = {"kind": "reduce_on_plateau", "arguments": {"mode": "max"}}
    assert "at schedule.arguments.mode: it follows checkpoint.best, whose mode is min" in refusal(
        schedule, validation=validation
    )
    assert planned("reduce_on_plateau").arguments["mode"] == "min"


def training(tmp_path: Path, schedule: SchedulePlan, **changes: Any) -> tuple[Linear, TorchState, Context]:
    optimizer = OptimizerPlan(name="adamw", arguments={"lr": 0.1, "weight_decay": 0.01}, fused=None, accumulate=1)
    plan: Plan = plan_of(tmp_path / "run", optimizer=optimizer, schedule=schedule, **changes)
    plan = plan.model_copy(update={"checkpoint": plan.checkpoint.model_copy(update={"best_metric": "val_loss"})})
    trainer, ctx = Linear(), context_of(plan)
    return trainer, trainer.configure(ctx), ctx


def steps_of(parts: tuple[Linear, TorchState, Context], steps: range) -> list[Any]:
    """Train; after each third step there is an evaluation, whose loss falls for a while and then rests."""
    trainer, state, ctx = parts
    lrs = []
    for step in steps:
        ctx._step = step
        lrs.append(trainer.train_step(batch_of(step), state, ctx).metrics["lr"])
        if step % 3 == 0:
            trainer.evaluated({"val_loss": max(1.0 - step / 10, 0.4)}, state, ctx)
    return lrs


@pytest.mark.parametrize(("name", "stop"), [*itertools.product(sorted(SCHEDULERS), [2, 23])])
def test_a_resume_is_bit_for_bit_the_run_that_went_through(tmp_path: Path, name: str, stop: int) -> None:
    given = {"patience": 1, "factor": 0.5} if name == PLATEAU else NEEDED.get(name)
    schedule = planned(name, given, warmup_steps=4)
    through = training(tmp_path, schedule)
    lrs = steps_of(through, range(1, STEPS + 1))
    first = training(tmp_path, schedule)
    begun = steps_of(first, range(1, stop + 1))
    saved = first[0].state_dict(first[1])
    torch.save(saved, tmp_path / "saved.pt")
    again = training(tmp_path, schedule)
    payload = torch.load(tmp_path / "saved.pt", weights_only=True)
    again[0].load_state_dict(again[1], payload, again[2])
    assert begun + steps_of(again, range(stop + 1, STEPS + 1)) == lrs
    assert differences("", through[0].state_dict(through[1]), again[0].state_dict(again[1])) == []


def test_a_plateau_is_torchs_own_and_does_not_count_the_warm_up() -> None:
    rates = Rates(planned("reduce_on_plateau", {"patience": 0, "factor": 0.5, "min_lr": 0.02}, warmup_steps=4))
    assert [rates.at(index) for index in (0, 2)] == [0.0, 0.05]
    for _ in range(9):
        rates.observe(1.0, step=3)
    assert rates.at(4) == 0.1
    found = []
    for value in (1.0, 1.0, 0.5, 0.7, 0.7, 0.7):
        rates.observe(value, step=8)
        found.append(rates.at(8))
    assert found == [0.1, 0.05, 0.05, 0.025, 0.02, 0.02]


def test_a_plateau_goes_on_in_proportion_under_another_highest_rate() -> None:
    plan = planned("reduce_on_plateau", {"patience": 0, "factor": 0.5})
    rates = Rates(plan)
    for _ in range(3):
        rates.observe(1.0, step=1)
    other = Rates(plan.model_copy(update={"lr_max": 0.2}))
    other.load_state_dict(rates.state_dict())
    assert (rates.at(5), other.at(5)) == (0.025, 0.05)


def test_the_state_of_a_schedule_that_is_missing_or_too_much_is_refused() -> None:
    plateau, cosine = Rates(planned("reduce_on_plateau")), Rates(planned("cosine_annealing"))
    assert cosine.state_dict() is None
    with pytest.raises(ResumeRefused, match="the state of a schedule is missing"):
        plateau.load_state_dict(None)
    with pytest.raises(ResumeRefused, match="the state of a schedule is there"):
        cosine.load_state_dict(plateau.state_dict())
    with pytest.raises(ResumeRefused, match="expected best, "):
        plateau.load_state_dict({"lr": 1.0})


@pytest.mark.parametrize("kind", ["reduce_on_plateau", "cosine_annealing"])
def test_a_cadence_of_the_validation_is_safe_unless_the_rate_follows_it(tmp_path: Path, kind: str) -> None:
    data: dict[str, Any] = {"fingerprint": "0" * 64}
    validation = ValidationPlan(data=data, columns=["x"], batch_size=4, every_steps=5, every_epochs=0, max_batches=0)
    plan = plan_of(tmp_path / "run", schedule=planned(kind), validation=validation)
    other = plan.model_copy(update={"validation": validation.model_copy(update={"every_steps": 6})})
    if kind == "cosine_annealing":
        assert revise(plan, other, allowed=())[0].revision == 1
        return
    with pytest.raises(ResumeRefused, match=r"validation\.every_steps: the run has 5, now 6"):
        revise(plan, other, allowed=())


def test_asking_for_rates_draws_nothing_and_touches_no_gradient() -> None:
    before = torch.get_rng_state()
    rate = Rates(planned("one_cycle")).at(20)
    assert math.isfinite(rate)
    assert torch.equal(before, torch.get_rng_state())
