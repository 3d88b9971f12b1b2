"""bf16 and fp16, the average and the refusal of a step, all together in TorchTrainer's step."""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from support.compare import differences
from support.plans import context_of, plan_of
from trn.checkpoint import rng
from trn.errors import NumericalInstability, ResumeRefused
from trn.loop.loop import make_step
from trn.loop.stop import StopRequest
from trn.ranks.group import Group
from trn.spec.plan_model import EmaPlan, GuardPlan, LossScalePlan, OptimizerPlan
from trn.trainer import Context, Step, TorchState, TorchTrainer
from trn.trainer.scaling import LossScale, ScaleOverflow

SKIP = GuardPlan(policy="skip", max_skips=3, lr_decay=0.5)
EMA = EmaPlan(decay=0.9, evaluate=True)


def adamw(accumulate: int = 1) -> OptimizerPlan:
    return OptimizerPlan(name="adamw", arguments={"lr": 0.01}, fused=None, accumulate=accumulate)


class Small(TorchTrainer):
    """A batch norm and dropout, so that every try leaves a trace; `fault` spoils one call of `loss`."""

    def __init__(self) -> None:
        self.calls = 0
        self.fault: tuple[str, float, int] | None = None
        self.dtypes: set[torch.dtype] = set()

    def build(self, ctx: Context) -> nn.Module:
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
        out = model(batch["x"])
        self.dtypes.add(out.dtype)
        loss = (out.squeeze(1) - batch["y"]).square().mean()
        kind, value, call = self.fault or ("", 0.0, -1)
        if self.calls == call and kind == "loss":
            loss = loss * value
        if self.calls == call and kind == "gradient":
            loss.register_hook(lambda gradient: gradient * value)
        self.calls += 1
        return Step(loss, {"mae": out.abs().mean()}, count=len(out))

    def spoil(self, kind: str, value: float, micro_batch: int = 0) -> None:
        """A micro-batch of the next step is bad, however often it is made."""
        self.fault, self.calls = (kind, value, micro_batch), 0


def started(folder: Path, precision: str = "none", **changes: Any) -> tuple[Small, TorchState, Context]:
    if precision == "fp16":
        changes.setdefault("loss_scale", LossScalePlan(initial=256.0, growth_interval=2000))
    changes.setdefault("optimizer", adamw())
    trainer = Small()
    ctx = context_of(plan_of(folder / "run", precision=precision, **changes))
    return trainer, trainer.configure(ctx), ctx


def batch_of(seed: int, rows: int = 6) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=draw)
    return {"x": x, "y": x.sum(1)}


def step_of(trainer: Small, state: TorchState, ctx: Context, step: int, seed: int | None = None) -> dict[str, Any]:
    """One step as the loop makes it, with its redo; random numbers are those of the step."""
    ctx._step = step
    parts: Any = SimpleNamespace(trainer=trainer, state=state, ctx=ctx, stop=StopRequest())
    torch.manual_seed(100 + step)
    result = make_step(parts, batch_of(step if seed is None else seed), rng.held())
    return dict(result.metrics)


def all_of(trainer: Small, state: TorchState) -> Any:
    """Everything that survives, as it is now."""
    return copied({"saved": trainer.state_dict(state), "scale": state.scale})


def copied(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.clone()
    if isinstance(tree, Mapping):
        return {key: copied(value) for key, value in tree.items()}
    return [copied(value) for value in tree] if isinstance(tree, (list, tuple)) else tree


@pytest.mark.parametrize(
    ("precision", "dtype"), [("none", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_training_and_evaluation_compute_in_the_planned_type_and_all_that_stays_is_float32(
    tmp_path: Path, precision: str, dtype: torch.dtype
) -> None:
    trainer, state, ctx = started(tmp_path, precision, ema=EMA)
    step_of(trainer, state, ctx, 1)
    assert trainer.dtypes == {dtype}
    trainer.dtypes.clear()
    trainer.evaluate([batch_of(7)], state, ctx)  # type: ignore[list-item]  # these tests hand in tensors
    assert trainer.dtypes == {dtype}
    kept = [*state.parameters, *(p.grad for p in state.parameters), *state.average.state_dict().values()]  # type: ignore[union-attr]
    kept += [value for one in state.optimizer.state.values() for value in one.values()]
    assert {one.dtype for one in kept if one is not None and one.is_floating_point()} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_is_the_one_a_person_would_write(tmp_path: Path, precision: str) -> None:
    trainer, state, ctx = started(tmp_path, precision, clip_grad_norm=0.5, ema=EMA)
    found = step_of(trainer, state, ctx, 1)

    torch.manual_seed(5)
    model = Small().build(ctx)
    average = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.01, fused=True)
    batch = batch_of(1)
    torch.manual_seed(101)
    with torch.autocast("cpu", torch.bfloat16 if precision == "bf16" else torch.float16):
        loss = (model(batch["x"]).squeeze(1) - batch["y"]).square().mean()
    if precision == "bf16":
        loss.backward()
    else:
        (loss.float() * 256.0).backward()
        for parameter in model.parameters():
            parameter.grad /= 256.0  # type: ignore[operator]  # it has one
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    for shadow, parameter in zip(average, model.parameters(), strict=True):
        shadow.lerp_(parameter.detach(), 0.1)
    assert differences("", dict(state.model.state_dict()), dict(model.state_dict())) == []
    saved = trainer.state_dict(state)["ema"]
    assert differences("", [saved[name] for name, _ in model.named_parameters()], average) == []
    assert (found["train_loss"], found["grad_norm"]) == (loss.item(), norm.item())
    assert found.get("loss_scale") == (256.0 if precision == "fp16" else None)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_overflow_is_made_again_and_ends_as_if_the_scale_had_never_been_too_large(
    tmp_path: Path, accumulate: int
) -> None:
    large = started(tmp_path / "a", "fp16", loss_scale=LossScalePlan(initial=2.0**24, growth_interval=50), ema=EMA,
                    optimizer=adamw(accumulate))  # fmt: skip
    first = step_of(*large, 1)
    assert 1.0 < first["loss_scale"] < 2.0**24
    assert large[1].scale == LossScale(first["loss_scale"], good_steps=1)
    plan = LossScalePlan(initial=first["loss_scale"], growth_interval=50)
    small = started(tmp_path / "b", "fp16", loss_scale=plan, ema=EMA, optimizer=adamw(accumulate))
    assert step_of(*small, 1) == first
    for step in range(2, 6):
        assert step_of(*large, step) == step_of(*small, step)
    assert differences("", all_of(*large[:2])["saved"], all_of(*small[:2])["saved"]) == []


def test_after_its_interval_the_scale_grows_until_a_step_overflows_and_every_step_is_an_update(tmp_path: Path) -> None:
    plan = LossScalePlan(initial=2.0**13, growth_interval=2)
    trainer, state, ctx = started(tmp_path, "fp16", loss_scale=plan)
    scales, weights = [], set()
    for step in range(1, 13):
        scales.append(step_of(trainer, state, ctx, step)["loss_scale"])
        weights.add(state.parameters[0].detach().sum().item())
    assert scales[:4] == [2.0**13, 2.0**13, 2.0**14, 2.0**14]
    assert any(after < before for before, after in itertools.pairwise(scales))
    assert all(after <= 2 * before for before, after in itertools.pairwise(scales))
    assert len(weights) == 12


def test_a_gradient_that_no_scale_mends_is_refused_and_the_scale_is_what_it_was(tmp_path: Path) -> None:
    trainer, state, ctx = started(tmp_path, "fp16", ema=EMA)
    step_of(trainer, state, ctx, 1)
    before = all_of(trainer, state)
    for tries in range(1, 9):
        trainer.spoil("gradient", math.inf)
        with pytest.raises(ScaleOverflow) as overflow:
            step_of_once(trainer, state, ctx)
        assert overflow.value.scale == 256.0 / 2**tries
    trainer.spoil("gradient", math.inf)
    with pytest.raises(NumericalInstability) as refused:
        step_of_once(trainer, state, ctx)
    assert not isinstance(refused.value, ScaleOverflow)
    assert (refused.value.field, refused.value.step) == ("grad_norm", 2)
    assert differences("", all_of(trainer, state)["saved"], before["saved"]) == []
    assert state.scale == before["scale"]


def step_of_once(trainer: Small, state: TorchState, ctx: Context) -> None:
    ctx._step = 2
    trainer.train_step(trainer.prepare_batch(batch_of(2), state, ctx), state, ctx)


def test_a_loss_that_is_not_finite_is_refused_at_once_whatever_the_scale(tmp_path: Path) -> None:
    trainer, state, ctx = started(tmp_path, "fp16")
    trainer.spoil("loss", math.nan)
    with pytest.raises(NumericalInstability) as caught:
        step_of_once(trainer, state, ctx)
    assert not isinstance(caught.value, ScaleOverflow)
    assert caught.value.field == "train_loss"


class Repeating(Small):
    """Its fault comes again at every try of a step."""

    def prepare_batch(self, raw_batch: Any, state: TorchState, ctx: Context) -> Mapping[str, Tensor]:
        self.calls = 0
        return super().prepare_batch(raw_batch, state, ctx)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("precision", ["none", "bf16", "fp16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_refused_step_leaves_every_bit_as_it_was(
    tmp_path: Path, kind: str, value: float, precision: str, accumulate: int
) -> None:
    _, state, ctx = started(tmp_path, precision, guard=SKIP, ema=EMA, optimizer=adamw(accumulate), clip_grad_norm=1.0)
    trainer = Repeating()
    for step in (1, 2):
        step_of(trainer, state, ctx, step)
    before = all_of(trainer, state)
    trainer.spoil(kind, value, micro_batch=accumulate // 2)
    with pytest.raises(NumericalInstability) as caught:
        step_of(trainer, state, ctx, 3)
    assert caught.value.field == ("train_loss" if kind == "loss" else "grad_norm")
    assert differences("", all_of(trainer, state)["saved"], before["saved"]) == []
    assert state.scale == before["scale"]
    trainer.fault = None
    step_of(trainer, state, ctx, 3)
    assert differences("", all_of(trainer, state)["saved"], before["saved"]) != []


def test_a_trainer_that_refuses_a_step_itself_leaves_its_buffers_too(tmp_path: Path) -> None:
    class Judging(Small):
        def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
            super().loss(model, batch)
            raise NumericalInstability(step=1, field="temperature", value=math.inf)

    _, state, ctx = started(tmp_path, guard=SKIP)
    before = all_of(Small(), state)
    with pytest.raises(NumericalInstability, match="temperature"):
        step_of(Judging(), state, ctx, 1)
    assert differences("", all_of(Small(), state)["saved"], before["saved"]) == []


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("precision", ["none", "bf16", "fp16"])
def test_state_given_back_continues_bit_for_bit(tmp_path: Path, precision: str, accumulate: int) -> None:
    more: dict[str, Any] = {"ema": EMA, "optimizer": adamw(accumulate)}
    if precision == "fp16":
        more["loss_scale"] = LossScalePlan(initial=2.0**18, growth_interval=3)
    trainer, state, ctx = started(tmp_path / "a", precision, **more)
    for step in (1, 2, 3, 4):
        step_of(trainer, state, ctx, step)
    again, fresh, other = started(tmp_path / "b", precision, **more)
    again.load_state_dict(fresh, copied(trainer.state_dict(state)), other)
    for step in (5, 6, 7, 8):
        assert step_of(trainer, state, ctx, step) == step_of(again, fresh, other, step)
    assert differences("", all_of(trainer, state)["saved"], all_of(again, fresh)["saved"]) == []


@pytest.mark.parametrize(("key", "precision"), [("ema", "none"), ("loss_scale", "fp16")])
def test_a_checkpoint_without_what_the_plan_keeps_or_with_more_is_refused(
    tmp_path: Path, key: str, precision: str
) -> None:
    trainer, state, ctx = started(tmp_path / "a", precision, **({"ema": EMA} if key == "ema" else {}))
    payload = trainer.state_dict(state)
    plain, its_state, its_ctx = started(tmp_path / "b")
    with pytest.raises(ResumeRefused, match=f"{key}: the checkpoint has one"):
        plain.load_state_dict(its_state, payload, its_ctx)
    del payload[key]
    with pytest.raises(ResumeRefused, match=f"{key}: the checkpoint has none"):
        trainer.load_state_dict(state, payload, ctx)


@pytest.mark.parametrize("evaluate", [True, False])
def test_the_average_is_evaluated_where_the_plan_says_so(tmp_path: Path, evaluate: bool) -> None:
    trainer, state, ctx = started(tmp_path, ema=EmaPlan(decay=0.9, evaluate=evaluate))
    for step in (1, 2, 3):
        step_of(trainer, state, ctx, step)
    before = all_of(trainer, state)
    found = trainer.evaluate([batch_of(7)], state, ctx)  # type: ignore[list-item]  # these tests hand in tensors
    model = trainer.build(ctx).eval()
    model.load_state_dict(trainer.state_dict(state)["ema"] if evaluate else state.model.state_dict())
    with torch.no_grad():
        assert found["val_loss"] == trainer.loss(model, batch_of(7)).loss.item()
    assert differences("", all_of(trainer, state)["saved"], before["saved"]) == []


def test_without_an_average_the_model_is_as_it_is(tmp_path: Path) -> None:
    trainer, state, _ = started(tmp_path)
    before = [parameter.data_ptr() for parameter in state.parameters]
    with trainer.averaged(state):
        assert [parameter.data_ptr() for parameter in state.parameters] == before


def test_a_loss_that_writes_on_its_batch_sees_the_same_values_when_the_step_is_made_again(tmp_path: Path) -> None:
    class Writing(Small):
        def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
            batch["x"].mul_(0.5)
            return super().loss(model, batch)

    _, state, ctx = started(tmp_path / "a", "fp16", loss_scale=LossScalePlan(initial=2.0**24, growth_interval=50))
    first = step_of(Writing(), state, ctx, 1)
    plan = LossScalePlan(initial=first["loss_scale"], growth_interval=50)
    _, small, small_ctx = started(tmp_path / "b", "fp16", loss_scale=plan)
    assert step_of(Writing(), small, small_ctx, 1) == first


class Threads(Group):
    """One of two ranks that are threads: each call is a meeting, and takes at most ten seconds."""

    world_size = 2

    def __init__(self, rank: int, barrier: threading.Barrier, table: list[Any]) -> None:
        self.rank, self._barrier, self._table = rank, barrier, table

    def _meet(self, value: Any) -> list[Any]:
        self._table[self.rank] = value
        self._barrier.wait(10)
        found = list(self._table)
        self._barrier.wait(10)
        return found

    def exchange(self, values: Sequence[float]) -> list[list[float]]:
        return self._meet(list(values))

    def gather(self, value: Any) -> list[Any]:
        return self._meet(value)

    def sum_(self, tensors: Sequence[Tensor], *, have_met: bool = False) -> None:
        for tensor, ours, theirs in zip(tensors, *self._meet([one.clone() for one in tensors]), strict=True):
            tensor.copy_(ours + theirs)

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        for tensor, first in zip(tensors, self._meet([one.clone() for one in tensors])[0], strict=True):
            tensor.copy_(first)


def on_two_ranks(work: Callable[[int, Group], None]) -> None:
    barrier, table = threading.Barrier(2), [None, None]
    failed: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            work(rank, Threads(rank, barrier, table))
        except BaseException as error:  # noqa: BLE001 - a failed thread would fail no test
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    if failed:
        raise failed[0]


class Quiet(Repeating):
    """Threads share the random stream: without dropout nothing is drawn."""

    def build(self, ctx: Context) -> nn.Module:
        model: Any = super().build(ctx)
        model[3] = nn.Identity()
        return cast(nn.Module, model)


def test_the_gradient_of_two_ranks_is_the_same_whatever_the_scale(tmp_path: Path) -> None:
    found: dict[tuple[int, float], Any] = {}
    for initial in (16.0, 64.0):
        plan = LossScalePlan(initial=initial, growth_interval=50)
        parts = [started(tmp_path / f"{rank}-{initial}", "fp16", loss_scale=plan)[2] for rank in range(2)]
        states = [Quiet().configure(ctx) for ctx in parts]

        def work(rank: int, group: Group, parts: Any = parts, states: Any = states, initial: float = initial) -> None:
            parts[rank].ranks, parts[rank].world_size = group, 2
            metrics = one_step(Quiet(), states[rank], parts[rank], 1, rank)
            assert metrics.pop("loss_scale") == initial
            found[rank, initial] = metrics

        on_two_ranks(work)
    assert found[0, 16.0] == found[1, 16.0] == found[0, 64.0] == found[1, 64.0]


@pytest.mark.parametrize("precision", ["none", "bf16", "fp16"])
@pytest.mark.parametrize(("kind", "value"), [("loss", math.nan), ("gradient", math.inf), ("gradient", math.nan)])
def test_what_one_rank_of_two_finds_bad_is_refused_on_both_and_leaves_every_bit(
    tmp_path: Path, precision: str, kind: str, value: float
) -> None:
    more: dict[str, Any] = {"guard": SKIP, "ema": EMA, "optimizer": adamw(2)}
    if precision == "fp16":
        more["loss_scale"] = LossScalePlan(initial=2.0**24, growth_interval=50)
    seen: list[Any] = [None, None]
    started_parts = []
    for rank in range(2):
        _, _, ctx = started(tmp_path / str(rank), precision, **more)
        trainer = Quiet()
        started_parts.append((trainer, trainer.configure(ctx), ctx))

    def work(rank: int, group: Group) -> None:
        trainer, state, ctx = started_parts[rank]
        ctx.ranks, ctx.world_size = group, 2
        one_step(trainer, state, ctx, 1, rank)
        before = all_of(trainer, state)
        if rank == 1:
            trainer.spoil(kind, value, micro_batch=1)
        with pytest.raises(NumericalInstability) as caught:
            one_step(trainer, state, ctx, 2, rank)
        assert caught.value.field == ("train_loss" if kind == "loss" else "grad_norm")
        assert differences("", all_of(trainer, state)["saved"], before["saved"]) == []
        assert state.scale == before["scale"]
        trainer.fault = None
        one_step(trainer, state, ctx, 2, rank)
        seen[rank] = all_of(trainer, state)

    on_two_ranks(work)
    assert differences("", seen[0]["saved"], seen[1]["saved"]) == []
    assert seen[0]["scale"] == seen[1]["scale"]


def one_step(trainer: Small, state: TorchState, ctx: Context, step: int, rank: int) -> dict[str, Any]:
    """A step of a rank with its redo, without touching the random stream of the process."""
    ctx._step = step
    for _ in range(70):
        with contextlib.suppress(ScaleOverflow):
            batch = trainer.prepare_batch(batch_of(10 * step + rank, 4), state, ctx)
            return dict(trainer.train_step(batch, state, ctx).metrics)
    raise AssertionError("the step never ended")
