"""What is known of runs: the queue, who holds which, what was told of them, how they ended.

    queued ──next──> assigned ──claim──> running ──terminal──> a word of the outcome table
      ^                   │                  │
      └── nobody claimed ─┴──────────────────┴── preempted, upload_failed, or the lease has run out

In memory, and after each change as a whole file, RUN_ID/run.json; step lines go to RUN_ID/metrics.jsonl. Only one
thread may call this. A run's id is the only part of a path that came from outside, and it is checked.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Lease", "Refusal", "Run", "Runs", "write_whole"]

Json = dict[str, Any]

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_AGAIN = frozenset({"preempted", "upload_failed", "no_device", "rank_lost", "hang"})
"""Endings after which another worker may bring the run further."""
_KEYS_KEPT = 1000


class Refusal(Exception):
    """An answer that is no 2xx; the message is told to whoever asked."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass
class Lease:
    """Who may speak for a run, until when by the monotonic clock. The generation of a newer lease is higher."""

    lease_id: str
    generation: int
    worker_id: str
    job_id: str
    host: str
    until_s: float
    step: int | None = None
    state: str = "starting"


@dataclass
class Run:
    run_id: str
    owner: str
    job: Json
    submitted_s: float
    assigned_until_s: float = 0.0
    """By the monotonic clock. Whoever was given the run has claimed it by then, or it is given to somebody else."""
    generation: int = 0
    lease: Lease | None = None
    cancel_reason: str | None = None
    terminals: dict[str, Json] = field(default_factory=dict)
    """By job, in the order in which they came."""
    keys: list[str] = field(default_factory=list)
    """Of batches of step lines that were taken."""
    lines: dict[int, Json] = field(default_factory=dict, repr=False)
    """By step, in order."""

    @property
    def is_held(self) -> bool:
        return self.lease is not None and time.monotonic() < self.lease.until_s

    @property
    def is_assigned(self) -> bool:
        return time.monotonic() < self.assigned_until_s

    @property
    def ending(self) -> str | None:
        """The status of the newest job that has ended, where nobody has claimed the run since."""
        if self.lease is not None and self.lease.job_id not in self.terminals:
            return None
        return next((one["status"] for one in reversed(self.terminals.values())), None)

    @property
    def state(self) -> str:
        if self.is_held and self.lease is not None and self.lease.job_id not in self.terminals:
            return "running"
        if self.ending is not None:
            return self.ending
        if self.lease is not None:
            return "lost"
        if self.cancel_reason is not None:
            return "cancelled"
        return "assigned" if self.is_assigned else "queued"


class Runs:
    """All runs below `folder`; what an earlier process wrote there is taken up."""

    def __init__(self, folder: Path, *, ttl_s: float = 30.0) -> None:
        self._folder, self.ttl_s = folder, ttl_s
        folder.mkdir(parents=True, exist_ok=True)
        self.all: dict[str, Run] = {}
        for path in sorted(folder.glob("*/run.json")):
            run = self._read(path)
            self.all[run.run_id] = run

    # what the platform asks for

    def submit(self, job: Json, owner: str) -> Run:
        run_id = job.get("run_id")
        if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
            raise Refusal(422, "run_id: expected 1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or a digit")
        _require_tellable(job, "the job")
        if job.get("owner") != owner:
            raise Refusal(403, f"owner: expected that of the token, {owner!r}, found {job.get('owner')!r}")
        if run_id in self.all:
            if self.all[run_id].job == job and self.all[run_id].owner == owner:
                return self.all[run_id]
            raise Refusal(409, f"there is another run {run_id!r}")
        (self._folder / run_id).mkdir(exist_ok=True)
        run = self.all[run_id] = Run(run_id, owner, job, time.time())
        self._save(run)
        return run

    def get(self, run_id: str, owner: str) -> Run:
        """One of another owner is as unknown as one that is not there."""
        run = self.all.get(run_id)
        if run is None or run.owner != owner:
            raise Refusal(404, f"there is no run {run_id[:64]!r}")
        return run

    def next(self, owner: str) -> Run | None:
        """The oldest run that waits for a worker. It is claimed by that worker, not here."""
        waiting = [run for run in self.all.values() if run.owner == owner and self._waits(run)]
        if not waiting:
            return None
        run = min(waiting, key=lambda one: one.submitted_s)
        run.assigned_until_s = time.monotonic() + self.ttl_s
        return run

    def _waits(self, run: Run) -> bool:
        if run.cancel_reason is not None or run.is_held or run.is_assigned:
            return False
        return run.state == "lost" or run.ending in _AGAIN or run.state == "queued"

    def cancel(self, run: Run, reason: str) -> None:
        run.cancel_reason = run.cancel_reason or reason
        self._save(run)

    # what a worker asks for

    def claim(self, run: Run, worker_id: str, job_id: str, host: str) -> Lease:
        """A new lease, of a higher generation than all before; the same one, where this job holds it already."""
        if run.is_held and run.lease is not None:
            if (run.lease.worker_id, run.lease.job_id) == (worker_id, job_id):
                run.lease.until_s = time.monotonic() + self.ttl_s
                return run.lease
            left_s = run.lease.until_s - time.monotonic()
            raise Refusal(409, "another worker holds the run", Retry_After=str(max(1, math.ceil(left_s))))
        run.generation += 1
        until_s = time.monotonic() + self.ttl_s
        run.lease = Lease(secrets.token_hex(16), run.generation, worker_id, job_id, host, until_s)
        run.assigned_until_s = 0.0
        self._save(run)
        return run.lease

    def renew(self, run: Run, lease_id: str, step: int | None, state: str) -> Lease:
        """One that has run out may be renewed as long as nobody else has claimed the run; one given back may not."""
        lease = self._lease(run, lease_id)
        if lease.until_s == 0.0:
            raise Refusal(410, "this lease was given back")
        lease.until_s = time.monotonic() + self.ttl_s
        lease.step, lease.state = step, state
        return lease

    def release(self, run: Run, lease_id: str) -> None:
        lease = self._lease(run, lease_id)
        lease.until_s = 0.0
        self._save(run)

    def _lease(self, run: Run, lease_id: str) -> Lease:
        if run.lease is None or run.lease.lease_id != lease_id:
            raise Refusal(410, "this lease is over")
        return run.lease

    def fence(self, run: Run, lease_id: str | None, generation: str | None) -> None:
        """Only the newest lease may speak. A run that nobody has ever claimed needs none."""
        if run.lease is None and generation is None and lease_id is None:
            return
        if run.lease is None or lease_id != run.lease.lease_id or generation != str(run.generation):
            newest = str(run.generation)
            raise Refusal(409, f"generation {newest} holds the run, and this is not it", Lease_Generation=newest)

    def add_lines(self, run: Run, key: str | None, lines: list[Json], cut_above_step: int | None) -> None:
        """Take step lines, after taking back those above `cut_above_step`. The same key twice is once."""
        if key is not None and key in run.keys:
            return
        steps = [line.get("step") for line in lines]
        if not all(isinstance(step, int) and not isinstance(step, bool) and step >= 0 for step in steps):
            raise Refusal(422, "lines: expected a step, a number from 0, in each")
        _require_tellable(lines, "lines")
        texts = [json.dumps(line, separators=(",", ":")) for line in lines]
        path = self._folder / run.run_id / "metrics.jsonl"
        if cut_above_step is not None or any(step in run.lines for step in steps):
            kept = [line for step, line in run.lines.items() if cut_above_step is None or step <= cut_above_step]
            run.lines = {line["step"]: line for line in sorted([*kept, *lines], key=lambda line: line["step"])}
            write_whole(path, "".join(f"{json.dumps(line)}\n" for line in run.lines.values()))
        else:
            run.lines.update({line["step"]: line for line in lines})
            with open(path, "a", encoding="utf-8") as stream:
                stream.write("".join(f"{text}\n" for text in texts))
        if key is not None:
            run.keys = [*run.keys, key][-_KEYS_KEPT:]
        self._save(run)

    def end(self, run: Run, payload: Json) -> Json:
        """What stands as the terminal state of the payload's job: the first that was told."""
        _require_tellable(payload, "the terminal state")
        if payload["job_id"] not in run.terminals:
            run.terminals[payload["job_id"]] = payload
            self._save(run)
        return run.terminals[payload["job_id"]]

    # the disk

    def _save(self, run: Run) -> None:
        known = {key: value for key, value in vars(run).items() if key not in ("lines", "assigned_until_s")}
        if run.lease is not None:
            known["lease"] = {key: value for key, value in vars(run.lease).items() if key != "until_s"}
            known["lease"]["is_released"] = run.lease.until_s == 0.0  # the clock itself ends with this process
        write_whole(self._folder / run.run_id / "run.json", json.dumps(known))

    def _read(self, path: Path) -> Run:
        known = json.loads(path.read_text())
        if known["lease"] is not None:
            is_released = known["lease"].pop("is_released")
            known["lease"] = Lease(**known["lease"], until_s=0.0 if is_released else time.monotonic() + self.ttl_s)
        run = Run(**known)
        metrics = path.with_name("metrics.jsonl")
        for line in metrics.read_text().splitlines() if metrics.exists() else ():
            try:
                run.lines[json.loads(line)["step"]] = json.loads(line)
            except ValueError:  # a line that was cut by a kill; whoever sent it was not answered and sends it again
                write_whole(metrics, "".join(f"{json.dumps(one)}\n" for one in run.lines.values()))
        return run


def _require_tellable(document: object, what: str) -> None:
    """Refuse what could be kept and never be told again: NaN, an infinity, half of a surrogate pair."""
    try:
        json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        raise Refusal(422, f"{what}: expected finite numbers, and text that is UTF-8") from None


def write_whole(path: Path, text: str) -> None:
    """Replace the file at `path` by one with this text, or leave it as it is."""
    aside = path.with_name(f".{path.name}.new")
    with open(aside, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(aside, path)
