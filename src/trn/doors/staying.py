"""A job's processes started, kept in the foreground, and begun anew where one of them was lost.

this door keeps the job    Watch and run_in_foreground; after a loss, a new job that resumes the run
another door keeps it      this one becomes the rank that follows, or on another machine torchrun's agent
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click

from trn.doors.foreground import Watch, run_in_foreground
from trn.doors.lines import outcome_line
from trn.doors.processes import Processes
from trn.doors.progress import display_for
from trn.doors.summary import summary_lines
from trn.doors.text import clean_line
from trn.jobs import Store, open_store, record_lost
from trn.jobs.ending import Ending
from trn.launch import InlineLauncher, Launcher, LocalLauncher, TorchrunLauncher, become
from trn.records import JobRow, new_job_id, pretty_json, utc_now

__all__ = ["Start", "module", "stay_with"]


@dataclass(frozen=True)
class Start:
    """What is to be run, as which processes; `arguments` are the runner's, without those of the job."""

    runs_dir: Path
    run_id: str
    arguments: Sequence[str]
    processes: Processes
    config: str
    """The spec's file; "" for a resume by the run's own plan."""
    grace_s: float
    allow_change: Sequence[str] = ()

    @property
    def run_dir(self) -> Path:
        return self.runs_dir / self.run_id

    def new_job(self) -> JobRow:
        return JobRow(
            job_id=new_job_id(),
            run_id=self.run_id,
            run_dir=str(self.run_dir),
            state="submitted",
            config_path=os.path.abspath(self.config) if self.config else "",
            submitted_at=utc_now(),
        )

    def foretell(self) -> int:
        """Become the planner, whose answer is for one reader only."""
        if self.processes.is_follower:
            return 0
        layout, world = self.processes.layout, {}
        if layout.world_size > 1:
            world = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(layout.world_size)}
            world["LOCAL_WORLD_SIZE"] = str(layout.nproc)
        become([*_runner(new_job_id()), *self.arguments, "--dry-run"], world or None)

    @property
    def resumption(self) -> list[str]:
        """The arguments to go on with after a job that had begun: by the run's own plan, from its newest checkpoint."""
        allowed = [part for name in self.allow_change for part in ("--allow-change", name)]
        return ["--run-dir", str(self.run_dir), *allowed]


def module(name: str) -> list[str]:
    """The command line of a module that is a program."""
    # -u: what the trainer prints is seen when it is printed, and is not lost with a process that is killed
    # -P: a file in the current folder must not stand in for a module of the same name
    return [sys.executable, "-u", "-P", "-m", name]


def _runner(job_id: str) -> list[str]:
    return [*module("trn.runner"), "--job-id", job_id]


def stay_with(start: Start, launcher: str, as_json: bool) -> int:
    """Run it to its end, over as many jobs as may be; returns the last one's exit status."""
    if start.processes.is_follower:
        _follow(start)
    with open_store(start.runs_dir) as store:
        record_lost(store)
        ending, watch = _keep(start, launcher, store)
    for line in summary_lines(ending, watch):
        watch.say(line)
    if as_json:
        # the run's status is the answer, also to a script that has stopped reading
        with contextlib.suppress(OSError):
            click.echo(pretty_json(_document(ending, watch.row)), nl=False)
    return ending.exit_code


def _follow(start: Start) -> NoReturn:
    """Become what follows the job of another door."""
    processes = start.processes
    argv = [*_runner(new_job_id()), "--follow", "--door-pid", "parent"]
    if processes.layout.world_size == 1:
        become(argv, {})
    launcher = TorchrunLauncher(processes.layout, grace_s=start.grace_s)
    become(launcher.command(argv, door_pid=None, max_restarts=processes.max_restarts), launcher.environ())


def _keep(start: Start, launcher: str, store: Store) -> tuple[Ending, Watch]:
    """One job after the other; returns the last one's ending."""
    arguments, restarts = start.arguments, 0
    while True:
        watch = Watch(store, start.new_job(), display_for(sys.stderr))
        if restarts == 0:
            watch.say(f"trn: run {start.run_id} in {start.run_dir}")
        chosen, door = _launcher(start, launcher, restarts)
        ending = run_in_foreground(watch, chosen, [*_runner(watch.row.job_id), *arguments, *door])
        if not ending.is_lost or watch.signals or restarts == start.processes.max_restarts:
            return ending, watch
        restarts += 1
        if ending.outcome is not None:  # the job had begun the run, which can now be resumed
            arguments = start.resumption
        watch.say(f"trn: {_told(ending).rstrip('.')}; restart {restarts} of {start.processes.max_restarts}")


def _launcher(start: Start, name: str, restarts: int) -> tuple[Launcher, list[str]]:
    """What starts the runner, and how the runner knows its parent."""
    if name == "inline":
        return InlineLauncher(), []
    if start.processes.layout.world_size > 1:
        torchrun = TorchrunLauncher(start.processes.layout, grace_s=start.grace_s, attempt=restarts)
        return torchrun, ["--door-pid", "parent"]
    return LocalLauncher(), ["--door-pid", str(os.getpid())]


def _told(ending: Ending) -> str:
    if ending.outcome is not None:
        return outcome_line(ending.outcome.to_json())
    return clean_line(f"{ending.state} (exit {ending.exit_code}): {ending.reason}")


def _document(ending: Ending, row: JobRow) -> dict[str, Any]:
    return {
        "run_id": row.run_id,
        "job_id": row.job_id,
        "run_dir": row.run_dir,
        "state": ending.state,
        "exit_code": ending.exit_code,
        "reason": ending.reason,
        "outcome": ending.outcome.to_json() if ending.outcome else None,
    }
