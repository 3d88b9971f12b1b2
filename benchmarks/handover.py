"""What the wall between a worker and a stranger's trainer costs: a step of 5 ms, and batches from mapped Arrow.

    OMP_NUM_THREADS=1 python benchmarks/handover.py [--trios 8] [--rounds 5] [--seconds 1] [--quick]

Steps: the same training three times, as processes of `python -m trn.runner`: by its spec, which decodes parquet as it
goes; by a contract, confined, which maps the Arrow file that was decoded for it; and by its spec once more, which shows
how far two equal processes differ here: by a tenth, for as long as they live, by where their memory came to lie. So all
three are started anew a few times. They take turns: who does not train is stopped. What a step took is what the run
itself wrote down, `wall_ms`; beside it the CPU time of all threads.

Batches: in this process, rows a second as tensors from parquet and from the mapped file, shuffled alike, in turn; once
with the columns of the file, and once with one of two. Where the rows of the mapped columns lie is looked up in
/proc/self/maps: in the file itself, from which a batch is gathered once.

The goals: below 1.03 of the step, at least 0.9 of the rows. Also told: CPU time of decoding, and of decoding again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rounds import p2

from trn.devices import keep_freed_memory
from trn.feed import Cursor, Dataset, Feed, MappedRows, Order, open_cache_at, open_dataset
from trn.feed.tensors import to_tensors
from trn.launch import Handle, LocalLauncher
from trn.launch.confined import ConfinedLauncher, Confinement
from trn.launch.contract import CONTRACT_VERSION, TrainerSubprocessContractV1, write_contract
from trn.records import new_job_id, read_lines
from trn.worker.handover import decode

GOAL_STEP, GOAL_ROWS = 1.03, 0.9
STEP_S = 0.005
FEATURES, CLASSES, BATCH, ROWS, GROUP_ROWS = 64, 16, 256, 200_000, 10_000
_WARM = 5
"""Steps at the head of a round that do not count: the first was stopped within."""
_PATIENCE_S = 120.0

_TRAINER = """
from dataclasses import dataclass

from torch import nn

from trn import Step, TorchTrainer


@dataclass(frozen=True)
class Params:
    width: int


class Sized(TorchTrainer):
    Params = Params
    columns = ("x", "y")

    def build(self, ctx):
        width = ctx.params.width
        return nn.Sequential(nn.Linear({features}, width), nn.ReLU(), nn.Linear(width, {classes}))

    def loss(self, model, batch):
        return Step(nn.functional.cross_entropy(model(batch["x"]), batch["y"]), count=len(batch["y"]))
"""


def write_data(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    values = pa.array(generator.standard_normal(ROWS * FEATURES, np.float32))
    columns = {
        "x": pa.FixedSizeListArray.from_arrays(values, FEATURES),
        "y": pa.array(generator.integers(0, CLASSES, ROWS)),
        "note": pa.array(generator.standard_normal(ROWS)),
    }
    pq.write_table(pa.table(columns), folder / "train.parquet", row_group_size=GROUP_ROWS)
    return folder / "train.parquet"


def write_spec(folder: Path, width: int) -> Path:
    (folder / "sized.py").write_text(_TRAINER.format(features=FEATURES, classes=CLASSES))
    document = {
        **{"config_version": 1, "trainer": "sized:Sized", "hyperparams": {"width": width}},
        "dataset": {"parquet_paths": [str(folder / "train.parquet")], "batch_size": BATCH, "end": "cycle"},
        **{"seed": 1, "device": "cpu", "precision": "none", "ddp": False, "threads": 1, "max_steps": 1_000_000},
        **{"checkpoint_every": 0, "checkpoint": {"every_epochs": 0}},
        **{"optimizer": {"name": "adamw", "lr": 1e-3}, "clip_grad_norm": 1.0},
    }
    path = folder / "job_spec.json"
    path.write_text(json.dumps(document))
    return path


def fitting_width() -> int:
    """How wide the model is whose step by hand takes 5 ms."""
    x_BF, y_B = torch.randn(BATCH, FEATURES), torch.randint(0, CLASSES, (BATCH,))
    width = 1024
    for _ in range(4):
        layers = torch.nn.Linear(FEATURES, width), torch.nn.ReLU(), torch.nn.Linear(width, CLASSES)
        model = torch.nn.Sequential(*layers)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        steps_s = []
        for _ in range(40):
            began_s = time.perf_counter()
            torch.nn.functional.cross_entropy(model(x_BF), y_B).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            steps_s.append(time.perf_counter() - began_s)
        width = max(64, int(width * STEP_S / p2(steps_s[10:])))
    return width


# Steps


@dataclass
class Runner:
    """A training in a process of its own, stopped but for its rounds."""

    child: Handle
    run_dir: Path
    log: Path
    rounds: list[list[float]] = field(default_factory=list)
    cpu_s: float = 0.0
    """Of all its threads, in all rounds."""
    steps: int = 0
    _seen: int = 0

    def round(self, seconds: float) -> None:
        before_s = self._used_s()
        os.kill(self.child.pid, signal.SIGCONT)
        time.sleep(seconds)
        os.kill(self.child.pid, signal.SIGSTOP)
        taken = self._take()
        self.cpu_s += self._used_s() - before_s
        self.steps += len(taken)
        if taken[_WARM:]:
            self.rounds.append(taken[_WARM:])

    def _used_s(self) -> float:
        used = psutil.Process(self.child.pid).cpu_times()
        return float(used.user + used.system)

    def _take(self) -> list[float]:
        """Seconds of the steps since the last time."""
        lines = list(itertools.islice(read_lines(self.run_dir / "reports/train_metrics.jsonl"), self._seen, None))
        self._seen += len(lines)
        return [line["wall_ms"] / 1e3 for line in lines]

    def wait_until_training(self) -> None:
        deadline_s = time.monotonic() + _PATIENCE_S
        while self._seen < 20:
            self._take()
            if self.child.poll() is not None or time.monotonic() > deadline_s:
                raise SystemExit(f"{self.run_dir.name} did not begin:\n{self.log.read_text()}")
            time.sleep(0.1)
        os.kill(self.child.pid, signal.SIGSTOP)

    def pooled(self) -> list[float]:
        return [step_s for one in self.rounds for step_s in one]

    def end(self) -> None:
        for number in (signal.SIGKILL, signal.SIGCONT):
            self.child.signal(number)
        self.child.wait(30)


def start_runners(runners: dict[str, Runner], folder: Path, spec: Path, arrow: Path, runs: Path) -> None:
    """Add the three to `runners`, also the ones before one that does not begin."""
    contract = TrainerSubprocessContractV1(
        contract_version=CONTRACT_VERSION,
        trainer_plugin="sized:Sized",
        job_spec_path=str(spec),
        arrow_ipc_path=str(arrow),
        checkpoints_dir=str(runs / "contract/checkpoints"),
        samples_dir=str(runs / "contract/samples"),
        events_path=str(runs / "contract/reports/events.jsonl"),
    )
    write_contract(folder / "contract.json", contract)
    confinement = Confinement(memory_bytes=16 << 30, time_s=3600)
    by_spec = ["--config", str(spec)]
    local, confined = LocalLauncher(), ConfinedLauncher(confinement, os.environ)
    launchers = {"spec": local, "contract": confined, "spec again": local}
    what = {"spec": by_spec, "contract": ["--contract", str(folder / "contract.json")], "spec again": by_spec}
    for name, launcher in launchers.items():
        argv = [sys.executable, "-u", "-P", "-m", "trn.runner", "--job-id", new_job_id(), *what[name]]
        run_id = name.replace(" ", "-")
        argv += ["--run-id", run_id, "--runs-dir", str(runs)]
        log = folder / f"{runs.name}-{run_id}.log"
        runners[name] = Runner(launcher.start(argv, log=log), runs / run_id, log)
        runners[name].wait_until_training()


def measure_steps(folder: Path, spec: Path, arrow: Path, trios: int, rounds: int, seconds: float) -> None:
    finished: dict[str, list[Runner]] = {}
    for trio in range(trios):
        runners: dict[str, Runner] = {}
        try:
            start_runners(runners, folder, spec, arrow, folder / f"runs-{trio}")
            for number in range(rounds):
                for name in list(runners)[:: 1 if (trio + number) % 2 else -1]:
                    runners[name].round(seconds)
        finally:
            for runner in runners.values():
                runner.end()
        for name, runner in runners.items():
            finished.setdefault(name, []).append(runner)
    print(
        f"{trios} times anew, {rounds} rounds of {seconds:g} s each, in turn; goal: below {GOAL_STEP} of that by spec"
    )
    for name, processes in finished.items():
        figures = (f"{what} {spread([measure(one) for one in processes], '.3f')}" for what, measure in MEASURES.items())
        print(f"  {name:10} {sum(one.steps for one in processes):6} steps, ms: {', '.join(figures)}")
    for name in ("contract", "spec again"):
        print(f"  {name} / spec: {compared(finished[name], finished['spec'])}")


MEASURES: dict[str, Callable[[Runner], float]] = {
    "p2": lambda runner: p2(runner.pooled()) * 1e3,
    "median": lambda runner: statistics.median(runner.pooled()) * 1e3,
    "CPU": lambda runner: runner.cpu_s / runner.steps * 1e3,
}


def compared(mine: Sequence[Runner], other: Sequence[Runner]) -> str:
    """Of each measure the ratio of the typical process to the typical process, and of the processes of each trio."""
    figures = []
    for what, measure in MEASURES.items():
        a, b = [measure(one) for one in mine], [measure(one) for one in other]
        by_trio = [one / two for one, two in zip(a, b, strict=True)]
        typical = statistics.median(a) / statistics.median(b)
        figures.append(f"{what} {typical:.3f} (trios {min(by_trio):.2f} to {max(by_trio):.2f})")
    return ", ".join(figures)


# Batches


def batches(dataset: Dataset, columns: Sequence[str], mapped: MappedRows | None) -> Iterator[object]:
    order = Order(dataset.fingerprint, dataset.block_rows, seed=1, batch_size=BATCH)
    with Feed(dataset, order, columns, Cursor(), cache=mapped) as feed:
        while (raw := feed.next()) is not None:
            yield to_tensors(raw.record_batch, columns)


def rows_per_s(dataset: Dataset, columns: Sequence[str], arrow: Path | None) -> float:
    began_s = time.perf_counter()
    mapped = None if arrow is None else open_cache_at(arrow, dataset, columns)
    count = sum(1 for _ in batches(dataset, columns, mapped))
    return count * BATCH / (time.perf_counter() - began_s)


def measure_batches(data: Path, arrow: Path, rounds: int) -> None:
    print(f"\nrows a second, least / median / most of {rounds} rounds; goal: at least {GOAL_ROWS} of parquet")
    for columns in (["x", "y"], ["y"]):
        dataset = open_dataset([str(data)], columns=columns)
        rates: dict[str, list[float]] = {"parquet": [], "mapped": []}
        for _ in range(rounds):
            for name, path in (("parquet", None), ("mapped", arrow)):
                rates[name].append(rows_per_s(dataset, columns, path))
        for name, values in rates.items():
            print(f"  {'+'.join(columns):4} {name:8} {spread([one / 1e3 for one in values], '8.0f')} k rows/s")
        by_round = [mine / other for mine, other in zip(rates["mapped"], rates["parquet"], strict=True)]
        print(f"  {'+'.join(columns):4} mapped / parquet: {spread(by_round, '.2f')}")


def spread(values: list[float], form: str) -> str:
    return " / ".join(format(one, form) for one in (min(values), statistics.median(values), max(values)))


def show_places(data: Path, arrow: Path) -> None:
    """Say whether the values that batches are gathered from lie in the mapping of the file itself."""
    columns = ["x", "y"]
    mapped = open_cache_at(arrow, open_dataset([str(data)], columns=columns), columns)
    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(arrow)):
            begin, _, end = line.split()[0].partition("-")
            spans.append((int(begin, 16), int(end, 16)))
    print()
    for name, address, size_bytes in mapped.places():
        inside = any(begin <= address and address + size_bytes <= end for begin, end in spans)
        print(f"  {name}: {size_bytes:,} bytes at {address:#x}, {'in' if inside else 'NOT in'} the mapping of the file")
    mapped.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trios", type=int, default=8, help="how often the three processes are started anew")
    parser.add_argument("--rounds", type=int, default=5, help="of each three processes, and of the batches twice that")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each trains in a round")
    parser.add_argument("--quick", action="store_true", help="2 trios of 3 rounds")
    args = parser.parse_args()
    keep_freed_memory()  # as the runner does
    torch.set_num_threads(1)
    trios, rounds = (2, 3) if args.quick else (args.trios, args.rounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_data(folder)
        for how in ("decoding", "decoding again"):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            arrow = decode([str(data)], [], folder / "arrow")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(f"{how} {ROWS:,} rows, {arrow.stat().st_size >> 20} MiB: {cpu_s:.2f} s of CPU")
        width = fitting_width()
        print(f"\na model {width} wide, batches of {BATCH}, on one thread of {os.cpu_count()} cores")
        measure_steps(folder, write_spec(folder, width), arrow, trios, rounds, args.seconds)
        measure_batches(data, arrow, 2 * rounds)
        show_places(data, arrow)


if __name__ == "__main__":
    main()
