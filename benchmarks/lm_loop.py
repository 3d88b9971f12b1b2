"""Tokens/s of the loop against a loop that a person would write: same model, same feed, same optimizer, in turn.

    python benchmarks/lm_loop.py [--config examples/lm/stdlib.yaml] [--rounds 12] [--steps 8] [--threads 2] [--quick]

Both in a process that keeps its freed memory, as the runner does; `--give-back` measures without.

The hand-written step: next batch, forward, backward, clip, learning rate, update, `loss.item()`. Ours does that and
refuses what is not finite, writes a journal line and an event, and looks for stops.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rounds import Round, by_trn, context, open_feed, p2

from trn.devices import keep_freed_memory
from trn.loop.stop import StopRequest
from trn.plan import make_plan
from trn.ranks import World
from trn.spec import load_spec
from trn.spec.plan_model import Plan
from trn.trainer import lr_at
from trn.trainer.optimizers import build_optimizer


def by_hand(plan: Plan, trainer: Any, steps: int) -> Iterator[Round]:
    """Rounds of the hand-written loop."""
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
        yield feed.take_round()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, default=Path("examples/lm/stdlib.yaml"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="2 rounds of 4 steps")
    parser.add_argument("--give-back", action="store_true", help="leave the C library's memory settings alone")
    args = parser.parse_args()
    if not args.give_back:
        keep_freed_memory()
    torch.set_num_threads(args.threads)
    rounds, steps = (2, 4) if args.quick else (args.rounds, args.steps)
    with tempfile.TemporaryDirectory() as folder:
        sets = ["dataset.end=cycle", "max_steps=1000000", "checkpoint_every=0", "sample_every=0", "validation=null"]
        sets.append("checkpoint.every_epochs=0")
        loaded = load_spec(args.config, sets=sets)
        plan, trainer = make_plan(loaded, run_id="bench", runs_dir=Path(folder), world=World())
        hand, ours = by_hand(plan, trainer, steps), by_trn(plan, trainer, steps)
        next(hand), next(ours)
        pairs = [(next(hand).steps_s, next(ours).steps_s) for _ in range(rounds)]
    report(pairs)


def report(pairs: list[tuple[list[float], list[float]]]) -> None:
    raw = [s for hand, _ in pairs for s in hand]
    mine = [s for _, ours in pairs for s in ours]
    ratios = sorted(statistics.median(hand) / statistics.median(ours) for hand, ours in pairs)
    print(f"{len(raw)} steps each in {len(pairs)} rounds, ms a step")
    for name, values in (("by hand", raw), ("trn", mine)):
        print(f"  {name:8} p2 {p2(values) * 1e3:8.2f}   median {statistics.median(values) * 1e3:8.2f}")
    whole = statistics.median(raw) / statistics.median(mine)
    print(f"tokens/s of trn / by hand: {p2(raw) / p2(mine):.3f} at p2, {whole:.3f} of the medians")
    print(f"  by the rounds' medians: {ratios[0]:.3f} to {ratios[-1]:.3f}, median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
