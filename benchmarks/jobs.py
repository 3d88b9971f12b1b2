"""What the job store holds and costs: many writers of whom some are killed, and the short verbs among many jobs.

    python benchmarks/jobs.py [--writers 50] [--operations 200] [--jobs 100000] [--runs 15] [--quick]

First, `--writers` processes make `--operations` changes each at once, on one store: a job is added, and moved until it
has ended. Each change that returned is told to the parent. One process in ten is killed with SIGKILL at a random moment
and begins anew, until its changes are done; a process that was killed said nothing of its last change, which may have
happened or not. Then the store and its index are held against what was told: nothing told may be missing, no row may
be between two changes. An operation is timed in the process that makes it, with whatever it waits for the others.

Then `trn list` and `trn status`, among 100 and among `--jobs` jobs, each with the folder of its run, by wall time of
the whole process in turn; also where nobody has looked at the folders since one was added, the index that is removed,
and the store that is.
"""

from __future__ import annotations

import argparse
import os
import random
import selectors
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trn.jobs import Store, open_store
from trn.jobs.database import Database
from trn.jobs.index import index_path, write_index
from trn.jobs.table import put
from trn.records import JobRow, new_job_id, read_lines, utc_now

HERE = Path(__file__)
TRN = [sys.executable, "-m", "trn.doors.cli"]
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
STATES = ("starting", "running", "completed")
READY = b"ready\n"
KILLED_PART = 0.1
MOST_P99_MS = 250.0
MOST_MS = 200.0
MOST_X = 1.5


def row_of(runs_dir: Path, run_id: str, state: str = "submitted", at: str | None = None) -> JobRow:
    return JobRow(new_job_id(), run_id, str(runs_dir / run_id), state, "spec.yaml", at or utc_now())


# Many writers


def write(runs_dir: Path, name: str, operations: int) -> None:
    """Make so many changes; each that returned is a line: job, revision, nanoseconds."""
    os.write(1, READY)
    os.read(0, 1)  # until all are there, or, of one that begins anew, at once
    with open_store(runs_dir) as store:
        row = row_of(runs_dir, name)
        for number in range(operations):
            state = number % (len(STATES) + 1)
            if state == 0:
                row = row_of(runs_dir, f"{name}-{number}")
            began_ns = time.perf_counter_ns()
            row = _change(store, row, state)
            took_ns = time.perf_counter_ns() - began_ns
            os.write(1, f"{row.job_id} {row.revision} {took_ns}\n".encode())


def _change(store: Store, row: JobRow, state: int) -> JobRow:
    if state == 0:
        store.add(row)
        return row
    return store.advance(row.job_id, STATES[state - 1])


@dataclass
class Writer:
    """A place among the writers: a process, and after its death another, until its changes are told."""

    name: str
    operations: int
    kill_after: int | None
    told: list[tuple[str, int, int]] = field(default_factory=list)
    kills: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self, runs_dir: Path) -> int:
        left = self.operations - len(self.told)
        command = [sys.executable, str(HERE), "--write", str(runs_dir), f"{self.name}-{self.kills}", str(left)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=ENVIRONMENT
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == READY
        self.rest = b""
        return self.process.stdout.fileno()

    def go(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()

    def take(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            job_id, revision, took_ns = line.decode().split()
            self.told.append((job_id, int(revision), int(took_ns)))
        if self.kill_after is not None and len(self.told) >= self.kill_after and self.process is not None:
            time.sleep(random.random() * 0.002)  # anywhere in the next change
            self.process.send_signal(signal.SIGKILL)
            self.kill_after, self.kills = None, self.kills + 1


def race(runs_dir: Path, count: int, operations: int) -> tuple[list[Writer], float]:
    """All writers at once, to their ends; and how many seconds that took."""
    killed = set(random.sample(range(count), max(1, round(count * KILLED_PART))))
    writers = [
        Writer(f"w{n}", operations, random.randrange(1, operations) if n in killed else None) for n in range(count)
    ]
    with selectors.DefaultSelector() as selector:
        for writer in writers:
            selector.register(writer.start(runs_dir), selectors.EVENT_READ, writer)
        began_s = time.monotonic()
        for writer in writers:
            writer.go()
        while selector.get_map():
            for key, _ in selector.select():
                writer = key.data
                if data := os.read(key.fd, 65536):
                    writer.take(data)
                    continue
                selector.unregister(key.fd)
                status = writer.process.wait()
                writer.process.stdout.close()
                if status == -signal.SIGKILL and len(writer.told) < operations:
                    selector.register(writer.start(runs_dir), selectors.EVENT_READ, writer)
                    writer.go()
                elif status not in (0, -signal.SIGKILL):
                    raise SystemExit(f"a writer ended with {status}")
    return writers, time.monotonic() - began_s


def check(runs_dir: Path, writers: Sequence[Writer]) -> list[str]:
    """What is wrong with the store and its index after the race: nothing, if all is well."""
    with open_store(runs_dir) as store:
        rows = {row.job_id: row for row in store.list()}
    newest: dict[str, int] = {}
    for writer in writers:
        newest |= {job_id: revision for job_id, revision, _ in writer.told}
    lost = [job_id for job_id, revision in newest.items() if job_id not in rows or rows[job_id].revision < revision]
    half = [row for row in rows.values() if row.state != ("submitted", *STATES)[row.revision]]
    more = sum(row.revision + 1 for row in rows.values()) - sum(len(writer.told) for writer in writers)
    index = {(line["job_id"], line["revision"]) for line in read_lines(index_path(runs_dir))}
    unlisted = {(job_id, n) for job_id, row in rows.items() for n in range(row.revision + 1)} - index
    kills = sum(writer.kills for writer in writers)
    wrong = [f"{len(lost)} told changes are lost"] if lost else []
    wrong += [f"{len(half)} rows are half visible"] if half else []
    wrong += [f"{more} changes more than told, with {kills} kills"] if not 0 <= more <= kills else []
    return wrong + ([f"{len(unlisted)} changes are not in the index"] if unlisted else [])


def measure_writers(folder: Path, count: int, operations: int) -> bool:
    writers, wall_s = race(folder, count, operations)
    took_ms = sorted(ns / 1e6 for writer in writers for _, _, ns in writer.told)
    wrong = check(folder, writers)
    kills = sum(writer.kills for writer in writers)
    print(f"{count} writers x {operations} changes, {kills} killed: {len(took_ms)} told in {wall_s:.1f} s")
    at = {part: took_ms[min(len(took_ms) - 1, int(part * len(took_ms)))] for part in (0.5, 0.9, 0.99, 0.999)}
    print("  ms of a change: " + ", ".join(f"p{part * 100:g} {ms:.1f}" for part, ms in at.items()), end="")
    print(f", most {took_ms[-1]:.1f}; the goal for p99 is {MOST_P99_MS:g}")
    print("  " + ("; ".join(wrong) or "none told is lost, none half visible, all in the index"))
    return not wrong


# The short verbs


def fill(runs_dir: Path, count: int) -> None:
    """So many completed jobs, each with the folder of its run; the last as one that a door has just recorded."""
    runs_dir.mkdir()
    plan = runs_dir.parent / "plan.json"
    rows = []
    for number in range(count):
        if number % 50_000 == 0:  # a file has so many names at most
            plan = runs_dir.parent / f"plan-{number}.json"
            plan.write_text("{}\n")
        run_dir = runs_dir / f"run-{number:06}"
        (run_dir / "reports").mkdir(parents=True)
        os.link(plan, run_dir / "reports" / "resolved_config.json")
        row = row_of(runs_dir, run_dir.name, "completed", f"2026-01-01T00:{number // 60000 % 60:02}:00.{number:06}Z")
        rows.append(replace(row, exit_code=0, revision=3))
    database = Database(runs_dir)
    index_path(runs_dir).parent.mkdir()
    (runs_dir / "logs").mkdir()
    write_index(index_path(runs_dir), rows)
    with database.changing() as connection:  # made from the index
        found = connection.execute("SELECT count(*) FROM jobs").fetchone()[0]
        assert found == count, found
        put(connection, [])
    database.close()
    end_a_job(runs_dir, "last")


def end_a_job(runs_dir: Path, run_id: str) -> None:
    """What doors do: a job added, its run's folder made, the job ended."""
    with open_store(runs_dir) as store:
        row = row_of(runs_dir, run_id)
        store.add(row)
        (runs_dir / run_id / "reports").mkdir(parents=True)
        (runs_dir / run_id / "reports" / "resolved_config.json").write_text("{}\n")
        store.advance(row.job_id, "completed", exit_code=0)


def wall_ms(command: Sequence[str], runs_dir: Path) -> float:
    began_s = time.perf_counter()
    subprocess.run([*TRN, *command, "--runs-dir", str(runs_dir)], env=ENVIRONMENT, check=True, capture_output=True)
    return (time.perf_counter() - began_s) * 1e3


def measure_verbs(few: Path, many: Path, jobs: int, runs: int) -> None:
    verbs = {
        "list": ["list"],
        "list --json": ["list", "--json"],
        "list --state failed": ["list", "--state", "failed"],
        "list --run": ["list", "--run", "run-000042"],
        "status": ["status"],
        "status ID": ["status", "run-000042"],
    }
    rounds = [{name: (wall_ms(verb, few), wall_ms(verb, many)) for name, verb in verbs.items()} for _ in range(runs)]
    print(f"ms of a command, median (least to most) of {runs}, in turn")
    print(f"{'':22} {'100 jobs':>22} {f'{jobs:,} jobs':>24} {'ratio':>6}")
    for name in verbs:
        here, there = ([one[name][at] for one in rounds] for at in (0, 1))
        ratio = statistics.median(b / a for a, b in zip(here, there, strict=True))
        print(f"{'trn ' + name:22} {_spread(here):>22} {_spread(there):>24} {ratio:6.2f}")
    print(f"the goal is at most {MOST_MS:g} ms, and {MOST_X:g} x")


def measure_losses(many: Path, runs: int) -> None:
    """What is dearer: after a folder was copied in, without an index, and without a store."""
    (many / "copied" / "reports").mkdir(parents=True)
    (many / "copied" / "reports" / "resolved_config.json").write_text("{}\n")
    print(f"{'trn list, a folder new':34} {_spread([wall_ms(['list'], many) for _ in range(runs)])}")
    began_s = time.perf_counter()
    end_a_job(many, "after-copy")
    print(f"{'the next job looks at all folders':34} {(time.perf_counter() - began_s) * 1e3:.0f}")
    before = subprocess.run([*TRN, "list", "--all", "--json", "--runs-dir", str(many)], capture_output=True).stdout
    index_path(many).unlink()
    began_s = time.perf_counter()
    end_a_job(many, "after-index")
    print(f"{'the next job makes the index':34} {(time.perf_counter() - began_s) * 1e3:.0f}")
    for path in (many / ".trn").glob("jobs.db*"):
        path.unlink()
    print(f"{'trn list without the store':34} {_spread([wall_ms(['list'], many) for _ in range(min(runs, 3))])}")
    began_s = time.perf_counter()
    end_a_job(many, "after-store")
    print(f"{'the next job makes the store':34} {(time.perf_counter() - began_s) * 1e3:.0f}")
    after = subprocess.run([*TRN, "list", "--all", "--json", "--runs-dir", str(many)], capture_output=True).stdout
    print(f"the listing is the same: {after.endswith(before[1:])}")


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def main() -> int:
    if sys.argv[1:2] == ["--write"]:
        write(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writers", type=int, default=50)
    parser.add_argument("--operations", type=int, default=200, help="of each writer; 1000 takes minutes")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="8 writers, 2,000 jobs: shows that it works")
    options = parser.parse_args()
    if options.quick:
        options.writers, options.operations, options.jobs, options.runs = 8, 40, 2000, 3
    with tempfile.TemporaryDirectory() as folder:
        is_whole = measure_writers(Path(folder) / "race", options.writers, options.operations)
        print()
        for name, count in (("few", 100), ("many", options.jobs)):
            fill(Path(folder) / name, count)
        measure_verbs(Path(folder) / "few", Path(folder) / "many", options.jobs, options.runs)
        print()
        measure_losses(Path(folder) / "many", options.runs)
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
