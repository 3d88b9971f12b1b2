"""The small classifier in the Trainer of transformers. Needs the extra `bench`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401 - the Trainer needs it, and says so only when it is made
import mlp
import torch
from rounds import Calls, Round, Timed, context, open_feed
from transformers import PrinterCallback, Trainer, TrainingArguments

from trn.loop.stop import StopRequest
from trn.spec.plan_model import Plan
from trn.trainer import Context
from trn.trainer.optimizers import build_optimizer

__all__ = ["by_hf"]


class Model(torch.nn.Module):
    """The classifier as the Trainer wants it: a dictionary with the loss in it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp.make_model()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.inner(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, y), "logits": logits}


class Batches:
    """So many batches of the feed as tensors, each time it is walked."""

    def __init__(self, feed: Timed, ctx: Context, count: int) -> None:
        self._feed, self._ctx, self._count = feed, ctx, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self._count):
            yield self._ctx.tensors(self._feed.next().record_batch)


class FeedTrainer(Trainer):
    """Takes its batches from the feed, without a DataLoader in between."""

    feed_batches: Batches

    def get_train_dataloader(self) -> Any:
        return self.feed_batches


def by_hf(plan: Plan, trainer: Any, steps: int, calls: Calls) -> Iterator[Round]:
    """A new Trainer each round, on the same model and optimizer."""
    assert plan.optimizer is not None, "the spec names one"
    feed, ctx = open_feed(plan, calls), context(plan, trainer, StopRequest())
    torch.manual_seed(plan.seed)
    model = Model()
    optimizer = build_optimizer(plan.optimizer, list(model.parameters()))
    arguments = TrainingArguments(
        output_dir=str(Path(plan.run_dir) / "hf"),
        max_steps=steps + 1,
        per_device_train_batch_size=mlp.BATCH,
        lr_scheduler_type="constant",
        max_grad_norm=plan.clip_grad_norm,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    while True:
        hf = FeedTrainer(model=model, args=arguments, optimizers=(optimizer, None), train_dataset=[])
        hf.remove_callback(PrinterCallback)
        hf.feed_batches = Batches(feed, ctx, steps + 1)
        hf.train()
        yield feed.take_round()
