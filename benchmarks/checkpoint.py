"""What a save and a load cost, beside their floors and their peers: one state, one process, everything in turn.

    python benchmarks/checkpoint.py [--size-mb 1208] [--rounds 3] [--quick] [--folder .]

Measured: how long a save blocks; how long until it is durable, and in ours also hashed; its CPU and its memory; the
training time that it costs; a load with verification into a live model and optimizer. Floors are a memory copy into
ready buffers, a write with O_DIRECT in blocks of 32 MiB without any hash, and the sha256 alone. Peers are torch.save,
the same with fsync and rename, and torch.distributed.checkpoint's async_save that keeps its staging buffers.

The training time lost is taken from one run: steps with a save among them against the steps before and after, until
the save has ended. `nothing` goes through the same with no save at all and shows how far the figure can be believed.

The goals are for the full size. The sha256 bounds how soon a save can be durable, and the page cache forgives
torch.save what it has not written yet: both show in small states, and where the disk is faster than one core hashes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import mmap
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from trn.checkpoint.discover import load_payload
from trn.checkpoint.meta import CheckpointMeta, meta_name, reject_reason
from trn.checkpoint.saver import Moment, Saver
from trn.files import make_folder

BLOCK_BYTES = 32 << 20
ROWS = 64
LAYERS = 24
OURS, TORCH, TORCH_DURABLE, DCP, NOTHING = "trn", "torch.save", "torch.save + fsync + rename", "DCP async", "nothing"
COPY, DIRECT, SHA256, PARTS = "memory copy", "O_DIRECT", "sha256", "torch.load mmap, then sha256"
Rows = dict[str, list[float]]


class Training:
    """A stack of square layers with AdamW, whose float32 state is about `size_mb` million bytes."""

    def __init__(self, size_mb: int) -> None:
        width = round((size_mb * 1e6 / 12 / LAYERS) ** 0.5 / 8) * 8
        self.model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(LAYERS)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self._batch_BF = torch.randn(ROWS, width)
        self.step()

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.model(self._batch_BF).square().mean().backward()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def apply(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def tensors(self) -> list[torch.Tensor]:
        moments = [value for one in self.optimizer.state.values() for value in one.values()]
        return [tensor.detach() for tensor in [*self.model.parameters(), *moments]]

    def size_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors())


class Contender(Protocol):
    """A way to save: `save` blocks, `wait` ends when it is durable, `discard` is never timed."""

    def save(self) -> None: ...
    def is_done(self) -> bool: ...
    def wait(self) -> None: ...
    def discard(self) -> None: ...


class Ours:
    def __init__(self, training: Training, folder: Path) -> None:
        self.training, self.run_dir, self.steps = training, folder, 0
        self.saver = Saver(
            make_folder(folder / "checkpoints"),
            run_id="bench",
            job_id="bench",
            plan_fingerprint="bench",
            keep=0,  # all: nobody's files are removed while the clock runs
            sync_journal=lambda: None,
        )

    def save(self) -> None:
        self.steps += 1
        moment = Moment(step=self.steps, epoch=0, metrics={}, journal={}, progress={}, rng=[], best_step=None)
        self.saver.save(self.training.state(), moment)

    def is_done(self) -> bool:
        return bool(self.saver.committed())

    def wait(self) -> None:
        self.saver.wait()

    def discard(self) -> None:
        """All but the newest, which is there to be loaded."""
        for path in self.saver.folder.glob("step-*"):
            if not path.name.startswith(f"step-{self.steps:08d}"):
                path.unlink()


class TorchSave:
    def __init__(self, training: Training, folder: Path, *, durable: bool) -> None:
        self.training, self.path, self.durable = training, make_folder(folder) / "state.pt", durable

    def save(self) -> None:
        if not self.durable:
            torch.save(self.training.state(), self.path)
            return
        aside = self.path.with_suffix(".tmp")
        torch.save(self.training.state(), aside)
        sync(aside)
        aside.rename(self.path)
        sync(self.path.parent)

    def is_done(self) -> bool:
        return True

    def wait(self) -> None:
        """Nothing: it has returned, and whether it is durable nobody knows."""

    def discard(self) -> None:
        sync(self.path)
        self.path.unlink()


class Dcp:
    """async_save in a thread; its stager keeps the copy of the state from save to save."""

    def __init__(self, training: Training, folder: Path) -> None:
        self.training, self.folder, self.saves = training, make_folder(folder), 0
        # the one stager that keeps its buffers where no accelerator is: the writer's own wants pinned memory
        self.stager = DefaultStager(StagingOptions(False, False, False, False))
        self.last: Future[Any] | None = None

    def save(self) -> None:
        self.saves += 1
        given = dcp.async_save(
            self.training.state(), checkpoint_id=str(self.folder / str(self.saves)), async_stager=self.stager
        )
        assert isinstance(given, Future)
        self.last = given

    def is_done(self) -> bool:
        return self.last is not None and self.last.done()

    def wait(self) -> None:
        assert self.last is not None
        self.last.result()

    def discard(self) -> None:
        shutil.rmtree(self.folder / str(self.saves))


class Nothing:
    def save(self) -> None: ...
    def is_done(self) -> bool:
        return True

    def wait(self) -> None: ...
    def discard(self) -> None: ...


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def write_direct(path: Path, size_bytes: int) -> None:
    """The floor of a durable write: the same bytes again and again, past the page cache, then fsync."""
    with mmap.mmap(-1, BLOCK_BYTES) as block:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        for _ in range(round(size_bytes / BLOCK_BYTES)):
            os.write(fd, block)
        os.fsync(fd)
        os.close(fd)
    path.unlink()


def timed(work: Callable[[], None]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> None:
    with contextlib.suppress(OSError):  # not allowed everywhere: then the peak is that of the whole process so far
        Path("/proc/self/clear_refs").write_text("5")


def measure_saves(training: Training, contenders: dict[str, Contender], folder: Path, rounds: int) -> None:
    """How long a save blocks, until it is durable, its CPU and its memory; nothing trains beside it."""
    size_bytes = training.size_bytes()
    print(f"\nFirst save of the process, fresh memory ({size_bytes / 1e6:,.0f} MB of state)")
    for name, one in contenders.items():
        cost = one_save(one, size_bytes)
        print(
            f"  {name:28} blocks {cost.block_s:5.2f} s, durable after {cost.durable_s:5.2f} s, "
            f"peak memory +{cost.memory:4.2f} x state"
        )
    buffers = [torch.empty_like(tensor).copy_(tensor) for tensor in training.tensors()]
    floors: Rows = {COPY: [], DIRECT: [], SHA256: []}
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    for _ in range(rounds):
        floors[COPY].append(timed(lambda: copy_all(training, buffers)))
        floors[DIRECT].append(timed(lambda: write_direct(folder / "floor", size_bytes)))
        floors[SHA256].append(timed(lambda: hash_all(training)))
        for name, one in contenders.items():
            costs[name].append(one_save(one, size_bytes))
    blocking: Rows = {COPY: floors[COPY]} | {name: [one.block_s for one in costs[name]] for name in costs}
    show("A later save: how long it blocks, s", blocking)
    for name in contenders:
        show_ratio(blocking, name, COPY, goal=1.5 if name == OURS else None)
    durable: Rows = {DIRECT: floors[DIRECT], SHA256: floors[SHA256]}
    durable |= {name: [one.durable_s for one in costs[name]] for name in costs}
    show("A later save: how long until it is durable (torch.save is not), s", durable)
    for name in contenders:
        show_ratio(durable, name, DIRECT, goal=1.5 if name == OURS else None)
    show("A later save: CPU, s", {name: [one.cpu_s for one in costs[name]] for name in costs})
    show("A later save: peak memory, x state", {name: [one.memory for one in costs[name]] for name in costs})


@dataclass(frozen=True)
class Cost:
    block_s: float
    durable_s: float
    cpu_s: float
    memory: float
    """Peak of what was resident above what was before, in sizes of the state."""


def one_save(contender: Contender, size_bytes: int) -> Cost:
    forget_peak()
    before, cpu_s, began_s = resident("VmRSS"), time.process_time(), time.perf_counter()
    contender.save()
    block_s = time.perf_counter() - began_s
    contender.wait()
    durable_s = time.perf_counter() - began_s
    cost = Cost(
        block_s=block_s,
        durable_s=durable_s,
        cpu_s=time.process_time() - cpu_s,
        memory=max(0, resident("VmHWM") - before) / size_bytes,
    )
    contender.discard()
    return cost


def copy_all(training: Training, buffers: list[torch.Tensor]) -> None:
    for buffer, tensor in zip(buffers, training.tensors(), strict=True):
        buffer.copy_(tensor)


def hash_all(training: Training) -> None:
    digest = hashlib.sha256()
    for tensor in training.tensors():
        digest.update(tensor.reshape(-1).numpy().data)


def measure_training(training: Training, contenders: dict[str, Contender], rounds: int, threads: int) -> None:
    """Training time lost to a save."""
    torch.set_num_threads(threads)
    training.step()
    steps = max(8, round(4 * training.size_bytes() / 1e9 / timed(training.step)))
    lost: Rows = {name: [] for name in contenders}
    plain: list[float] = []
    before_s = statistics.mean(timed(training.step) for _ in range(steps))
    for _ in range(rounds):
        for name, one in contenders.items():
            made, began_s = 0, time.perf_counter()
            one.save()
            while made < steps or not one.is_done():
                training.step()
                made += 1
            with_save_s = time.perf_counter() - began_s
            one.wait()
            one.discard()
            after_s = statistics.mean(timed(training.step) for _ in range(steps))
            step_s = (before_s + after_s) / 2
            before_s = after_s
            lost[name].append(with_save_s - made * step_s)
            plain.append(step_s)
    step_ms = statistics.median(plain) * 1e3
    show(f"Training time lost to a save, s ({threads} training threads, {step_ms:.0f} ms a step)", lost)
    show_ratio(lost, OURS, DCP, goal=1.0)
    show_ratio(lost, OURS, TORCH, goal=0.5)


def measure_loads(training: Training, ours: Ours, rounds: int) -> None:
    """Verified load into the live model and optimizer against the parts that it cannot do without."""
    run_dir = ours.run_dir
    folder = run_dir / "checkpoints"
    path = folder / meta_name(ours.steps)
    file = folder / CheckpointMeta.read(path).file

    def verified() -> None:
        meta = CheckpointMeta.read(path)
        assert reject_reason(folder, meta, lineage={"bench"}, reports=run_dir) is None
        training.apply(load_payload(run_dir, meta)["trainer"])

    def mapped() -> None:
        training.apply(torch.load(file, map_location="cpu", weights_only=True, mmap=True)["trainer"])

    def hashed() -> None:
        with open(file, "rb") as stream:
            hashlib.file_digest(stream, "sha256")

    hashed()  # what was written past the page cache is not in it
    rows: Rows = {PARTS: [], OURS: []}
    for _ in range(rounds):
        rows[PARTS].append(timed(mapped) + timed(hashed))
        rows[OURS].append(timed(verified))
    show("Load into a live model and optimizer, verified, file in the page cache, s", rows)
    show_ratio(rows, OURS, PARTS, goal=2.0)


def show(head: str, rows: Rows) -> None:
    print(f"\n{head}")
    for name, values in rows.items():
        print(f"  {name:28} {spread(values)}", flush=True)


def show_ratio(rows: Rows, name: str, other: str, goal: float | None) -> None:
    """Taken round by round, since a floor moves with the machine."""
    ratios = spread([a / b for a, b in zip(rows[name], rows[other], strict=True)])
    print(f"    {name} / {other}: {ratios.strip()}" + (f"   (goal: at most {goal})" if goal else ""), flush=True)


def spread(values: list[float]) -> str:
    return f"{min(values):6.2f} /{statistics.median(values):6.2f} /{max(values):6.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size-mb", type=int, default=1208, help="model and optimizer together, in million bytes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="200 MB, two rounds")
    parser.add_argument("--folder", type=Path, default=Path(), help="where to write; a temporary folder in it")
    args = parser.parse_args()
    size_mb, rounds = (200, 2) if args.quick else (args.size_mb, args.rounds)
    warnings.filterwarnings("ignore", module="torch")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # gigabytes are not left behind
    with tempfile.TemporaryDirectory(dir=args.folder, prefix=".bench-") as name:
        folder = Path(name)
        training = Training(size_mb)
        ours = Ours(training, folder / "ours")
        # ours first: memory that another one had freed would flatter it
        contenders: dict[str, Contender] = {
            OURS: ours,
            DCP: Dcp(training, folder / "dcp"),
            TORCH: TorchSave(training, folder / "torch", durable=False),
            TORCH_DURABLE: TorchSave(training, folder / "torch-durable", durable=True),
        }
        print("Figures are min / median / max of the rounds.")
        measure_saves(training, contenders, folder, rounds)
        for threads in (1, 2):
            measure_training(training, {NOTHING: Nothing(), **contenders}, rounds, threads)
        measure_loads(training, ours, rounds)


if __name__ == "__main__":
    main()
