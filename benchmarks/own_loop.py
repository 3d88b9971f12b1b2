"""What `trn.open_run` adds to a loop by hand, where the arithmetic costs nearly nothing: 10,384 parameters.

    OMP_NUM_THREADS=1 python benchmarks/own_loop.py [--rounds 20] [--steps 200] [--quick]

Both train the same model with the same fused AdamW on batches of 32 from the same feed, in one process, on one thread,
in turn. They differ in what is around the arithmetic:

    by hand     a batch as tensors, clipping, loss and norm read and checked to be finite, the same line of
                JSON, flushed
    open_run    the same arithmetic inside `with trn.open_run(...)`: run.feed, run.gate, run.log

The goal is at most 15 us a step. A step lasts from the begin of the loop's body to the next one.
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
from rounds import Calls, p2

import trn
from trn.devices import keep_freed_memory
from trn.feed import Cursor, Dataset, Feed
from trn.feed.tensors import to_tensors
from trn.plan import plan_order
from trn.spec.plan_model import Plan

__all__ = ["contenders"]

GOAL_S = 15e-6
_WARM = 10
_SPEC: dict[str, Any] = {
    "config_version": 1,
    "seed": 1,
    "device": "cpu",
    "precision": "none",
    "ddp": False,
    "threads": 1,
    "max_steps": 1_000_000,
    "checkpoint_every": 0,
    "checkpoint": {"every_epochs": 0},
}


def by_hand(plan: Plan, folder: Path, steps: int, calls: Calls) -> Iterator[tuple[list[float], list[int]]]:
    """Rounds of the plain loop: (seconds, calls of Python and C) of each step."""
    model, optimizer = _made()
    began = _Began(calls)
    feed = Feed(Dataset.from_json(plan.dataset.data), plan_order(plan), plan.dataset.columns, Cursor())
    step = 0
    with open(folder / "by_hand.jsonl", "w") as journal, feed:
        while True:
            for _ in range(steps + 1):
                began_s = time.perf_counter()
                raw = feed.next()
                assert raw is not None, "the data have no end"
                batch = to_tensors(raw.record_batch)
                waited_s = time.perf_counter() - began_s
                began.note()
                optimizer.zero_grad(set_to_none=True)
                loss = torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])
                loss.backward()  # type: ignore[no-untyped-call]
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                values = {"train_loss": loss.item(), "grad_norm": norm.item()}
                if not all(math.isfinite(value) for value in values.values()):
                    raise SystemExit(f"step {step + 1}: not finite: {values}")
                optimizer.step()
                step += 1
                wall_s = time.perf_counter() - began_s
                line = {"step": step, "epoch": step // 2048, **values, "lr": 1e-3, "tokens_per_sec": None}
                line |= {"samples_per_sec": mlp.BATCH / wall_s, "gpu_util_pct": None, "wall_ms": wall_s * 1e3}
                line |= {"data_wait_ms": waited_s * 1e3, "tokens_seen": None}
                journal.write(json.dumps(line) + "\n")
                journal.flush()
            yield began.take()


def by_open_run(run: trn.Run, steps: int, calls: Calls) -> Iterator[tuple[list[float], list[int]]]:
    """The same inside a run."""
    model, optimizer = _made()
    began = _Began(calls)
    run.track(model=model, optimizer=optimizer)
    for batch in run.feed:
        began.note()
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        run.gate(train_loss=loss, grad_norm=norm)
        optimizer.step()
        run.log(lr=1e-3)
        if run.step % (steps + 1) == 0:
            yield began.take()


def contenders(
    run: trn.Run, folder: Path, steps: int, calls: Calls
) -> dict[str, Iterator[tuple[list[float], list[int]]]]:
    return {"by hand": by_hand(run.plan, folder, steps, calls), "open_run": by_open_run(run, steps, calls)}


class _Began:
    """Notes when each step began, and how many calls there were until then."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._noted: list[tuple[float, int]] = []

    def note(self) -> None:
        self._noted.append((time.perf_counter(), self._calls.python + self._calls.c))

    def take(self) -> tuple[list[float], list[int]]:
        pairs = list(zip(self._noted, self._noted[1:], strict=False))
        self._noted.clear()
        return [b[0] - a[0] for a, b in pairs], [b[1] - a[1] for a, b in pairs]


def _made() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = mlp.make_model()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)


def measure(rounds: int, steps: int, read: Callable[[list[str]], None]) -> None:
    calls = Calls()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mlp.make(folder)
        data = {"parquet_paths": [folder / "train.parquet"], "batch_size": mlp.BATCH, "end": "cycle"}
        with trn.open_run({**_SPEC, "dataset": data}, run_id="bench", runs_dir=folder / "runs") as run:
            running = contenders(run, folder, steps + _WARM, calls)
            for one in running.values():
                next(one)
            times: dict[str, list[list[float]]] = {name: [] for name in running}
            for _ in range(rounds):
                for name, one in running.items():
                    times[name].append(next(one)[0][_WARM:])
            counted = {}
            for name, one in running.items():
                with calls:
                    counted[name] = statistics.median(next(one)[1][_WARM:])
    read(list(_report(times, counted)))


def _report(times: dict[str, list[list[float]]], counted: dict[str, float]) -> Iterator[str]:
    rounds, steps = len(times["open_run"]), len(times["open_run"][0])
    yield f"{rounds} rounds of {steps} steps each, in turn; times of a step in us"
    yield f"{'':10} {'p2':>7} {'median':>7} {'calls':>6}"
    for name, mine in times.items():
        pooled = [s for one in mine for s in one]
        yield f"{name:10} {p2(pooled) * 1e6:7.1f} {statistics.median(pooled) * 1e6:7.1f} {counted[name]:6.0f}"
    for what, of in (("p2", p2), ("median", statistics.median)):
        added = [of(one) - of(other) for one, other in zip(times["open_run"], times["by hand"], strict=True)]
        quartiles = statistics.quantiles(added, n=4)
        yield (
            f"open_run adds at {what}: {statistics.median(added) * 1e6:.1f} us"
            f" (quarters of the rounds {quartiles[0] * 1e6:.1f} to {quartiles[2] * 1e6:.1f});"
            f" the goal is at most {GOAL_S * 1e6:.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="5 rounds of 100 steps")
    args = parser.parse_args()
    keep_freed_memory()  # as the runner does
    torch.set_num_threads(1)
    rounds, steps = (5, 100) if args.quick else (args.rounds, args.steps)
    measure(rounds, steps, lambda lines: print("\n".join(lines)))


if __name__ == "__main__":
    main()
