"""A job of a platform in a folder, and the worker that does it, as a process with an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from support.job import write_job
from support.orchestrator import OWNER, RELEASE
from trn.records import read_lines

__all__ = ["PlatformJob", "spec_of"]

Json = dict[str, Any]

LIMIT_S = 120.0


def spec_of(folder: Path, *, max_steps: int, checkpoint_every: int) -> Json:
    """The hostile little job of `support.job`, as a mapping."""
    spec: Json = YAML(typ="safe").load(write_job(folder, max_steps=max_steps, checkpoint_every=checkpoint_every))
    return spec


class PlatformJob:
    """A job file beside data and trainer in `folder`, with `out` as the artifacts folder. `changes` replace keys."""

    def __init__(
        self, folder: Path, *, max_steps: int = 60, checkpoint_every: int = 10, run_id: str = "exp01", **changes: Any
    ) -> None:
        self.folder, self.run_id = folder, run_id
        self.out = folder / "out"
        self.run_dir = self.out / "runs" / run_id
        self.events_path = self.out / "metrics/events.jsonl"
        spec = spec_of(folder, max_steps=max_steps, checkpoint_every=checkpoint_every)
        del spec["config_version"]
        quiet = {"heartbeat": {"interval_seconds": 0}, "log": {"enabled": False}}
        names = {"trainer_api_version": "v1", "run_id": run_id, "owner": OWNER, "release_ref": RELEASE}
        self.job = {**spec, **quiet, **names, **changes}
        self.write()

    @property
    def path(self) -> Path:
        return self.folder / "job.json"

    def write(self) -> None:
        self.path.write_text(json.dumps({name: value for name, value in self.job.items() if value is not None}))

    def environ(self, **more: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "TRN_LEASES_DIR") if name in os.environ}
        usual = {
            "OMP_NUM_THREADS": "1",
            "TRAINER_JOB_SPEC_PATH": str(self.path),
            "TRAINER_ARTIFACTS_DIR": str(self.out),
        }
        return {**kept, "WORKER_MODE": "trainer", **usual, **more}

    def start(self, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "trn.worker"],
            env=self.environ(**more),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def do(self, **more: str) -> tuple[int, str]:
        """The worker from its start to its end: exit status, and what it said."""
        worker = self.start(**more)
        try:
            said = worker.communicate(timeout=LIMIT_S)[1]
        finally:
            if worker.poll() is None:
                worker.kill()
        return worker.returncode, said

    def told(self, *kinds: str) -> list[Json]:
        """What the worker's journal says, of these kinds."""
        found = list(read_lines(self.events_path)) if self.events_path.exists() else []
        return [one for one in found if not kinds or one["event"] in kinds]

    def endings(self) -> list[tuple[str, str, int]]:
        """Of each terminal event the kind, the outcome and the exit status."""
        kinds = ("completed", "preempted", "cancelled", "failed")
        return [(one["event"], one["outcome"], one["exit_code"]) for one in self.told(*kinds)]

    def steps(self) -> int:
        """How many are logged."""
        path = self.run_dir / "reports/train_metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0
