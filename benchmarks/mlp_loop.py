"""What a loop costs where the arithmetic costs nearly nothing: ours, by hand, and two peers, on 10,384 parameters.

    python benchmarks/mlp_loop.py [--rounds 20] [--steps 200] [--quick]

All contenders train the same model with the same optimizer on batches of 32 from the same feed, in one process, on one
thread, in turn. They differ in what a step does:

    bare         forward, backward, update by AdamW that is not fused; nothing else, not even loss.item()
    bare, fused  the same with the fused AdamW
    by hand      what trn does, as a person would write it: fused AdamW, learning rate by schedule, clipping, a finite
                 loss and norm or an error, and a line of JSON, flushed
    trn          fused AdamW, the schedule, clipping, all gates, the journal with its digest, events, the stop check
    lightning    Trainer of pytorch-lightning with CSVLogger at every step and gradient clipping; no bar, no checkpoint
    hf           Trainer of transformers, logging at every step, its default clipping; nothing printed, nothing reported

The peers come with the extra `bench`; without it they are left out. Each gets what favours it: batches that are tensors
already, a constant learning rate, buffered writing (lightning) or none (hf), no progress bar, no evaluation.
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
from trn.trainer import Trainer, lr_at
from trn.trainer.optimizers import build_optimizer

GOALS = {"by hand": 1.10, "bare": 1.05}
MOST_PYTHON_CALLS = 300
_WARM = 10  # steps at the beginning of a round that count for nobody: peers set themselves up anew

Contender = Callable[[Plan, Trainer, int, Calls], Iterator[Round]]


def bare(plan: Plan, trainer: Any, steps: int, calls: Calls, *, fused: bool = False) -> Iterator[Round]:
    """The least that trains."""
    assert plan.optimizer is not None, "the spec names one"
    feed, ctx = open_feed(plan, calls), context(plan, trainer, StopRequest())
    torch.manual_seed(plan.seed)
    model = mlp.make_model()
    arguments = {"lr": plan.optimizer.arguments["lr"], "weight_decay": plan.optimizer.arguments["weight_decay"]}
    optimizer = torch.optim.AdamW(model.parameters(), **arguments, fused=fused)
    while True:
        for _ in range(steps + 1):
            batch = ctx.tensors(feed.next().record_batch)
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])
            loss.backward()
            optimizer.step()
        yield feed.take_round()


def bare_fused(plan: Plan, trainer: Any, steps: int, calls: Calls) -> Iterator[Round]:
    return bare(plan, trainer, steps, calls, fused=True)


def by_hand(plan: Plan, trainer: Any, steps: int, calls: Calls) -> Iterator[Round]:
    """All that a step of trn does to the model and tells of itself, in the plainest way."""
    assert plan.optimizer is not None, "the spec names one"
    assert plan.schedule is not None, "the spec names one"
    assert plan.clip_grad_norm is not None, "the spec clips"
    feed, ctx = open_feed(plan, calls), context(plan, trainer, StopRequest())
    torch.manual_seed(plan.seed)
    model = mlp.make_model()
    optimizer = build_optimizer(plan.optimizer, list(model.parameters()))
    step = 0
    with open(Path(plan.run_dir) / "by_hand.jsonl", "w") as journal:
        while True:
            for _ in range(steps + 1):
                began_s = time.perf_counter()
                raw = feed.next()
                waited_s = time.perf_counter() - began_s
                batch = ctx.tensors(raw.record_batch)
                optimizer.zero_grad(set_to_none=True)
                loss = torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip_grad_norm)
                values = {"train_loss": loss.item(), "grad_norm": norm.item()}
                if not all(math.isfinite(value) for value in values.values()):
                    raise SystemExit(f"step {step + 1}: not finite: {values}")
                lr = lr_at(plan.schedule, step)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
                step += 1
                wall_s = time.perf_counter() - began_s
                line = {"step": step, **values, "lr": lr, "samples_per_sec": mlp.BATCH / wall_s}
                line |= {"wall_ms": wall_s * 1e3, "data_wait_ms": waited_s * 1e3}
                journal.write(json.dumps(line) + "\n")
                journal.flush()
            yield feed.take_round()


def contenders() -> tuple[dict[str, Contender], list[str]]:
    """By name, and what must be said of those that are not here."""
    found: dict[str, Contender] = {"bare": bare, "bare, fused": bare_fused, "by hand": by_hand, "trn": by_trn}
    missing = []
    try:
        from mlp_lightning import by_lightning

        found["lightning"] = by_lightning
    except ModuleNotFoundError as error:
        missing.append(f"lightning: there is no {error.name}")
    try:
        from mlp_hf import by_hf

        found["hf"] = by_hf
    except ModuleNotFoundError as error:
        missing.append(f"hf: there is no {error.name}")
    return found, missing


def plan_in(folder: Path) -> tuple[Plan, Trainer]:
    loaded = load_spec(mlp.make(folder))
    (folder / "runs" / "bench").mkdir(parents=True)
    return make_plan(loaded, run_id="bench", runs_dir=folder / "runs", world=World())


def measure(rounds: int, steps: int) -> tuple[dict[str, list[Round]], dict[str, Round], list[str]]:
    """(timed rounds, one counted round) by contender, and who is missing."""
    found, missing = contenders()
    calls = Calls()
    with tempfile.TemporaryDirectory() as folder:
        plan, trainer = plan_in(Path(folder))
        running = {name: one(plan, trainer, steps + _WARM, calls) for name, one in found.items()}
        for one in running.values():
            next(one)
        timed: dict[str, list[Round]] = {name: [] for name in running}
        for _ in range(rounds):
            for name, one in running.items():
                timed[name].append(next(one))
        counted = {}
        for name, one in running.items():
            with calls:
                counted[name] = next(one)
    return timed, counted, missing


def report(timed: dict[str, list[Round]], counted: dict[str, Round], missing: list[str]) -> None:
    times = {name: [one.steps_s[_WARM:] for one in rounds] for name, rounds in timed.items()}
    bare_s, count = times["bare"], len(times["bare"][0])
    print(f"{len(bare_s)} rounds of {count} steps each, in turn; times of a step; `rounds` are ratios to bare at p10")
    print(f"{'':14} {'p2 us':>7} {'median':>7} {'x bare':>7} {'rounds':>13} {'calls: python':>14} {'+ C':>6}")
    for name, mine in times.items():
        pooled = [s for one in mine for s in one]
        ratio, least, greatest = ratios(mine, bare_s)
        python, c = (
            statistics.median(values[_WARM:]) for values in (counted[name].python_calls, counted[name].c_calls)
        )
        print(
            f"{name:14} {p2(pooled) * 1e6:7.0f} {statistics.median(pooled) * 1e6:7.0f} {ratio:7.2f} "
            f"{least:6.2f}-{greatest:<6.2f} {python:14.0f} {c:6.0f}"
        )
    for one in missing:
        print(f"{one} (pip install 'trn-runtime[bench]' brings it)")
    for other, goal in GOALS.items():
        ratio, least, greatest = ratios(times["trn"], times[other])
        print(
            f"trn / {other}: {ratio:.3f} at p2, {least:.2f} to {greatest:.2f} by round; the goal is at most {goal:.2f}"
        )
    python = statistics.median(counted["trn"].python_calls[_WARM:])
    print(f"python calls a step of trn: {python:.0f}; the goal is at most {MOST_PYTHON_CALLS}")


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
