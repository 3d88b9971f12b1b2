"""What a worker costs before the first step: CPU time of all its processes, above importing torch.

    OMP_NUM_THREADS=1 python benchmarks/worker.py [--rounds 7]

A job of one step on local data (the table of examples/table, six hooks), from the start of `python -m trn.worker` to
its end: settling, decoding into Arrow, contract, the trainer's process, its plan and start-up files, the step, the last
checkpoint, the ending. In turn with `python -c "import torch"`. The goal is at most 2 s from the start to the first
step; what comes after the step is in these figures too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
GOAL_S = 2.0


def cpu_s(argv: list[str], environ: Mapping[str, str], folder: Path) -> float:
    """CPU time of a process and of all that it waited for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, env=dict(environ), cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def write_job(folder: Path) -> Path:
    job = json.loads((EXAMPLES / "worker/job.json").read_text())
    job |= {"run_id": "one", "max_steps": 1, "checkpoint_every": 0, "sample_every": 0}
    job["dataset"]["parquet_paths"] = [str(EXAMPLES / "table/train.parquet")]
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="2 rounds")
    args = parser.parse_args()
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("TRAINER_", "WORKER_"))}
    torch: list[float] = []
    worker: list[float] = []
    for _ in range(2 if args.quick else args.rounds):
        torch.append(cpu_s([sys.executable, "-c", "import torch"], kept, EXAMPLES))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            environ = {
                **kept,
                "WORKER_MODE": "trainer",
                "PYTHONPATH": str(EXAMPLES / "worker"),
                "TRAINER_JOB_SPEC_PATH": str(write_job(folder)),
                "TRAINER_ARTIFACTS_DIR": str(folder / "out"),
            }
            worker.append(cpu_s([sys.executable, "-m", "trn.worker"], environ, folder))
    added = [one - other for one, other in zip(worker, torch, strict=True)]
    for what, found in (("import torch", torch), ("the worker", worker), ("above it", added)):
        print(f"{what:14} {statistics.median(found):.2f} s of CPU ({min(found):.2f} to {max(found):.2f})")
    print(f"the goal is at most {GOAL_S:g} s above importing torch")


if __name__ == "__main__":
    main()
