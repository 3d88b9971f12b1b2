"""A regressor on a table: the whole trainer."""

from dataclasses import dataclass

from torch import nn

from trn import Export, Step, TorchTrainer


@dataclass(frozen=True)
class Params:
    width: int = 32


class Regressor(TorchTrainer):
    Params = Params
    columns = ("x", "y")

    def build(self, ctx):
        width = ctx.params.width
        return nn.Sequential(nn.Linear(6, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def loss(self, model, batch):
        error_B = model(batch["x"]).squeeze(1) - batch["y"]
        return Step(error_B.square().mean(), {"absolute_error": error_B.abs().mean()}, count=len(error_B))

    def export(self, batch, state, ctx):
        return Export(state.model, {"x": batch["x"]}, ("y",), dynamic={"x": {0: "batch"}})
