"""A spec run in processes of its own, as `trn run` does it: to its end, or killed on the way and taken up again.

    whole = run_whole("spec.yaml", tmp_path, "whole")
    killed = run_killed("spec.yaml", tmp_path, "killed", at=[7, 31])
    assert_same_end(killed, whole)

A kill is a SIGKILL that the process meets while it writes the line of that very step: the step was made in memory, and
nothing tells of it. It comes by a failpoint and not by a clock, so that a test does the same each time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from trn.checkpoint.meta import listed_steps
from trn.records import new_job_id

__all__ = ["run_killed", "run_whole"]

_TIMEOUT_S = 600.0
_TOLD = 2000


def run_whole(
    spec: str | Path, runs_dir: Path, run_id: str = "whole", *, more: Sequence[str] = (), timeout_s: float = _TIMEOUT_S
) -> Path:
    """Run to the end and return the folder; `more` are arguments such as ("--set", "max_steps=50").

    Raises AssertionError with the end of what it printed where it did not reach its goal.
    """
    _run(spec, runs_dir, run_id, more, timeout_s, fault=None, expected=0)
    return Path(runs_dir) / run_id


def run_killed(
    spec: str | Path,
    runs_dir: Path,
    run_id: str = "killed",
    *,
    at: Sequence[int],
    more: Sequence[str] = (),
    timeout_s: float = _TIMEOUT_S,
) -> Path:
    """The same, killed in each of these steps and resumed after it; `at` must rise.

    Raises AssertionError where a kill did not come about, say because the budget ended before it.
    """
    run_dir = Path(runs_dir) / run_id
    for step in at:
        stands_at = max(listed_steps(run_dir / "checkpoints"), default=0) if run_dir.exists() else 0
        if step <= stands_at:
            raise AssertionError(f"run_killed: expected a step after {stands_at}, where the run stands, found {step}")
        # one write a step: the line of the journal
        fault = f"op=write,path=reports/train_metrics.jsonl,n={step - stands_at},do=tear"
        _run(spec, runs_dir, run_id, more, timeout_s, fault=fault, expected=-signal.SIGKILL)
    return run_whole(spec, runs_dir, run_id, more=more, timeout_s=timeout_s)


def _run(
    spec: str | Path,
    runs_dir: Path,
    run_id: str,
    more: Sequence[str],
    timeout_s: float,
    *,
    fault: str | None,
    expected: int,
) -> None:
    command = [sys.executable, "-m", "trn.runner", "--job-id", new_job_id(), "--config", str(spec)]
    command += ["--runs-dir", str(runs_dir), "--run-id", run_id, "--auto-resume", *more]
    environ = {name: value for name, value in os.environ.items() if name != "TRN_FAULT"}
    done = subprocess.run(
        command,
        env=environ if fault is None else environ | {"TRN_FAULT": fault},
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != expected:
        told = done.stderr[-_TOLD:].rstrip() or "nothing was printed"
        raise AssertionError(f"{run_id}: expected exit status {expected}, found {done.returncode}: {told}")
