"""Small models of many kinds, each as the Export that a trainer would give of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trn.trainer import Export

__all__ = ["RIGHT", "Lambda", "several"]

BATCH = {0: "batch"}


class Lambda(nn.Module):
    """A module of some parts and a function that is given them."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, one: Tensor, other: Tensor | None = None) -> Any:
        return self.function(self, one) if other is None else self.function(self, one, other)


def several(export: Export, *sizes: int) -> list[Export]:
    """The export, and the same with fewer rows in each input whose first axis is the batch."""
    fewer = [
        replace(
            export,
            inputs={
                name: tensor[:size] if export.dynamic.get(name, {}).get(0) == "batch" else tensor
                for name, tensor in export.inputs.items()
            },
        )
        for size in sizes
    ]
    return [export, *fewer]


def mlp() -> Export:
    model = nn.Sequential(nn.Linear(6, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))
    return Export(model, {"x": torch.randn(8, 6)}, ("y",), {"x": BATCH})


def classifier() -> Export:
    model = Lambda(
        lambda self, x: (self.net(x).softmax(-1), self.net(x).argmax(-1), self.net(x) > 0),
        net=nn.Sequential(nn.Linear(6, 32), nn.SiLU(), nn.Dropout(0.5), nn.Linear(32, 5)),
    )
    return Export(model, {"x": torch.randn(8, 6)}, ("p", "best", "is_high"), {"x": BATCH})


def convolution() -> Export:
    trunk = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.BatchNorm2d(32),
    )
    model = Lambda(lambda self, x: self.head(self.trunk(x).relu().mean((2, 3))), trunk=trunk, head=nn.Linear(32, 4))
    for _ in range(3):
        model(torch.randn(8, 3, 16, 16))  # means and variances that are not 0 and 1
    return Export(model, {"image": torch.randn(8, 3, 16, 16)}, ("logits",), {"image": BATCH})


def transformer() -> Export:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = Lambda(lambda self, x: self.head(self.encoder(x)), encoder=encoder, head=nn.Linear(32, 7))
    return Export(model, {"x": torch.randn(4, 9, 32)}, ("y",), {"x": {0: "batch", 1: "time"}})


def recurrent() -> Export:
    model = Lambda(lambda self, x: self.net(x)[0][:, -1], net=nn.GRU(5, 16, batch_first=True))
    return Export(model, {"x": torch.randn(8, 6, 5)}, ("y",), {"x": BATCH})


def two_inputs() -> Export:
    """An embedding beside numbers; a tied output; a constant that is no parameter."""
    embedding = nn.Embedding(20, 16)
    weights = torch.linspace(-1, 1, 16)

    def forward(self: Any, ids: Tensor, x: Tensor) -> Tensor:
        hidden = self.embedding(ids).mean(1) * weights + self.mix(x)
        return hidden.tanh() @ self.embedding.weight.T

    model = Lambda(forward, embedding=embedding, mix=nn.Linear(6, 16))
    inputs = {"ids": torch.randint(20, (8, 4)), "x": torch.randn(8, 6)}
    return Export(model, inputs, ("scores",), {"ids": {0: "batch", 1: "time"}, "x": BATCH})


RIGHT: dict[str, Callable[[], Export]] = {
    "mlp": mlp,
    "classifier": classifier,
    "convolution": convolution,
    "transformer": transformer,
    "recurrent": recurrent,
    "two_inputs": two_inputs,
}
