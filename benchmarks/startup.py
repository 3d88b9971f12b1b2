"""What it costs to begin: the short verbs against the bare interpreter, and `trn run` against a script, to step one.

    python benchmarks/startup.py [--runs 15] [--rounds 5] [--quick]

The verbs are compared by CPU time of the whole process, the least of all runs and the median ratio of runs in turn:
`trn --help`, and `trn list` among 1,000 jobs that each have their run's folder. The first step is compared by wall time
from the start of the command until its line of metrics is in the file, and by CPU time of all its processes to their
end, which for `trn run` is after a checkpoint, the outcome and the summary. By hand is `first_step.py`: the same model,
data, optimizer and clipping. What a run's own records say is shown too: where the time before the first step went.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import mlp

from trn.jobs import open_store
from trn.records import JobRow, new_job_id, read_json, read_lines, utc_now

HERE = Path(__file__).parent
JOBS = 1000
MOST_X_BARE = 6.0
MOST_ABOVE_HAND_S = 1.0
# as installed: nothing of the caller's PYTHON variables, which may forbid compiled files
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
TRN = [sys.executable, "-m", "trn.doors.cli"]


@dataclass(frozen=True)
class Run:
    """One run of a command: CPU time of it and all its children, and the moment it was started."""

    cpu_s: float
    began_s: float


def run(command: list[str], folder: Path) -> Run:
    before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    subprocess.run(command, cwd=folder, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Run(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, began_s)


# The short verbs


def fill(runs_dir: Path) -> None:
    """A thousand completed jobs, each with the folder of its run."""
    with open_store(runs_dir) as store:
        for number in range(JOBS):
            run_dir = runs_dir / f"run-{number}"
            (run_dir / "reports").mkdir(parents=True)
            (run_dir / "reports" / "resolved_config.json").write_text("{}\n")
            row = JobRow(new_job_id(), run_dir.name, str(run_dir), "submitted", "spec.yaml", utc_now())
            store.add(row)
            store.advance(row.job_id, "completed", exit_code=0)


def measure_verbs(folder: Path, runs: int) -> None:
    fill(folder / "many")
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import click": [sys.executable, "-c", "import click"],
        "trn --help": [*TRN, "--help"],
        f"trn list, {JOBS:,} jobs": [*TRN, "list", "--runs-dir", "many"],
    }
    for command in commands.values():
        run(command, folder)
    rounds = [{name: run(command, folder).cpu_s for name, command in commands.items()} for _ in range(runs)]
    bare = [one["python -c pass"] for one in rounds]
    print(f"CPU time of a command, {runs} runs each, in turn")
    print(f"{'':22} {'least ms':>9} {'median':>7} {'x bare':>7} {'median ratio':>13}")
    for name in commands:
        mine = [one[name] for one in rounds]
        by_round = statistics.median(a / b for a, b in zip(mine, bare, strict=True))
        least, median = min(mine) * 1e3, statistics.median(mine) * 1e3
        print(f"{name:22} {least:9.1f} {median:7.1f} {min(mine) / min(bare):7.2f} {by_round:13.2f}")
    print(f"the goal is at most {MOST_X_BARE:.0f} x bare")


# The first step


@dataclass(frozen=True)
class Start:
    """How long a training took to its first step, and all its CPU time."""

    wall_s: float
    cpu_s: float
    phases_s: dict[str, float]


def start_by_hand(folder: Path) -> Start:
    done = run([sys.executable, str(HERE / "first_step.py"), "."], folder)
    return Start((folder / "by_hand.jsonl").stat().st_mtime - done.began_s, done.cpu_s, {})


def start_by_trn(folder: Path) -> Start:
    runs_dir = folder / "runs"
    shutil.rmtree(runs_dir, ignore_errors=True)
    sets = [part for one in ("max_steps=1", "schedule.warmup_steps=0") for part in ("--set", one)]
    done = run([*TRN, "run", "--config", "spec.yaml", "--run-id", "one", "--runs-dir", "runs", *sets], folder)
    # nothing touches the file after its only line
    first_step_s = (runs_dir / "one" / "reports" / "train_metrics.jsonl").stat().st_mtime
    return Start(first_step_s - done.began_s, done.cpu_s, _phases(runs_dir, done.began_s, first_step_s))


def _phases(runs_dir: Path, began_s: float, first_step_s: float) -> dict[str, float]:
    """Seconds of each part of the way, by the times that the job and the run recorded themselves."""
    with open_store(runs_dir) as store:
        submitted_at = store.list(1)[0].submitted_at
    reports = runs_dir / "one" / "reports"
    events = {event["event"]: event["ts"] for event in read_lines(reports / "events.jsonl")}
    at_s = [
        began_s,
        *map(_seconds, (submitted_at, read_json(reports / "run_meta.json")["created_at"])),
        *map(_seconds, (events["plan_written"], events["started"])),
        first_step_s,
    ]
    names = ("door reads the spec", "child imports and plans", "folder published", "model and optimizer", "first step")
    return {name: after - before for name, before, after in zip(names, at_s, at_s[1:], strict=False)}


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def measure_first_step(folder: Path, rounds: int) -> None:
    mlp.make(folder)
    shutil.copy(HERE / "mlp.py", folder)
    starts = {"by hand": start_by_hand, "trn run": start_by_trn}
    for start in starts.values():
        start(folder)
    measured = [{name: start(folder) for name, start in starts.items()} for _ in range(rounds)]
    print(f"\nTo the first step, {rounds} rounds in turn; s, least and median")
    print(f"{'':22} {'wall':>14} {'CPU, to the end':>17}")
    for name in starts:
        wall_s, cpu_s = [one[name].wall_s for one in measured], [one[name].cpu_s for one in measured]
        print(f"{name:22} {_least_median(wall_s):>14} {_least_median(cpu_s):>17}")
    above = [(one["trn run"].wall_s - one["by hand"].wall_s, one["trn run"].cpu_s - one["by hand"].cpu_s)
             for one in measured]  # fmt: skip
    wall, cpu = (_least_median([pair[index] for pair in above]) for index in (0, 1))
    print(f"{'trn above by hand':22} {wall:>14} {cpu:>17}   the goal is at most {MOST_ABOVE_HAND_S:.0f} s")
    for name in measured[0]["trn run"].phases_s:
        print(f"  {name:24} {_least_median([one['trn run'].phases_s[name] for one in measured])}")


def _least_median(values: list[float]) -> str:
    return f"{min(values):6.2f} {statistics.median(values):6.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=15, help="of each short command")
    parser.add_argument("--rounds", type=int, default=5, help="of the first step")
    parser.add_argument("--quick", action="store_true", help="5 runs, 2 rounds")
    args = parser.parse_args()
    runs, rounds = (5, 2) if args.quick else (args.runs, args.rounds)
    with tempfile.TemporaryDirectory() as name:
        measure_verbs(Path(name), runs)
        measure_first_step(Path(name), rounds)


if __name__ == "__main__":
    main()
