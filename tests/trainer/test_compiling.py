"""torch.compile beside the model: the same training, and one without it where it cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.compare import differences
from support.plans import context_of, plan_of
from trn.errors import PlanRefused, TrainerError
from trn.plan.training import plan_compile
from trn.ranks.group import Group
from trn.spec import Spec
from trn.spec.plan_model import CompilePlan, EmaPlan, OptimizerPlan
from trn.trainer import Context, Step, TorchState, TorchTrainer

CALLS: list[str] = []


def counting(graph: torch.fx.GraphModule, inputs: Any) -> Any:
    """A backend that runs a graph as it is, and counts how often one is compiled."""
    CALLS.append("compiled")
    return graph.forward


def raising(graph: torch.fx.GraphModule, inputs: Any) -> Any:
    CALLS.append("tried")
    torch.rand(7)  # what a compiler draws must not be missed
    raise RuntimeError("no compiler here\nand a page of why")


def raising_later(graph: torch.fx.GraphModule, inputs: Any) -> Any:
    """Fails when the compiled code is called, after the batch norm was moved."""

    def run(*args: Any) -> Any:
        graph.forward(*args)
        raise RuntimeError("the code is broken")

    return run


for backend in (counting, raising, raising_later):
    torch._dynamo.register_backend(backend, name=f"trn_test_{backend.__name__}")  # type: ignore[attr-defined]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4, 1)
        self.gain = 2.0

    def forward(self, x_BF: Tensor) -> Tensor:
        result: Tensor = self.head(self.drop(torch.tanh(self.norm(self.inlet(x_BF)))))
        return result


class Fit(TorchTrainer):
    def build(self, ctx: Context) -> nn.Module:
        torch.manual_seed(5)
        return Net()

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
        assert isinstance(model, nn.Module)
        error = model(batch["x"]).squeeze(1) - batch["y"]
        # attributes of the model are there, compiled or not
        return Step((error.square() * model.gain / 2.0).mean(), {"width": model.head.in_features}, count=len(error))


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """torch forgets what it compiled for the test before."""
    torch._dynamo.reset()  # type: ignore[attr-defined]
    CALLS.clear()
    yield
    torch._dynamo.reset()  # type: ignore[attr-defined]


def batch_of(seed: int, rows: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(rows, 3, generator=generator), "y": torch.randn(rows, generator=generator)}


def compile_of(backend: str, *, strict: bool = False) -> CompilePlan:
    return CompilePlan(backend=backend, mode=None, fullgraph=False, dynamic=None, strict=strict)


def started(
    folder: Path, compiled: CompilePlan | None, *, trainer: Fit | None = None, **changes: Any
) -> tuple[Fit, TorchState, Context]:
    optimizer = OptimizerPlan(name="adamw", arguments={"lr": 0.05}, fused=None, accumulate=changes.pop("accumulate", 1))
    trainer, ctx = (
        trainer or Fit(),
        context_of(plan_of(folder / "run", optimizer=optimizer, compile=compiled, **changes)),
    )
    state = trainer.configure(ctx)
    torch.manual_seed(11)
    return trainer, state, ctx


def train(parts: tuple[Fit, TorchState, Context], steps: range, rows: int = 8) -> list[Any]:
    trainer, state, ctx = parts
    told: list[Any] = []
    for step in steps:
        ctx._step = step
        told.append(dict(trainer.train_step(batch_of(step, rows), state, ctx).metrics))
    told.append(trainer.evaluate([batch_of(9)], state, ctx))  # type: ignore[list-item]  # tensors instead of rows
    told.append(torch.get_rng_state())
    return told


def test_a_backend_that_changes_nothing_gives_the_same_training(tmp_path: Path) -> None:
    accumulate = 2
    plain = started(tmp_path / "a", None, accumulate=accumulate)
    told = train(plain, range(1, 4))
    compiled = started(tmp_path / "b", compile_of("trn_test_counting"), accumulate=accumulate)
    again = train(compiled, range(1, 4))
    assert differences("", {"told": told}, {"told": again}) == []
    assert len(CALLS) == 2, "once for training, once for evaluation"
    saved, saved_again = plain[0].state_dict(plain[1]), compiled[0].state_dict(compiled[1])
    assert saved_again.pop("compile") == {"is_given_up": False}
    assert list(saved["model"]) == list(saved_again["model"]), "the names of what is saved do not change"
    assert differences("", saved, saved_again) == []


@pytest.mark.slow
def test_a_compiled_backward_pass_trains_and_the_average_is_what_is_evaluated(tmp_path: Path) -> None:
    ema = EmaPlan(decay=0.5, evaluate=True)
    plain = started(tmp_path / "a", None, ema=ema)
    told = train(plain, range(1, 4))
    compiled = started(tmp_path / "b", compile_of("aot_eager"), ema=ema)
    again = train(compiled, range(1, 4))
    for mine, theirs in zip(told[:-1], again[:-1], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6), "the same operations, perhaps in another order"
    assert compiled[1].compiled is not None
    assert not compiled[1].compiled.is_given_up


@pytest.mark.parametrize(("backend", "accumulate"), [("trn_test_raising", 1), ("trn_test_raising_later", 2)])
def test_a_failure_is_made_good_as_if_nothing_had_happened(tmp_path: Path, backend: str, accumulate: int) -> None:
    plain = started(tmp_path / "a", None, accumulate=accumulate)
    told = train(plain, range(1, 4))
    compiled = started(tmp_path / "b", compile_of(backend), accumulate=accumulate)
    again = train(compiled, range(1, 4))
    assert differences("", {"told": told}, {"told": again}) == []
    ((about, fields),) = compiled[2]._reported()
    assert about == "compile_fallback"
    assert "\n" not in fields["error"]
    saved, saved_again = plain[0].state_dict(plain[1]), compiled[0].state_dict(compiled[1])
    assert saved_again.pop("compile") == {"is_given_up": True}
    assert differences("", saved, saved_again) == []


def test_the_journal_has_the_compilers_reason_in_one_line(tmp_path: Path) -> None:
    trainer, state, ctx = started(tmp_path, compile_of("trn_test_raising"))
    ctx._step = 1
    trainer.train_step(batch_of(1), state, ctx)
    ((kind, fields),) = ctx._reported()
    assert kind == "compile_fallback"
    assert "RuntimeError: no compiler here" in fields["error"]
    assert "\n" not in fields["error"]
    assert len(fields["error"]) <= 300


def test_a_run_that_gave_up_does_not_try_again_after_a_resume(tmp_path: Path) -> None:
    first = started(tmp_path / "a", compile_of("trn_test_raising"))
    train(first, range(1, 3))
    assert CALLS.count("tried") == 1
    again = started(tmp_path / "b", compile_of("trn_test_raising"))
    again[0].load_state_dict(again[1], first[0].state_dict(first[1]), again[2])
    train(again, range(3, 5))
    assert CALLS.count("tried") == 1
    assert again[2]._reported() == []


class Twins(Group):
    """Rank 0 of two that have the same rows, of which the other gave up at its n-th exchange."""

    world_size = 2

    def __init__(self, gives_up_at: int) -> None:
        self.gives_up_at, self.asked = gives_up_at, 0

    def exchange(self, values: Sequence[float]) -> list[list[float]]:
        self.asked += 1
        return [list(values), [float(self.asked >= self.gives_up_at)]]

    def gather(self, value: Any) -> list[Any]:
        return [value, "RuntimeError: no compiler there" if value is None else value]

    def sum_(self, tensors: Sequence[Tensor], *, have_met: bool = False) -> None:
        for tensor in tensors:
            tensor *= 2

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """It is the first."""


@pytest.mark.parametrize("evaluates", [False, True])
def test_where_one_rank_gives_up_all_do_and_the_journal_has_its_reason(tmp_path: Path, evaluates: bool) -> None:
    trainer, state, ctx = started(tmp_path, compile_of("trn_test_counting"))
    twins = Twins(gives_up_at=2)
    ctx.ranks, ctx.world_size, ctx._step = twins, 2, 1
    assert state.compiled is not None
    trainer.train_step(batch_of(1), state, ctx)
    assert (state.compiled.is_given_up, ctx._reported()) == (False, [])
    if evaluates:
        trainer.evaluate([batch_of(2)], state, ctx)  # type: ignore[list-item]  # tensors instead of rows
    else:
        trainer.train_step(batch_of(2), state, ctx)
    assert state.compiled.is_given_up
    assert ctx._reported() == [("compile_fallback", {"error": "rank 1: RuntimeError: no compiler there"})]
    assert trainer.state_dict(state)["compile"] == {"is_given_up": True}
    trainer.train_step(batch_of(3), state, ctx)
    assert (twins.asked, ctx._reported()) == (2, []), "what is agreed on is not asked for again"


def test_a_strict_plan_ends_the_run_instead(tmp_path: Path) -> None:
    trainer, state, ctx = started(tmp_path, compile_of("trn_test_raising", strict=True))
    ctx._step = 1
    with pytest.raises(TrainerError) as caught:
        trainer.train_step(batch_of(1), state, ctx)
    assert "at torch.compile: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ctx._reported() == []


class Wrong(Fit):
    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
        return Step(model(batch["y"]).mean())


def test_a_mistake_of_the_trainer_is_not_called_one_of_the_compiler(tmp_path: Path) -> None:
    trainer, state, ctx = started(tmp_path, compile_of("trn_test_counting"), trainer=Wrong())
    ctx._step = 1
    with pytest.raises(RuntimeError, match="shape"):
        trainer.train_step(batch_of(1), state, ctx)
    assert ctx._reported() == []
    assert state.compiled is not None
    assert not state.compiled.is_given_up


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resume_with_other_shapes_before_it_is_bit_for_bit_the_same(tmp_path: Path, stop: int) -> None:
    """Short batches: a compiler that chose variable shapes after the second one would compute otherwise."""
    through = started(tmp_path / "a", compile_of("aot_eager"))
    train(through, range(1, stop + 1), rows=8)
    torch.save(through[0].state_dict(through[1]), tmp_path / "saved.pt")
    streams = torch.get_rng_state()
    train(through, range(stop + 1, 6), rows=6)
    torch._dynamo.reset()  # type: ignore[attr-defined]  # as in a new process
    again = started(tmp_path / "b", compile_of("aot_eager"))
    again[0].load_state_dict(again[1], torch.load(tmp_path / "saved.pt", weights_only=True), again[2])
    torch.set_rng_state(streams)
    train(again, range(stop + 1, 6), rows=6)
    assert differences("", through[0].state_dict(through[1]), again[0].state_dict(again[1])) == []


@pytest.mark.slow
def test_many_kinds_of_batches_are_each_compiled_and_none_is_given_up_unseen(tmp_path: Path) -> None:
    trainer, state, ctx = started(tmp_path, compile_of("trn_test_counting"))
    for step, rows in enumerate(range(4, 16), start=1):
        ctx._step = step
        trainer.train_step(batch_of(step, rows), state, ctx)
    assert len(CALLS) == 12, "by itself torch stops at 8"


def test_a_plan_does_not_compile_what_makes_its_activations_again() -> None:
    values: dict[str, Any] = {"config_version": 1, "trainer": "t", "dataset": {"parquet_paths": ["a"]}, "seed": 1}
    values |= {"device": "cpu", "precision": "none", "ddp": False, "max_steps": 1, "compile": {"enabled": True}}
    assert plan_compile(Spec.model_validate(values)) is not None
    with pytest.raises(PlanRefused, match=r"at compile\.enabled: .* Remove it, or activation_checkpointing"):
        plan_compile(Spec.model_validate(values | {"activation_checkpointing": ["a"]}))


@pytest.mark.parametrize(("word", "says"), [("backend", "Invalid backend: 'nothing'"), ("mode", "Unrecognized mode")])
def test_a_word_that_torch_does_not_know_is_refused(tmp_path: Path, word: str, says: str) -> None:
    plan = compile_of("inductor").model_copy(update={word: "nothing"})
    with pytest.raises(PlanRefused) as caught:
        started(tmp_path, plan)
    assert "at compile: " in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


class Still(Fit):
    """Without dropout: inductor draws in its own way."""

    def build(self, ctx: Context) -> nn.Module:
        model = super().build(ctx)
        assert isinstance(model, Net)
        model.drop.p = 0.0
        return model


@pytest.mark.slow
def test_the_compiler_of_torch_trains_to_the_same_numbers_within_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    told = []
    for name, plan in (("a", None), ("b", compile_of("inductor", strict=True))):
        trainer, state, ctx = started(tmp_path / name, plan, trainer=Still())
        ctx._step = 1
        told.append(dict(trainer.train_step(batch_of(1), state, ctx).metrics))
    # fused kernels add up in another order
    assert told[1] == pytest.approx(told[0], rel=1e-5)
