"""The verb `cancel`: the jobs of a run, or one job, are asked to end; then their endings are told.

Nothing is killed: a job that runs ends itself, after its step, with a checkpoint, so that a resume loses nothing.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import click

from trn.doors.at_engine import ENGINES, cancel_at_engine
from trn.doors.completion import complete_run
from trn.doors.lines import outcome_line
from trn.doors.listing import json_option, row_json, runs_dir_option, write_json
from trn.doors.read import job_of
from trn.doors.targets import Target, find, runs_folder
from trn.doors.text import clean_line
from trn.errors import EngineError, Hang, StorageError
from trn.jobs import OPEN_STATES, Store, observe, open_store, outcome_of
from trn.jobs.cancelling import ask_to_cancel, forget_cancel, take_from_queue
from trn.records import JobRow

__all__ = ["cancel_command"]

_WAIT_S = 600.0
"""For how long the ending is waited for: a step, its checkpoint, an evaluation."""
_LOOK_EVERY_S = 0.1
_ENGINE_EVERY_S = 5.0
"""An engine serves many: it is not asked as often as the disk."""


@click.command(name="cancel")
@click.argument("run", metavar="ID|PATH", shell_complete=complete_run)
@click.option("--now", is_flag=True, help="End at once, without a checkpoint: the steps since the last one are lost.")
@click.option("--no-wait", is_flag=True, help="Ask, and do not wait for the end.")
@runs_dir_option
@json_option
def cancel_command(run: str, now: bool, no_wait: bool, runs_dir: str | None, as_json: bool) -> None:
    """End a run that waits or runs, as cancelled: after its step, with a checkpoint, so that it can be resumed.

    The run is named by its id, which means all its jobs, by the id of one job, or by the path of its folder. A job
    that waits in the queue is taken out of it. Of what has ended, the outcome is told. The exit status is 0 also
    where the run came to another end meanwhile.
    """
    target = find(run, runs_folder(runs_dir))
    deadline_s = time.monotonic() + _WAIT_S
    with open_store(target.runs_dir) as store:
        ended = [_end(store, row, now, no_wait, deadline_s) for row in _meant(store, target, run)]
    for row in ended:
        _say(_told(row, target.runs_dir))
    if as_json:
        write_json([row_json(row) for row in ended])


def _meant(store: Store, target: Target, named: str) -> list[JobRow]:
    """The job that was named, or the open ones of the run, those that wait first; else its last."""
    if target.job is not None and target.job.job_id == named:
        return [observe(target.job, target.runs_dir)]
    rows = [observe(row, target.runs_dir) for row in store.of_run(target.run_id)]
    waiting = [row for row in rows if row.state == "queued"]
    at_work = [row for row in rows if row.state in OPEN_STATES and row.state != "queued"]
    last = job_of(target, store)
    if last.state in OPEN_STATES and last.job_id and last.job_id not in {row.job_id for row in rows}:
        at_work.append(last)  # of a loop of the user's own, which the store does not know
    return [*waiting, *at_work] or [last]


def _end(store: Store, row: JobRow, now: bool, no_wait: bool, deadline_s: float) -> JobRow:
    """Ask, and wait; returns the row as it is then. Raises Hang, EngineError, StorageError."""
    runs_dir, is_asked, engine_asked_s = store.runs_dir, False, -_ENGINE_EVERY_S
    if row.launcher in ENGINES and row.state not in OPEN_STATES:
        return _end_at_engine(store, row, now)  # it may wait there for its next attempt
    while row.state in OPEN_STATES:
        if row.launcher in ENGINES and time.monotonic() - engine_asked_s > _ENGINE_EVERY_S:
            # a job at work hears the request sooner; the engine's own way is for one that does not
            row, engine_asked_s = _end_at_engine(store, row, now and is_asked), time.monotonic()
        elif row.state == "queued":
            row = take_from_queue(store, row) or row
        if row.state not in OPEN_STATES:
            break
        if not is_asked:
            ask_to_cancel(runs_dir, row.job_id, now=now)
            is_asked = True
            _say(f"asked job {row.job_id}, {row.state}, to end {_how(now)}" + ("" if no_wait else "; waiting for it"))
        if no_wait:
            return row
        if time.monotonic() >= deadline_s:
            raise Hang(
                f"it has not ended in {_WAIT_S:g} s, and is still asked to.",
                where=f"job {row.job_id}",
                hint="`trn status` shows what it is at; with --now it ends without a checkpoint.",
            )
        time.sleep(_LOOK_EVERY_S)
        row = observe(store.get(row.job_id) or row, runs_dir)
    if is_asked:
        with contextlib.suppress(StorageError):
            forget_cancel(runs_dir, row.job_id)
    return row


def _end_at_engine(store: Store, row: JobRow, now: bool) -> JobRow:
    """An engine that cannot be asked is no reason not to ask the run itself, where it is at work."""
    try:
        row, told = cancel_at_engine(store, row, now=now)
    except EngineError as error:
        if row.state == "queued":
            raise
        _say(str(error))
        return row
    if told is not None and told.state == "queued":
        _say(f"{row.launcher} does not start it any more")
    return row


def _how(now: bool) -> str:
    return "at once, without a checkpoint" if now else "after its step, with a checkpoint"


def _told(row: JobRow, runs_dir: Path) -> str:
    job = f"job {row.job_id}" if row.job_id else f"run {row.run_id}"
    if outcome := outcome_of(runs_dir / row.run_id, row.job_id):
        return f"{job}: {outcome_line(outcome.to_json())}"
    if row.state in OPEN_STATES:
        return f"{job} is {row.state}; `trn status {row.run_id}` shows it"
    if row.state == "lost":
        return f"{job} is lost: {row.reason}; `trn resume {row.run_id}` goes on with it"
    code = "" if row.exit_code is None else f" (exit {row.exit_code})"
    return f"{job}: {row.state}{code}: {row.reason or row.state}"


def _say(text: str) -> None:
    click.echo(clean_line(f"trn: {text}"), err=True)
