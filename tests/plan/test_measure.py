"""Sizes found without making a model, against those of models that were made and have made a step."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.plans import plan_of
from trn.plan.measure import make_forecast, sizes_of, tokens_per_row
from trn.recipes.lm import LanguageModel
from trn.spec.plan_model import OptimizerPlan, Plan
from trn.trainer import Step, TorchTrainer
from trn.trainer.averaging import Average
from trn.trainer.optimizers import OPTIMIZERS, build_optimizer, optimizer_arguments

GIVEN = {"lr": 0.01, "weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-8, "momentum": 0.9, "nesterov": False}


def adam(**changes: Any) -> OptimizerPlan:
    return OptimizerPlan(**({"name": "adam", "arguments": {"lr": 0.01}, "fused": None, "accumulate": 1} | changes))


def planned(tmp_path: Path, *, counts: str = "samples", column: str = "float", **changes: Any) -> Plan:
    plan = plan_of(tmp_path / "runs" / "demo", optimizer=adam(), **changes)
    data = {"fingerprint": "0" * 64, "rows": 100, "columns": [{"name": "tokens", "type": column}]}
    return plan.model_copy(
        update={
            "dataset": plan.dataset.model_copy(update={"data": data}),
            "trainer": plan.trainer.model_copy(update={"counts": counts}),
        }
    )


class Tied(nn.Module):
    """An embedding that is used twice, a frozen layer, and three buffers, of which one is not saved."""

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4, device=device)
        self.frozen = nn.Linear(4, 4, device=device).requires_grad_(False)
        self.norm = nn.BatchNorm1d(4, device=device)
        self.register_buffer("scratch", torch.zeros(7, device=device), persistent=False)
        self.out = nn.Linear(4, 10, bias=False, device=device)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.out(self.norm(self.frozen(self.embed(ids))))
        return result


def trainer_of(build: Callable[[Any], Any]) -> TorchTrainer:
    class Given(TorchTrainer):
        def build(self, ctx: Any) -> nn.Module:
            model: nn.Module = build(ctx)
            return model

        def loss(self, model: nn.Module, batch: Any) -> Step:
            raise AssertionError("no step is made")

    return Given()


def after_a_step(model: nn.Module, plan: OptimizerPlan, batch: Tensor) -> list[Tensor]:
    """The tensors of an optimizer that has really made a step of the model."""
    optimizer = build_optimizer(plan, [one for one in model.parameters() if one.requires_grad])
    model(batch).square().mean().backward()
    optimizer.step()
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def test_the_sizes_of_a_model_by_hand() -> None:
    sizes = sizes_of(Tied(), adam())
    assert sizes.parameters == 10 * 4 + (4 * 4 + 4) + 2 * 4 == 68
    assert sizes.trainable == 40 + 8
    # means and variances, the counter of batches (int64), and the buffer that is not saved
    buffers = 2 * 4 * 4 + 8
    assert sizes.weights_bytes == 68 * 4 + buffers + 7 * 4
    assert sizes.gradients_bytes == 48 * 4
    # two moments a number, and the step of each of three tensors
    assert sizes.optimizer_bytes == 2 * 48 * 4 + 3 * 4
    assert sizes.saved_bytes == 68 * 4 + buffers + sizes.optimizer_bytes
    assert sizes.saved_tensors == (1 + 2 + 2 + 3) + 3 * 3
    assert sizes.file_bytes == 4096 * sizes.saved_tensors, "each is smaller than a page"


def test_an_average_is_another_model_in_memory_and_in_the_file() -> None:
    plain, averaged = sizes_of(Tied(), adam()), sizes_of(Tied(), adam(), has_average=True)
    assert averaged.average_bytes == sum(one.nbytes for one in Average(Tied(), 0.9).state_dict().values()) > 0
    assert averaged.saved_bytes == plain.saved_bytes + averaged.average_bytes
    assert averaged.memory_bytes == plain.memory_bytes + 2 * averaged.average_bytes
    assert sizes_of(Tied().bfloat16(), adam(), has_average=True).average_bytes == averaged.average_bytes


def test_a_model_without_memory_has_the_same_sizes() -> None:
    with torch.device("meta"):
        model = Tied()
    assert sizes_of(model, adam()) == sizes_of(Tied(), adam())


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_what_each_optimizer_keeps_is_what_it_keeps_after_a_real_step(name: str) -> None:
    plan = adam(name=name, arguments=optimizer_arguments(name, GIVEN, set()))

    def made() -> nn.Module:
        # muon takes matrices only
        return nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 6, bias=name != "muon"))

    state = after_a_step(made(), plan, torch.ones(3, 6))
    sizes = sizes_of(made(), plan)
    assert sizes.optimizer_bytes == sum(value.nbytes for value in state)
    assert sizes.saved_tensors == len(list(made().parameters())) + len(state)


def test_types_other_than_float32_are_counted_as_they_are() -> None:
    model = nn.Linear(8, 8, bias=False).to(torch.bfloat16)
    sizes = sizes_of(model, adam())
    assert (sizes.weights_bytes, sizes.gradients_bytes, sizes.optimizer_bytes) == (128, 128, 2 * 128 + 4)


def test_a_model_of_any_size_is_measured_without_its_memory(tmp_path: Path) -> None:
    trainer = trainer_of(lambda ctx: nn.Linear(10**6, 10**6, bias=False))
    told = make_forecast(planned(tmp_path), trainer)
    assert told.sizes is not None
    assert told.sizes.parameters == 10**12
    assert told.sizes.memory_bytes == (4 + 4 + 8 + 12) * 10**12 + 2 * 4
    assert (told.notes, told.unknown["tokens"]) == ((), "the trainer counts samples")
    assert any("are free in" in said for said in told.warnings())
    assert not (tmp_path / "runs").exists()


def test_a_build_that_needs_values_is_really_made_and_says_so(tmp_path: Path) -> None:
    def build(ctx: Any) -> nn.Module:
        model = Tied()
        assert model.embed.weight.abs().sum().item() > 0
        return model

    told = make_forecast(planned(tmp_path), trainer_of(build))
    assert told.sizes == sizes_of(Tied(), adam())
    (note,) = told.notes
    assert note.startswith("the model was really made to be measured: without memory, `build` raised RuntimeError: ")
    assert f"note: {note}" in list(told.lines())


def test_parts_that_a_build_puts_elsewhere_count_once(tmp_path: Path) -> None:
    told = make_forecast(planned(tmp_path), trainer_of(lambda ctx: Tied(device="cpu")))
    assert told.sizes == sizes_of(Tied(), adam())


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda ctx: 1 / 0, "making and measuring its model raised ZeroDivisionError: division by zero"),
        (
            lambda ctx: "no model",
            "making and measuring its model raised AttributeError: 'str' object has no attribute 'parameters'",
        ),
        (
            lambda ctx: Path(os.devnull, "x\nsecond line").read_text(),
            "making and measuring its model raised NotADirectoryError: ",
        ),
    ],
)
def test_a_build_that_fails_leaves_the_rest_of_the_forecast(
    tmp_path: Path, build: Callable[[Any], Any], reason: str
) -> None:
    told = make_forecast(planned(tmp_path), trainer_of(build))
    assert told.sizes is None
    assert told.unknown["parameters"].startswith(reason)
    assert "\n" not in told.unknown["parameters"]
    assert told.to_json()["steps"] == 10


def test_a_trainer_that_configures_itself_is_not_asked(tmp_path: Path) -> None:
    class Own(TorchTrainer):
        def configure(self, ctx: Any) -> Any:
            raise AssertionError("it may do anything")

        build = loss = configure  # type: ignore[assignment]  # never called

    for trainer in (Own(), object()):
        told = make_forecast(planned(tmp_path), trainer)  # type: ignore[arg-type]  # a stranger's, of six hooks
        assert told.unknown["parameters"] == "what this trainer's own `configure` makes, only a run can show"


def test_a_trainer_that_saves_more_is_told_of(tmp_path: Path) -> None:
    class More(TorchTrainer):
        def build(self, ctx: Any) -> nn.Module:
            return nn.Linear(2, 2)

        def loss(self, model: nn.Module, batch: Any) -> Step:
            raise AssertionError("no step is made")

        def state_dict(self, state: Any) -> dict[str, Any]:
            return super().state_dict(state) | {"more": torch.zeros(1000)}

    (note,) = make_forecast(planned(tmp_path), More()).notes
    assert "checkpoints may hold more" in note


def test_a_row_of_text_counts_as_the_predictions_that_it_gives(tmp_path: Path) -> None:
    plan = planned(tmp_path, counts="tokens", column="fixed_size_list<element: int32>[257]")
    assert tokens_per_row(plan, trainer_of(lambda ctx: None)) == 257
    assert tokens_per_row(plan, LanguageModel()) == 256
    assert tokens_per_row(planned(tmp_path, counts="tokens"), LanguageModel()) is None
    told = make_forecast(planned(tmp_path, counts="tokens"), trainer_of(lambda ctx: nn.Linear(2, 2)))
    assert told.unknown["tokens"] == "the data have no one list of fixed length"
