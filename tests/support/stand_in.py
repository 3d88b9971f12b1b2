"""A child program that writes a run's folder as the runner does, without torch: for tests of launch, jobs and doors.

    python stand_in.py --job-id J --run-dir DIR [--steps N] [--from-step K] --then WHAT

WHAT: complete | die (SIGKILL itself) | exit=N | refuse | early-die (publish, then die before the first event) |
silent-die (die without a folder) | wait (for a signal, or for its door to vanish) | wait-twice (for two signals) |
lock (hold the run and wait) | die-once (the first job dies, the next completes) |
until=FILE (complete when it is there, with or without a door)

With --plan-only it makes the folder, and ends.

As a rank other than 0 (RANK) it waits for the outcome, and ends with its status.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from trn.checkpoint.meta import CheckpointMeta, checkpoint_name, meta_name
from trn.files import AppendLog, Lock, make_folder, publish_folder, write_atomic
from trn.jobs import outcome_of
from trn.journal import EventLog
from trn.records import Outcome, ending_of, json_line, pretty_json, utc_now

SCRIPT = Path(__file__)


def argv(*arguments: str) -> list[str]:
    """The command line of a stand-in; `{job}` and `{run_dir}` in it are for the door to fill in."""
    return [sys.executable, "-u", str(SCRIPT), "--job-id", "{job}", "--run-dir", "{run_dir}", *arguments]


def metrics_line(step: int, loss: float, wait_ms: float = 0.0) -> bytes:
    """A step of 20 ms, of which it waited `wait_ms` for its data."""
    line = {"step": step, "epoch": 0, "train_loss": loss, "grad_norm": 1.0, "lr": 1e-3, "data_wait_ms": wait_ms}
    return json_line({**line, "tokens_per_sec": 1000.0, "samples_per_sec": None, "wall_ms": 20.0, "tokens_seen": step})


def outcome_of_job(run_dir: Path, job_id: str, status: str, step: int, reason: str = "") -> Outcome:
    return Outcome(
        status=status,
        reason=reason or status,
        step=step,
        run_id=run_dir.name,
        job_id=job_id,
        epochs_completed=0,
        plan_fingerprint="f" * 64,
        started_at=utc_now(),
        ended_at=utc_now(),
        resumable=status != "completed",
        final={"step": step, "val_loss": 2.5},
        best={"step": step, "metric": "val_loss", "value": 2.25},
    )


def publish(run_dir: Path, job_id: str) -> Lock:
    """A new run's folder with a plan, its lock held; for one that exists only the lock is taken."""
    if run_dir.exists():
        lock = Lock(run_dir / ".lock")
        assert lock.acquire(note=f"pid={os.getpid()} job={job_id}")
        return lock
    staged = make_folder(run_dir.parent / ".trn" / "staging" / job_id)
    lock = Lock(staged / ".lock")
    assert lock.acquire(note=f"pid={os.getpid()} job={job_id}")
    for name in ("reports", "checkpoints", "samples"):
        make_folder(staged / name)
    write_atomic(staged / "reports" / "resolved_config.json", b"{}\n")
    assert publish_folder(staged, run_dir)
    return lock


class Job:
    """The journal of one job."""

    def __init__(self, run_dir: Path, job_id: str) -> None:
        self.run_dir, self.job_id, self.step = run_dir, job_id, 0
        self.events = EventLog(run_dir / "reports" / "events.jsonl", run_id=run_dir.name, job_id=job_id)
        self.metrics = AppendLog(run_dir / "reports" / "train_metrics.jsonl")

    def begin(self, steps: int, from_step: int) -> None:
        if self.events.seq == 0:
            self.events.emit("plan_written", fingerprint="f" * 64)
        self.events.emit("job_started", pid=os.getpid(), resume=from_step > 0)
        self.step = from_step
        self.events.emit("started", step=from_step, max_steps=from_step + steps)

    def train(self, steps: int, wait_ms: float = 0.0) -> None:
        for _ in range(steps):
            self.step += 1
            self.metrics.append(metrics_line(self.step, 5.0 / self.step, wait_ms))
            print(f"the trainer prints step {self.step}")
        self.events.emit("evaluated", step=self.step, metrics={"val_loss": 2.5})
        self.events.emit("checkpoint", step=self.step, file=self.commit(), sha256="a" * 64, size_bytes=7)
        sample = f"samples/step-{self.step:08}-text.txt"
        (self.run_dir / sample).write_text("Once upon \x1b[31ma time\n")
        self.events.emit("sample", step=self.step, paths=[sample])

    def commit(self) -> str:
        """A checkpoint of the last step; returns its file's name."""
        meta = CheckpointMeta(
            file=checkpoint_name(self.step),
            sha256="a" * 64,
            size_bytes=7,
            step=self.step,
            epoch=0,
            run_id=self.run_dir.name,
            job_id=self.job_id,
            plan_fingerprint="f" * 64,
            created_at=utc_now(),
            metrics={},
            journal={},
            progress={},
            rng=[],
        )
        (self.run_dir / "checkpoints" / meta.file).write_bytes(b"weights")
        write_atomic(self.run_dir / "checkpoints" / meta_name(self.step), meta.to_bytes())
        return meta.file

    def end(self, status: str, reason: str = "") -> int:
        outcome = outcome_of_job(self.run_dir, self.job_id, status, self.step, reason)
        write_atomic(self.run_dir / "reports" / "outcome.json", pretty_json(outcome.to_json()))
        fields = {key: getattr(outcome, key) for key in ("exit_code", "reason", "step")}
        self.events.emit(ending_of(status), outcome=status, **fields)
        return outcome.exit_code


def wait_for_signals(job: Job, received: list[int], door_pid: int, count: int) -> int:
    """Wait until `count` signals asked to stop, or the door is gone; more than these are noticed, too."""
    while len(received) < count and os.getppid() == door_pid:
        time.sleep(0.01)
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:  # a signal that came twice would come now
        time.sleep(0.01)
    names = ",".join(signal.Signals(number).name for number in received)
    return job.end("cancelled" if signal.SIGINT in received else "preempted", names or "the door is gone")


def follow(run_dir: Path, job_id: str) -> int:
    """Wait for the outcome, or until the parent is gone."""
    parent = os.getppid()
    while os.getppid() == parent:
        if (outcome := outcome_of(run_dir, job_id)) is not None:
            return outcome.exit_code
        time.sleep(0.01)
    return 75


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job-id", required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--from-step", type=int, default=0)
    parser.add_argument("--wait-ms", type=float, default=0.0)
    parser.add_argument("--then", required=True)
    parser.add_argument("--door-pid")
    parser.add_argument("--plan-only", action="store_true")
    args = parser.parse_args()
    if os.environ.get("RANK", "0") != "0":
        return follow(args.run_dir, args.job_id)
    if args.then == "die-once":
        args.then = "complete" if args.run_dir.exists() else "die"
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        received.append(number)
        os.write(1, b"received\n")

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, receive)
    door_pid = os.getppid()
    if args.then == "refuse":
        print("plan error [plan_refused] at seed: no such thing.", file=sys.stderr)
        return 78
    if args.then == "silent-die":
        os.kill(os.getpid(), signal.SIGKILL)
    lock = publish(args.run_dir, args.job_id)
    if args.plan_only:
        return 0
    if args.then == "early-die":
        os.kill(os.getpid(), signal.SIGKILL)
    job = Job(args.run_dir, args.job_id)
    job.begin(args.steps, args.from_step)
    job.train(args.steps, args.wait_ms)
    status = 0
    if args.then == "complete":
        status = job.end("completed")
    elif args.then in ("wait", "wait-twice"):
        status = wait_for_signals(job, received, door_pid, 1 if args.then == "wait" else 2)
    elif args.then.startswith("until="):
        while not os.path.exists(args.then.removeprefix("until=")):
            time.sleep(0.01)
        status = job.end("completed")
    elif args.then == "lock":
        signal.pause()
    elif args.then == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif args.then.startswith("exit="):
        status = int(args.then.removeprefix("exit="))
    lock.release()
    return status


if __name__ == "__main__":
    sys.exit(main())
