"""What sending the journal costs a step of 5 ms: all sinks together, and a Redis that stalls, is down or full.

    OMP_NUM_THREADS=1 python benchmarks/sinks.py [--rounds 12] [--steps 200] [--quick]

Each contender is the same small training, by trn's own loop, into a run's folder of its own; beside it runs what the
door starts beside a run, `python -m trn.sinks`, with the targets of that contender. They take turns in one process:
the relay of whoever does not train is stopped, as is what receives for it, so that it costs the others nothing.

    alone          no targets
    all sinks      a file, a web hook, TensorBoard, MLflow in SQLite, a Prometheus page that is read each second, and,
                   where they are installed, Redis and W&B
    redis stalled, down, full      a server that takes connections and never answers, none at all, one without memory

The goal is below 1.02 of the step alone, on two cores. A core that is shared shows in the spread of the rounds.
Also told: the CPU time of relay and receivers for a step, and what each library costs where it is called directly.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlp
import psutil
import torch
from rounds import Round, by_trn, p2, ratios
from torch import nn

from trn import Step, TorchTrainer
from trn.devices import keep_freed_memory
from trn.files import write_atomic
from trn.plan import make_plan
from trn.ranks import World
from trn.records import canonical_json, read_lines
from trn.sinks.position import Standing, standings
from trn.sinks.sink import CurveSink, RunFacts
from trn.sinks.targets import open_sink, parse_target
from trn.spec import load_spec
from trn.spec.plan_model import Plan

GOAL = 1.02
STEP_S = 0.005
_WARM = 5
_PATIENCE_S = 120.0

_RECEIVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
_READER = """
import sys, time, urllib.request
while True:
    time.sleep(1)
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics", timeout=10).read()
    except OSError:
        pass
"""


class Sized(TorchTrainer):
    """The small model, as wide as makes a step of 5 ms."""

    columns = ("x", "y")
    width = 128

    def build(self, ctx: Any) -> nn.Module:
        return nn.Sequential(nn.Linear(mlp.FEATURES, self.width), nn.ReLU(), nn.Linear(self.width, mlp.CLASSES))

    def loss(self, model: nn.Module, batch: Any) -> Step:
        return Step(nn.functional.cross_entropy(model(batch["x"]), batch["y"]), count=len(batch["y"]))


@dataclass
class Contender:
    """A training and what runs beside it."""

    plan: Plan
    training: Iterator[Round]
    beside: list[subprocess.Popen[bytes]] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)

    def round(self) -> list[float]:
        """Seconds of the steps of a round, with what runs beside it let go for as long."""
        self._signal(signal.SIGCONT)
        steps_s = next(self.training).steps_s[_WARM:]
        self._signal(signal.SIGSTOP)
        return steps_s

    def cpu_s(self) -> float:
        """CPU time of all that runs beside, with what that started."""
        processes = [process for one in self.beside for process in _with_children(one.pid)]
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    def end(self) -> list[Standing]:
        """Let the relay deliver what is left; returns how its targets stand."""
        self._signal(signal.SIGCONT)
        if self.beside:
            relay = self.beside[-1]
            assert relay.stdin is not None
            relay.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                relay.wait(60)
        for process in self.beside:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return list(standings(Path(self.plan.run_dir)))

    def _signal(self, number: int) -> None:
        for process in self.beside:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)


def _with_children(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def plan_of(folder: Path, name: str) -> Plan:
    loaded = load_spec(folder / "spec.yaml", sets=["dataset.batch_size=256"])
    (folder / name / "bench" / "reports").mkdir(parents=True)  # `bench` is the run that by_trn's events are of
    plan, _ = make_plan(loaded, run_id="bench", runs_dir=folder / name, world=World())
    write_atomic(Path(plan.run_dir) / "reports" / "resolved_config.json", canonical_json(plan.to_json()))
    return plan


def size_model(folder: Path) -> float:
    """Widen the model until a step that nobody disturbs takes 5 ms; returns what it takes, in seconds."""
    Sized.width, step_s = 1024, 0.0
    for number in range(6):
        training = by_trn(plan_of(folder, f"sizing-{number}"), Sized(), 40)
        next(training)
        step_s = p2(next(training).steps_s)
        if abs(step_s / STEP_S - 1.0) < 0.1:
            break
        Sized.width = max(64, int(Sized.width * STEP_S / step_s))
    return step_s


def all_targets(folder: Path) -> tuple[list[str], list[list[str]]]:
    """Targets of every kind that there is here, and the commands of what receives for them."""
    hook, page, database = (free_port() for _ in range(3))
    targets = [
        f"file:{folder / 'events.jsonl'}",
        f"http://127.0.0.1:{hook}/events",
        "tensorboard:",
        f"mlflow:sqlite:///{folder / 'mlflow.db'}",
        f"prometheus://127.0.0.1:{page}",
    ]
    commands = [[sys.executable, "-c", _RECEIVER, str(hook)], [sys.executable, "-c", _READER, str(page)]]
    if find_spec("wandb"):
        targets.append("wandb:")
    if server := redis_command(folder, database):
        targets.append(f"redis://127.0.0.1:{database}/0")
        commands.append(server)
    return targets, commands


def redis_command(folder: Path, port: int, *options: str) -> list[str]:
    """A server with nothing on disk; [] where there is none to start."""
    program = shutil.which("redis-server")
    if program is None or not find_spec("redis"):
        return []
    return [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *options]


def start(plan: Plan, targets: Sequence[str], commands: Sequence[Sequence[str]], steps: int) -> Contender:
    """The training, and beside it the receivers and the relay, in this order."""
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    beside = [subprocess.Popen(list(command), stdin=subprocess.DEVNULL, **quiet) for command in commands]
    if targets:
        relay = [sys.executable, "-m", "trn.sinks", "--run-dir", plan.run_dir, "--job-id", "bench"]
        relay += [word for target in targets for word in ("--to", target)]
        beside.append(subprocess.Popen(relay, stdin=subprocess.PIPE, **quiet))
    return Contender(plan, by_trn(plan, Sized(), steps), beside, list(targets))


def contenders(folder: Path, steps: int) -> dict[str, Contender]:
    running = {"alone": start(plan_of(folder, "alone"), [], [], steps)}
    targets, commands = all_targets(folder)
    running["all sinks"] = start(plan_of(folder, "all"), targets, commands, steps)
    for name, options in {"stalled": (), "down": None, "full": ("--maxmemory", "1")}.items():
        port = free_port()
        server = redis_command(folder, port, *(options or ()))
        if not server:
            print("no redis-server or no redis here: what it does is not measured")
            break
        url = f"redis://127.0.0.1:{port}/0"
        beside = [server] if options is not None else []
        running[f"redis {name}"] = start(plan_of(folder, name), [url], beside, steps)
    return running


def wait_until_begun(running: dict[str, Contender]) -> None:
    """Let every relay start, import and connect, and meet what it will meet."""
    for contender in running.values():
        contender.round()
        contender._signal(signal.SIGCONT)
    deadline_s = time.monotonic() + _PATIENCE_S
    for contender in running.values():
        while len(met(contender)) < len(contender.targets):
            if time.monotonic() > deadline_s:
                print(f"only these of {contender.targets} have begun: {met(contender)}")
                break
            time.sleep(0.1)
    if stalled := running.get("redis stalled"):
        os.killpg(stalled.beside.pop(0).pid, signal.SIGSTOP)  # and is never let go: it is no part of the relay's CPU
    for contender in running.values():
        contender._signal(signal.SIGSTOP)


def met(contender: Contender) -> list[str]:
    """The targets that have taken something, or failed."""
    found = standings(Path(contender.plan.run_dir))
    return [one.target for one in found if one.sent or one.failing_since or one.dropped]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def measure(folder: Path, rounds: int, steps: int) -> None:
    running = contenders(folder, steps + _WARM)
    stalled = running["redis stalled"].beside[0] if "redis stalled" in running else None
    try:
        wait_until_begun(running)
        began_s = {name: contender.cpu_s() for name, contender in running.items()}
        times: dict[str, list[list[float]]] = {name: [] for name in running}
        for number in range(rounds):
            for name in list(running)[:: 1 if number % 2 else -1]:
                times[name].append(running[name].round())
        used_s = {name: contender.cpu_s() - began_s[name] for name, contender in running.items()}
        report(times, used_s)
    finally:
        stood = {name: contender.end() for name, contender in running.items()}
        if stalled is not None:
            os.killpg(stalled.pid, signal.SIGKILL)
            stalled.wait()
    print("\nin the end")
    for name, standing in ((name, standing) for name, of in stood.items() for standing in of):
        counts = f"{standing.sent} sent, {standing.behind} behind, {standing.dropped} dropped"
        print(f"  {name:14} {standing.target.partition('?')[0][:40]:40} {counts}  {standing.last_error or ''}"[:160])


def report(times: dict[str, list[list[float]]], used_s: dict[str, float]) -> None:
    rounds, steps = len(times["alone"]), len(times["alone"][0])
    print(f"{rounds} rounds of {steps} steps each, in turn; goal: below {GOAL} of the step alone")
    heads = f"{'p2 ms':>7} {'median':>7} {'mean':>7}   {'x alone, p2':>11} {'rounds':>12} {'median':>6}"
    print(f"{'':14} {heads}  CPU beside")
    bare = statistics.median(statistics.median(one) for one in times["alone"])
    for name, mine in times.items():
        pooled = [s for one in mine for s in one]
        ratio, least, most = ratios(mine, times["alone"])
        middle = statistics.median(
            statistics.median(one) / statistics.median(other) for one, other in zip(mine, times["alone"], strict=True)
        )
        beside_ms = used_s[name] / (rounds * (steps + _WARM)) * 1e3
        shown = " ".join(f"{of(pooled) * 1e3:7.3f}" for of in (p2, statistics.median, statistics.fmean))
        print(
            f"{name:14} {shown}   {ratio:11.3f} {least:5.2f} to {most:4.2f} {middle:6.3f}"
            f"  {beside_ms:.2f} ms a step, {beside_ms / bare / 10:.0f}% of a core"
        )


def called_directly(folder: Path) -> None:
    """What a line costs in each library, in this process: in batches of 100, and one at a time."""
    lines = list(read_lines(folder / "all" / "bench" / "reports" / "train_metrics.jsonl"))[:200]
    print("\nus of CPU for a line of metrics, called directly: in batches of 100, one at a time")
    for text in ("tensorboard:", f"mlflow:sqlite:///{folder / 'direct.db'}", "wandb:"):
        kind = text.partition(":")[0]
        if kind == "wandb" and not find_spec("wandb"):
            continue
        direct = folder / "direct" / kind
        (direct / "reports").mkdir(parents=True)
        sink = open_sink(parse_target(text), RunFacts(kind, direct, "bench", {}))
        assert isinstance(sink, CurveSink)
        sink.begin(0)
        began_s = time.process_time()
        sink.write("train", lines[:100])
        middle_s = time.process_time()
        for line in lines[100:]:
            sink.write("train", [line])
        ended_s = time.process_time()
        sink.close()
        print(f"  {kind:12} {(middle_s - began_s) * 1e4:7.0f} {(ended_s - middle_s) * 1e4:7.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="4 rounds of 60 steps")
    args = parser.parse_args()
    keep_freed_memory()  # as the runner does
    torch.set_num_threads(1)
    rounds, steps = (4, 60) if args.quick else (args.rounds, args.steps)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mlp.make(folder)
        print(
            f"a step of {size_model(folder) * 1e3:.1f} ms, {Sized.width} wide, on one thread of {os.cpu_count()} cores"
        )
        measure(folder, rounds, steps)
        called_directly(folder)


if __name__ == "__main__":
    main()
