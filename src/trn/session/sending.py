"""Sends the events of a loop of one's own, as the door does for a runner: by a process of its own, which may fail."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from trn.spec.plan_model import Plan

__all__ = ["sending"]


@contextlib.contextmanager
def sending(plan: Plan, job_id: str) -> Iterator[None]:
    """Within it `python -m trn.sinks` sends what the run writes, to the targets of the plan.

    Afterwards it is told to end, not waited for: it has 30 s of its own for what is left, from when the run is let go.
    """
    process: subprocess.Popen[bytes] | None = None
    if plan.events:
        argv = [sys.executable, "-P", "-m", "trn.sinks", "--run-dir", plan.run_dir, "--job-id", job_id]
        output = None if "-" in plan.events else subprocess.DEVNULL
        with contextlib.suppress(OSError):
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=output, start_new_session=True)
            _held.add(process)
    try:
        yield
    finally:
        if process is not None:
            _let_go(process)


_held: set[subprocess.Popen[bytes]] = set()


def _let_go(process: subprocess.Popen[bytes]) -> None:
    _held.discard(process)
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _let_go_in_child() -> None:
    """A child that the loop forks may outlive it, and must not hold the pipe whose end is the end of the job."""
    for process in list(_held):
        _let_go(process)


os.register_at_fork(after_in_child=_let_go_in_child)
