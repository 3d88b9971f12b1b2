"""Tokens/s of the loop against a loop that a person would write: same model, same feed, same optimizer, in turn.

    python benchmarks/lm_loop.py [--config examples/lm/stdlib.yaml] [--rounds 12] [--steps 8] [--threads 2]

Both in a process that keeps its freed memory, as the runner does; `--give-back` measures without.

The hand-written step: next batch, forward, backward, clip, learning rate, update, `loss.item()`. Ours does that and
refuses what is not finite, writes a journal line and an event, and looks for stops. A step is timed from one batch to
the next, so that everything between two steps counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from trn.checkpoint.saver import Saver
from trn.devices import keep_freed_memory
from trn.feed import Cursor, Dataset, Feed
from trn.feed.tensors import to_tensors
from trn.files import make_folder
from trn.journal import EventLog, MetricsLog
from trn.loop.loop import Parts, train
from trn.loop.progress import Progress
from trn.loop.stop import StopRequest
from trn.plan import make_params, make_plan, plan_order
from trn.ranks import World
from trn.spec import load_spec
from trn.spec.plan_model import Plan
from trn.trainer import Context, Trainer, lr_at
from trn.trainer.optimizers import build_optimizer


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


class Timed:
    """Notes when the feed is asked for each batch."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.asked_s: list[float] = []

    def next(self) -> Any:
        self.asked_s.append(time.perf_counter())
        return self._feed.next()

    def take_steps_s(self) -> list[float]:
        """Durations of the steps since the last call, one fewer than batches."""
        durations = [b - a for a, b in zip(self.asked_s, self.asked_s[1:], strict=False)]
        self.asked_s.clear()
        return durations


def open_feed(plan: Plan) -> Timed:
    return Timed(Feed(Dataset.from_json(plan.dataset.data), plan_order(plan), plan.dataset.columns, Cursor()))


def context(plan: Plan, trainer: Trainer, stop: StopRequest) -> Context:
    return Context(
        plan=plan,
        params=make_params(trainer, plan.trainer.params),
        device=torch.device("cpu"),
        run_dir=Path(plan.run_dir),
        cancelled=stop.requested,
        tensors=lambda raw_batch: to_tensors(raw_batch, raw_batch.schema.names),
    )


def by_hand(plan: Plan, trainer: Any, steps: int) -> Iterator[list[float]]:
    """Rounds of the hand-written loop; yields the step times of each."""
    assert plan.optimizer is not None
    assert plan.schedule is not None
    feed = open_feed(plan)
    torch.manual_seed(plan.seed)
    ctx = context(plan, trainer, StopRequest())
    model = trainer.build(ctx)
    optimizer = build_optimizer(plan.optimizer, list(model.parameters()))
    step = 0
    while True:
        for _ in range(steps + 1):
            batch = trainer.transform(feed.next().record_batch, ctx)
            optimizer.zero_grad(set_to_none=True)
            loss = trainer.loss(model, batch).loss
            loss.backward()
            if plan.clip_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = lr_at(plan.schedule, step)
            optimizer.step()
            loss.item()
            step += 1
        yield feed.take_steps_s()


def by_trn(plan: Plan, trainer: Any, steps: int) -> Iterator[list[float]]:
    """Rounds of the loop itself, with its journal on disk; yields the step times of each."""
    run_dir = Path(plan.run_dir)
    reports = make_folder(run_dir / "reports")
    stop, feed = StopAfter(), open_feed(plan)
    torch.manual_seed(plan.seed)
    ctx = context(plan, trainer, stop)
    metrics, val_metrics = MetricsLog(reports / "train_metrics.jsonl"), MetricsLog(reports / "val_metrics.jsonl")
    parts = Parts(
        plan=plan,
        trainer=trainer,
        state=trainer.configure(ctx),
        ctx=ctx,
        feed=feed,  # type: ignore[arg-type]  # only next() is used
        validation=None,
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
    )
    progress = Progress()
    while True:
        stop.again(steps + 1)
        train(parts, progress, {})
        yield feed.take_steps_s()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, default=Path("examples/lm/stdlib.yaml"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--give-back", action="store_true", help="leave the C library's memory settings alone")
    args = parser.parse_args()
    if not args.give_back:
        keep_freed_memory()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        sets = ["dataset.end=cycle", "max_steps=1000000", "checkpoint_every=0", "sample_every=0", "validation=null"]
        loaded = load_spec(args.config, sets=sets)
        plan, trainer = make_plan(loaded, run_id="bench", runs_dir=Path(folder), world=World())
        hand, ours = by_hand(plan, trainer, args.steps), by_trn(plan, trainer, args.steps)
        next(hand), next(ours)
        pairs = [(next(hand), next(ours)) for _ in range(args.rounds)]
    report(pairs)


def report(pairs: list[tuple[list[float], list[float]]]) -> None:
    raw = sorted(s for hand, _ in pairs for s in hand)
    mine = sorted(s for _, ours in pairs for s in ours)
    at = max(0, int(0.02 * len(raw)) - 1)
    ratios = sorted(statistics.median(hand) / statistics.median(ours) for hand, ours in pairs)
    print(f"{len(raw)} steps each in {len(pairs)} rounds, ms a step")
    for name, values in (("by hand", raw), ("trn", mine)):
        print(f"  {name:8} p2 {values[at] * 1e3:8.2f}   median {statistics.median(values) * 1e3:8.2f}")
    whole = statistics.median(raw) / statistics.median(mine)
    print(f"tokens/s of trn / by hand: {raw[at] / mine[at]:.3f} at p2, {whole:.3f} of the medians")
    print(f"  by the rounds' medians: {ratios[0]:.3f} to {ratios[-1]:.3f}, median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
