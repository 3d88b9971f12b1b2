"""A job's processes started, kept in the foreground, and begun anew where one of them was lost.

this door keeps the job    Watch and run_in_foreground; after a loss, a new job that resumes the run
another door keeps it      this one becomes the rank that follows, or on another machine torchrun's agent
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import click

from trn.devices import Lease, Want, lease, require_there
from trn.doors.adopting import adopting
from trn.doors.apart import module, serve_if_needed
from trn.doors.foreground import run_in_foreground
from trn.doors.lines import outcome_line
from trn.doors.listing import say_news
from trn.doors.processes import Processes
from trn.doors.progress import Display, SilentDisplay, display_for
from trn.doors.summary import summary_lines
from trn.doors.text import clean_line
from trn.doors.watch import Watch
from trn.errors import StorageError, TrnError
from trn.files import Lock
from trn.jobs import Store, open_store, record_lost
from trn.jobs.ending import Ending
from trn.launch import InlineLauncher, Launcher, LocalLauncher, TorchrunLauncher, become
from trn.records import JobRow, canonical_json, new_job_id, pretty_json, utc_now

__all__ = ["Start", "Taken", "check_devices", "devices_of", "keep", "leased", "planner", "recorded", "stay_with"]


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
    want: Want = field(default_factory=Want)
    """The devices that the job is to hold."""
    argv: Sequence[str] = ()
    """The command that submitted it, where that is not this process's own."""
    is_detached: bool = False
    """Whether the run goes on when the door that keeps it is gone."""
    launcher: Callable[[Lease | None], Launcher] | None = None
    """What starts its one process, where that is not the usual launcher."""

    @property
    def run_dir(self) -> Path:
        return self.runs_dir / self.run_id

    def new_job(self, held: Lease | None = None) -> JobRow:
        return JobRow(
            job_id=new_job_id(),
            run_id=self.run_id,
            run_dir=str(self.run_dir),
            state="submitted",
            config_path=os.path.abspath(self.config) if self.config else "",
            submitted_at=utc_now(),
            launcher="torchrun" if self.processes.layout.world_size > 1 else "local",
            devices=devices_of(held),
        )

    def foretell(self) -> int:
        """Become the planner, whose answer is for one reader only."""
        if self.processes.is_follower:
            return 0
        become([*_runner(new_job_id()), *self.arguments, "--dry-run"], self.place_of_planner or None)

    @property
    def place_of_planner(self) -> dict[str, str]:
        """The variables by which a single process plans for all ranks; none for one rank."""
        layout = self.processes.layout
        if layout.world_size == 1:
            return {}
        world = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(layout.world_size)}
        return {**world, "LOCAL_WORLD_SIZE": str(layout.nproc)}

    @property
    def resumption(self) -> list[str]:
        """The arguments to go on with after a job that had begun: by the run's own plan, from its newest checkpoint."""
        allowed = [part for name in self.allow_change for part in ("--allow-change", name)]
        return ["--run-dir", str(self.run_dir), *allowed]


def planner(job_id: str) -> list[str]:
    """The command line, without a run's own arguments, that plans it and leaves it for a later process to begin."""
    return [*_runner(job_id), "--plan-only"]


def _runner(job_id: str) -> list[str]:
    return [*module("trn.runner"), "--job-id", job_id]


def stay_with(start: Start, launcher: str, as_json: bool) -> int:
    """Run it to its end, over as many jobs as may be; returns the last one's exit status."""
    if start.processes.is_follower:
        _follow(start)
    with (
        adopting(start.new_job(), start.runs_dir) as (row, lock),
        leased(start, row) as held,
        open_store(start.runs_dir) as store,
    ):
        record_lost(store)
        say_news(store)
        taken = Taken(replace(row, devices=devices_of(held)), lock)
        ending, watch = keep(start, store, partial(display_for, sys.stderr), launcher, held=held, taken=taken)
    for line in summary_lines(ending, watch):
        watch.say(line)
    serve_if_needed(start.runs_dir)
    watch.relaying.wait(watch.say, is_asked_to_stop=bool(watch.signals))
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
    command = launcher.command(argv, door_pid=None, max_restarts=processes.max_restarts)
    become(command, launcher.environ(), lease=_lease(start, new_job_id()))


class Taken(NamedTuple):
    """A job to be kept: its row, and its launch lock where this door holds it already."""

    row: JobRow
    lock: Lock | None


def keep(
    start: Start,
    store: Store,
    display: Callable[[], Display],
    launcher: str = "local",
    *,
    held: Lease | None,
    taken: Taken,
) -> tuple[Ending, Watch]:
    """One job after the other, until one is not lost or may not be restarted; returns the last one's ending.

    The first is the one that was `taken`; all of them hold what is `held`. Raises StorageError where a job cannot be
    recorded.
    """
    arguments, restarts = start.arguments, 0
    row, lock = taken
    while True:
        watch = Watch(store, row, display(), start.argv)
        if restarts == 0:
            watch.say(f"trn: run {start.run_id} in {start.run_dir}")
        chosen, door = _launcher(start, launcher, restarts, held)
        ending = run_in_foreground(watch, chosen, [*_runner(watch.row.job_id), *arguments, *door], lock=lock)
        if not ending.is_lost or watch.signals or restarts == start.processes.max_restarts:
            return ending, watch
        restarts += 1
        if ending.outcome is not None:  # the job had begun the run, which can now be resumed
            arguments = start.resumption
        watch.say(f"trn: {_told(ending).rstrip('.')}; restart {restarts} of {start.processes.max_restarts}")
        row, lock = replace(start.new_job(held), launcher=row.launcher, engine_id=row.engine_id), None


def leased(start: Start, row: JobRow) -> Lease:
    """The devices of a new job, held from now on. Raises DeviceError; the job is then in the store as refused."""
    with recorded(start.runs_dir, row):
        return _lease(start, row.job_id)


def check_devices(start: Start, row: JobRow) -> None:
    """Refuse a new job for which it would not help to wait, as `leased` does; nothing is held."""
    with recorded(start.runs_dir, row):
        require_there(start.want, os.environ)


def _lease(start: Start, job_id: str) -> Lease:
    return lease(start.want, note=f"job={job_id} run={start.run_id}", environ=os.environ)


@contextlib.contextmanager
def recorded(runs_dir: Path, row: JobRow) -> Iterator[None]:
    """Put a job that is refused here into the store."""
    try:
        yield
    except TrnError as error:
        _record_refusal(runs_dir, row, error)
        raise


def _record_refusal(runs_dir: Path, row: JobRow, error: TrnError) -> None:
    refused = replace(
        row, state="rejected", exit_code=error.exit_status, reason=clean_line(str(error)), ended_at=utc_now()
    )
    with contextlib.suppress(StorageError), open_store(runs_dir) as store:  # the refusal is what there is to tell
        store.add(refused)  # one that an engine has started is there already, and is not this one's to move
        watch = Watch(store, refused, SilentDisplay())
        watch.note_submission()
        watch.note("job_rejected", run_id=row.run_id, exit_code=refused.exit_code, reason=refused.reason)


def devices_of(held: Lease | None) -> str | None:
    """What a job holds, as its row says it."""
    return canonical_json(list(held.devices)).decode() if held is not None and held.devices else None


def _launcher(start: Start, name: str, restarts: int, held: Lease | None) -> tuple[Launcher, list[str]]:
    """What starts the runner, and how the runner knows its parent."""
    if name == "inline":
        return InlineLauncher(held), []
    if start.processes.layout.world_size > 1:
        torchrun = TorchrunLauncher(
            start.processes.layout, grace_s=start.grace_s, attempt=restarts, is_detached=start.is_detached, lease=held
        )
        return torchrun, ["--door-pid", "parent"]
    local = LocalLauncher(lease=held) if start.launcher is None else start.launcher(held)
    return local, [] if start.is_detached else ["--door-pid", str(os.getpid())]


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
