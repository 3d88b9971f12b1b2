"""The small classifier in the Trainer of pytorch-lightning. Needs the extra `bench`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlp
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from rounds import Calls, Round, Timed, context, open_feed

from trn.loop.stop import StopRequest
from trn.spec.plan_model import Plan
from trn.trainer import Context
from trn.trainer.optimizers import build_optimizer

__all__ = ["by_lightning"]


class Batches:
    """So many batches of the feed as tensors, each time it is walked."""

    def __init__(self, feed: Timed, ctx: Context, count: int) -> None:
        self._feed, self._ctx, self._count = feed, ctx, count

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self._count):
            yield self._ctx.tensors(self._feed.next().record_batch)


class Module(pl.LightningModule):
    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self.model = model
        self._made = optimizer

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._made

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(self.model(batch["x"]), batch["y"])
        self.log("train_loss", loss, batch_size=mlp.BATCH)
        return loss


def by_lightning(plan: Plan, trainer: Any, steps: int, calls: Calls) -> Iterator[Round]:
    """A new Trainer each round, on the same model and optimizer."""
    assert plan.optimizer is not None, "the spec names one"
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|torch")
    feed, ctx = open_feed(plan, calls), context(plan, trainer, StopRequest())
    torch.manual_seed(plan.seed)
    model = mlp.make_model()
    module = Module(model, build_optimizer(plan.optimizer, list(model.parameters())))
    while True:
        lightning = pl.Trainer(
            max_steps=steps + 1,
            accelerator="cpu",
            devices=1,
            logger=CSVLogger(Path(plan.run_dir) / "lightning"),
            log_every_n_steps=1,
            gradient_clip_val=plan.clip_grad_norm,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        lightning.fit(module, train_dataloaders=Batches(feed, ctx, steps + 1))
        yield feed.take_round()
