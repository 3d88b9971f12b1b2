"""Contenders in turn, some steps each, over several rounds; and what is made of their times.

A contender is a generator: each `next` makes a round of steps and yields how long each step took. A step lasts from
one request for a batch to the next, so that everything between two steps counts. The headline is the 2nd percentile of
all steps, the step that nobody disturbed: on a machine whose cores are shared, a median says more about the others.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from trn.checkpoint.saver import Saver
from trn.feed import Cursor, Dataset, Feed
from trn.feed.tensors import to_tensors
from trn.files import make_folder
from trn.journal import EventLog, MetricsLog
from trn.loop.agreement import Agreement
from trn.loop.loop import Parts, train
from trn.loop.progress import Progress
from trn.loop.stop import StopRequest
from trn.plan import make_params, plan_order
from trn.ranks import World
from trn.ranks.group import Alone
from trn.ranks.watchdog import Watchdog
from trn.runner.reading import validation_of
from trn.spec.plan_model import Plan
from trn.trainer import Context, Trainer

__all__ = ["Calls", "Round", "StopAfter", "Timed", "by_trn", "context", "open_feed", "p2", "ratios"]


@dataclass
class Calls:
    """Function calls of this thread while `counting`: exact, and free of other programs' noise."""

    python: int = 0
    c: int = 0

    def __enter__(self) -> Calls:
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _count(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            self.python += 1
        elif event == "c_call":
            self.c += 1


@dataclass
class Round:
    """Times of the steps of a round, and the calls that each made where somebody counted."""

    steps_s: list[float] = field(default_factory=list)
    python_calls: list[int] = field(default_factory=list)
    c_calls: list[int] = field(default_factory=list)


class Timed:
    """A feed that notes when it is asked for each batch, and how many calls there were until then."""

    is_raw = True

    def __init__(self, feed: Feed, calls: Calls | None = None) -> None:
        self._feed = feed
        self._calls = calls or Calls()
        self._asked: list[tuple[float, int, int]] = []

    def next(self) -> Any:
        self._asked.append((time.perf_counter(), self._calls.python, self._calls.c))
        return self._feed.next()

    def take_round(self) -> Round:
        """The steps since the last call, one fewer than batches."""
        pairs = list(zip(self._asked, self._asked[1:], strict=False))
        self._asked.clear()
        # Timed.next itself is one call of Python, with a clock and an append
        return Round(
            steps_s=[after[0] - before[0] for before, after in pairs],
            python_calls=[after[1] - before[1] - 1 for before, after in pairs],
            c_calls=[after[2] - before[2] - 2 for before, after in pairs],
        )


class StopAfter(StopRequest):
    """Asks to stop after so many more polls of the loop: one poll a step."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 0

    def requested(self) -> bool:
        if self.left == 0:
            self.ask("preempted", "the round is over")
            return True
        self.left -= 1
        return False

    def again(self, steps: int) -> None:
        self.outcome, self.left = None, steps


def open_feed(plan: Plan, calls: Calls | None = None) -> Timed:
    feed = Feed(Dataset.from_json(plan.dataset.data), plan_order(plan), plan.dataset.columns, Cursor())
    return Timed(feed, calls)


def context(plan: Plan, trainer: Trainer, stop: StopRequest) -> Context:
    return Context(
        plan=plan,
        params=make_params(trainer, plan.trainer.params),
        device=torch.device("cpu"),
        run_dir=Path(plan.run_dir),
        cancelled=stop.requested,
        tensors=lambda raw_batch: to_tensors(raw_batch, raw_batch.schema.names),
    )


def by_trn(
    plan: Plan, trainer: Any, steps: int, calls: Calls | None = None, keep: list[Parts] | None = None
) -> Iterator[Round]:
    """Rounds of the loop itself, with its journal on disk; `keep` is given what it works with."""
    run_dir = Path(plan.run_dir)
    reports = make_folder(run_dir / "reports")
    stop, feed = StopAfter(), open_feed(plan, calls)
    torch.manual_seed(plan.seed)
    ctx = context(plan, trainer, stop)
    metrics, val_metrics = MetricsLog(reports / "train_metrics.jsonl"), MetricsLog(reports / "val_metrics.jsonl")
    parts = Parts(
        plan=plan,
        trainer=trainer,
        state=trainer.configure(ctx),
        ctx=ctx,
        feed=feed,  # type: ignore[arg-type]  # only is_raw and next() are used
        validation=validation_of(plan, World()),
        metrics=metrics,
        val_metrics=val_metrics,
        events=EventLog(reports / "events.jsonl", run_id="bench", job_id="bench"),
        saver=Saver(
            make_folder(run_dir / "checkpoints"),
            run_id="bench",
            job_id="bench",
            plan_fingerprint=plan.fingerprint,
            keep=2,
            sync_journal=metrics.sync,
        ),
        stop=stop,
        agreement=Agreement(Alone(), stop),
        watchdog=Watchdog(None),
    )
    if keep is not None:
        keep.append(parts)
    progress = Progress()
    while True:
        stop.again(steps + 1)
        train(parts, progress, {})
        yield feed.take_round()


def p2(values: list[float]) -> float:
    """The 2nd percentile."""
    return sorted(values)[max(0, int(0.02 * len(values)) - 1)]


def ratios(mine: list[list[float]], others: list[list[float]]) -> tuple[float, float, float]:
    """(ratio of the p2 of all steps, least, greatest ratio of the rounds' 10th percentiles) of mine to others."""
    by_round = [_p10(one) / _p10(other) for one, other in zip(mine, others, strict=True)]
    return p2([s for one in mine for s in one]) / p2([s for one in others for s in one]), min(by_round), max(by_round)


def _p10(values: list[float]) -> float:
    return statistics.quantiles(values, n=10)[0]
