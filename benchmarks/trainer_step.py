"""A step of TorchTrainer with all that guards it, over a loop by hand that does the same: average, clipping, checks.

    python benchmarks/trainer_step.py [--rounds 20] [--steps 200] [--quick]

Both train the model of mlp.py, 10,384 parameters, on batches of 32 from the same feed, in one process, on one thread,
in turn. By hand, as a careful person would write it: fused AdamW, learning rate by schedule, the norm clipped, a loss
and norm that are not finite left out before the update, an average of the weights in one foreach call, and a line of
JSON, flushed. trn does all that, and the gates, the journal with its digest, events and the stop check; with
`guard.policy: skip` it also keeps the random streams of each step, so that one left out leaves no trace in them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlp
import torch
from rounds import Calls, Round, by_trn, context, open_feed, p2, ratios

from trn.devices import keep_freed_memory
from trn.loop.stop import StopRequest
from trn.plan import make_plan
from trn.ranks import World
from trn.spec import load_spec
from trn.spec.plan_model import Plan
from trn.trainer import lr_at

GOAL = 1.05
DECAY = 0.999
_WARM = 10  # steps at the beginning of a round that count for nobody

Contender = Callable[[Plan, Any, int, Calls], Iterator[Round]]


def by_hand(plan: Plan, trainer: Any, steps: int, calls: Calls) -> Iterator[Round]:
    """The plainest loop with the same guarantees in its arithmetic."""
    assert plan.optimizer is not None, "the spec names one"
    assert plan.schedule is not None, "the spec names one"
    assert plan.clip_grad_norm is not None, "the spec clips"
    feed, ctx = open_feed(plan, calls), context(plan, trainer, StopRequest())
    torch.manual_seed(plan.seed)
    model = mlp.make_model()
    weights = [parameter.detach() for parameter in model.parameters()]
    average = [weight.clone() for weight in weights]
    arguments = {key: plan.optimizer.arguments[key] for key in ("lr", "betas", "eps", "weight_decay")}
    optimizer = torch.optim.AdamW(model.parameters(), **arguments, fused=True)
    step = 0
    with open(Path(plan.run_dir) / "by_hand.jsonl", "w") as journal:
        while True:
            for _ in range(steps + 1):
                began_s = time.perf_counter()
                batch = ctx.tensors(feed.next().record_batch)
                optimizer.zero_grad(set_to_none=True)
                loss = torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip_grad_norm)
                values = {"train_loss": loss.item(), "grad_norm": norm.item()}
                if not all(math.isfinite(value) for value in values.values()):
                    continue
                lr = lr_at(plan.schedule, step)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
                torch._foreach_lerp_(average, weights, 1.0 - DECAY)
                step += 1
                wall_s = time.perf_counter() - began_s
                line = {
                    "step": step,
                    **values,
                    "lr": lr,
                    "samples_per_sec": mlp.BATCH / wall_s,
                    "wall_ms": wall_s * 1e3,
                }
                journal.write(json.dumps(line) + "\n")
                journal.flush()
            yield feed.take_round()


def plan_in(folder: Path, policy: str) -> tuple[Plan, Any]:
    folder.mkdir()
    sets = ["ema.enabled=true", f"ema.decay={DECAY}", f"guard.policy={policy}"]
    loaded = load_spec(mlp.make(folder), sets=sets)
    (folder / "runs" / "bench").mkdir(parents=True)
    return make_plan(loaded, run_id="bench", runs_dir=folder / "runs", world=World())


def measure(rounds: int, steps: int) -> tuple[dict[str, list[list[float]]], dict[str, Round]]:
    """(times of the steps of each round, one counted round) by contender."""
    asked: dict[str, tuple[Contender, str]] = {
        "by hand": (by_hand, "stop"),
        "trn, guard: stop": (by_trn, "stop"),
        "trn, guard: skip": (by_trn, "skip"),
    }
    calls = Calls()
    with tempfile.TemporaryDirectory() as folder:
        running = {
            name: one(*plan_in(Path(folder) / str(number), policy), steps + _WARM, calls)
            for number, (name, (one, policy)) in enumerate(asked.items())
        }
        for one in running.values():
            next(one)
        timed: dict[str, list[list[float]]] = {name: [] for name in running}
        for _ in range(rounds):
            for name, one in running.items():
                timed[name].append(next(one).steps_s[_WARM:])
        counted = {}
        for name, one in running.items():
            with calls:
                counted[name] = next(one)
    return timed, counted


def report(timed: dict[str, list[list[float]]], counted: dict[str, Round]) -> None:
    hand = timed["by hand"]
    print(f"{len(hand)} rounds of {len(hand[0])} steps each, in turn; times of a step; `rounds` are ratios at p10")
    print(f"{'':18} {'p2 us':>7} {'median':>7} {'x by hand':>10} {'rounds':>13} {'calls: python':>14} {'+ C':>6}")
    for name, mine in timed.items():
        pooled = [s for one in mine for s in one]
        ratio, least, greatest = ratios(mine, hand)
        python, c = (statistics.median(one[_WARM:]) for one in (counted[name].python_calls, counted[name].c_calls))
        print(
            f"{name:18} {p2(pooled) * 1e6:7.0f} {statistics.median(pooled) * 1e6:7.0f} {ratio:10.3f} "
            f"{least:6.2f}-{greatest:<6.2f} {python:14.0f} {c:6.0f}"
        )
    print(f"the goal is at most {GOAL:.2f} x by hand")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="5 rounds of 100 steps")
    args = parser.parse_args()
    keep_freed_memory()  # as the runner does
    torch.set_num_threads(1)
    rounds, steps = (5, 100) if args.quick else (args.rounds, args.steps)
    report(*measure(rounds, steps))


if __name__ == "__main__":
    main()
