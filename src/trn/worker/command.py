"""The verb `worker`: the same as `python -m trn.worker`, told by the environment alone."""

from __future__ import annotations

import os

import click

from trn.worker.stopping import hold_signals

__all__ = ["worker_command"]


@click.command(name="worker")
def worker_command() -> int:
    """Do one job of a platform: read it, fetch its inputs, train it in a process of its own, report, upload, end.

    Everything is told by environment variables, WORKER_MODE=trainer and TRAINER_JOB_SPEC_PATH first; docs/worker.md has
    all of them. The exit status says how it ended, as for every run.
    """
    hold_signals()
    from trn.worker.run import run_worker  # half a second, in which a signal may come

    return run_worker(os.environ)
