"""Activation checkpointing: less is kept, and every number is the same to the bit."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.compare import differences
from support.plans import context_of, plan_of
from trn.errors import PlanRefused
from trn.spec.plan_model import OptimizerPlan
from trn.trainer import Context, Step, TorchState, TorchTrainer
from trn.trainer.activations import checkpoint_activations


class Block(nn.Module):
    """Dropout and a batch norm: what draws, and what moves buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.4)
        self.calls = 0

    def forward(self, x_BF: Tensor, *, gain: float = 1.0) -> Tensor:
        self.calls += 1
        noise = random.random() + float(np.random.rand())
        result: Tensor = x_BF + gain * noise * self.drop(torch.tanh(self.norm(self.map(x_BF))))
        return result


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(3, 4)
        self.layers = nn.ModuleList([Block(), Block(), Block()])
        self.head = nn.Linear(4, 1)

    def forward(self, x_BF: Tensor) -> Tensor:
        x_BF = self.inlet(x_BF)
        for layer in self.layers:
            x_BF = layer(x_BF, gain=0.5)
        result: Tensor = self.head(x_BF)
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


def trained(folder: Path, patterns: list[str], *, accumulate: int = 1) -> tuple[list[Any], TorchState, dict[str, Any]]:
    optimizer = OptimizerPlan(name="adamw", arguments={"lr": 0.05}, fused=None, accumulate=accumulate)
    plan = plan_of(folder / "run", optimizer=optimizer, activation_checkpointing=patterns)
    trainer, ctx = Fit(), context_of(plan)
    state = trainer.configure(ctx)
    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)
    told = []
    for step in range(1, 5):
        ctx._step = step
        told.append(dict(trainer.train_step(batch_of(step), state, ctx).metrics))
        told.append([None if one.grad is None else one.grad.clone() for one in state.parameters])
    told.append(trainer.evaluate([batch_of(9)], state, ctx))  # type: ignore[list-item]  # tensors instead of rows
    told += [torch.get_rng_state(), random.random(), float(np.random.rand())]
    return told, state, trainer.state_dict(state)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("patterns", [["layers.*"], ["layers.1", "head"], ["*"], ["layers.?.norm"]])
def test_losses_gradients_buffers_and_streams_are_those_without(
    tmp_path: Path, patterns: list[str], accumulate: int
) -> None:
    told, _, saved = trained(tmp_path / "a", [], accumulate=accumulate)
    again, _, saved_again = trained(tmp_path / "b", patterns, accumulate=accumulate)
    assert differences("", {"told": told}, {"told": again}) == []
    assert list(saved["model"]) == list(saved_again["model"]), "the names of what is saved do not change"
    assert differences("", saved, saved_again) == []


class Turning(nn.Module):
    """What it computes depends on a buffer that it moves itself, as a spectral norm does, and on one that is shared."""

    def __init__(self, shared_F: Tensor) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)
        self.register_buffer("turned", torch.ones(4))
        self.register_buffer("shared", shared_F)

    def forward(self, x_BF: Tensor, debug: float = 1.0) -> dict[str, tuple[Tensor, None]]:
        with torch.no_grad():
            self.turned.mul_(1.5 if self.training else 1.0)
        return {"out": (torch.tanh(self.map(x_BF) * self.turned.clone() * self.shared * debug), None)}


class TurningNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared_F = torch.rand(4)
        self.layers = nn.ModuleList([Turning(shared_F), Turning(shared_F), Turning(shared_F)])

    def forward(self, x_BF: Tensor) -> Tensor:
        for layer in self.layers:
            x_BF = layer(x_BF, debug=0.5)["out"][0]  # a keyword that torch's own function has too
        return x_BF


@pytest.mark.parametrize("patterns", [["layers.1"], ["layers.2"], ["layers.*"]])
def test_a_module_that_moves_the_buffers_it_uses_computes_the_same_the_second_time(patterns: list[str]) -> None:
    found = []
    for chosen in ([], patterns):
        torch.manual_seed(3)
        net = TurningNet()
        checkpoint_activations(net, chosen)
        loss = net(torch.randn(2, 4)).square().sum() + net(torch.randn(2, 4)).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()  # the graph was kept: what was made again is made once more
        found.append({"loss": loss.detach(), **dict(net.state_dict())})
        found[-1] |= {name: one.grad for name, one in net.named_parameters() if one.grad is not None}
    assert len(found[0]) == 1 + 3 * 4
    assert differences("", *found) == []


def test_a_chosen_module_is_called_twice_in_training_and_once_in_evaluation(tmp_path: Path) -> None:
    _, state, _ = trained(tmp_path, ["layers.1"])
    assert isinstance(state.model, Net)
    assert [block.calls for block in state.model.layers] == [5, 9, 5]  # type: ignore[union-attr]


def test_what_a_chosen_module_keeps_is_less() -> None:
    def kept(patterns: list[str]) -> int:
        torch.manual_seed(0)
        net, sizes = Net(), []
        checkpoint_activations(net, patterns)
        with torch.autograd.graph.saved_tensors_hooks(lambda one: (sizes.append(one.numel()), one)[1], lambda one: one):
            net(torch.randn(512, 3))
        return sum(sizes)

    assert kept(["layers.*"]) < 0.5 * kept([])


def test_a_model_in_evaluation_is_exported_as_it_is() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)).eval()
    x = torch.randn(5, 3)
    before = net(x)
    assert checkpoint_activations(net, ["*"]) == ["0", "1", "2", "3"]
    exported = torch.export.export(net, (x,)).module()
    assert torch.equal(exported(x), before)


def test_of_nested_modules_the_outermost_is_chosen_and_containers_are_not() -> None:
    assert checkpoint_activations(Net(), ["layers*"]) == ["layers.0", "layers.1", "layers.2"]
    assert checkpoint_activations(Net(), ["*.norm", "layers.0"]) == ["layers.0", "layers.1.norm", "layers.2.norm"]
    assert checkpoint_activations(Net(), []) == []


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("layer.0", "'layer.0' matches no module. Near is layers.0."),
        ("layers", "'layers' matches no module."),  # a ModuleList is never called
        ("zzz", "There are inlet, layers.0, layers.0.map and 11 more."),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path, pattern: str, says: str) -> None:
    with pytest.raises(PlanRefused) as caught:
        trained(tmp_path, ["head", pattern])
    assert "at activation_checkpointing: " in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_forward_that_the_trainer_replaced_is_left_alone() -> None:
    net = Net()
    net.head.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(PlanRefused, match="the forward of module 'head' was replaced by the trainer"):
        checkpoint_activations(net, ["head"])


def test_a_copy_of_a_model_has_its_own_weights() -> None:
    net = Net()
    checkpoint_activations(net, ["head"])
    twin = copy.deepcopy(net)
    x = torch.randn(2, 4)
    with torch.no_grad():
        twin.head.weight.zero_()
        twin.head.bias.zero_()
    assert torch.equal(twin.head(x), torch.zeros(2, 1))
    assert not torch.equal(net.head(x), torch.zeros(2, 1))
