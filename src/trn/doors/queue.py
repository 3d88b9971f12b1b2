"""The verb `queue`: what waits and for what, and serving the queue for as long as one likes."""

from __future__ import annotations

import contextlib
import signal
import threading
from pathlib import Path
from typing import Any

import click

from trn.doors.listing import json_option, row_json, runs_dir_option, write_json
from trn.doors.targets import runs_folder
from trn.doors.text import clean_line
from trn.errors import StorageError
from trn.jobs import open_store
from trn.jobs.queue import is_served, waiting_rows, why_waiting
from trn.jobs.request import read_request
from trn.records import JobRow

__all__ = ["queue_command"]


@click.command(name="queue")
@click.argument("what", required=False, type=click.Choice(["serve"]), metavar="[serve]")
@runs_dir_option
@json_option
def queue_command(what: str | None, runs_dir: str | None, as_json: bool) -> None:
    """List the jobs that wait, in their order, and what each waits for.

    `trn queue serve` starts them as devices come free, until it is interrupted: for a service manager. Without it, a
    process that ends with the queue is started by whoever submits or ends a job.
    """
    folder = runs_folder(runs_dir)
    if what == "serve":
        _serve(folder)
        return
    with open_store(folder) as store:
        rows = waiting_rows(store)
    server = is_served(folder)
    jobs = _jobs(folder, rows, is_under_way=server is not None)
    if as_json:
        write_json({"served_by": _pid(server), "jobs": jobs})
        return
    if not jobs:
        click.echo(f"No job waits in {folder}.", err=True)
        return
    _write_table(jobs)
    if server is None:
        click.echo(
            "Nobody serves the queue: `trn queue serve` does, and so does the next job that is queued.", err=True
        )


def _serve(runs_dir: Path) -> None:
    from trn.doors.queue_server import serve  # brings all that starts a job

    is_over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: is_over.set())
    serve(runs_dir, until_empty=False, is_over=is_over, say=_say)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(clean_line(text), err=True)


def _jobs(runs_dir: Path, rows: list[JobRow], *, is_under_way: bool) -> list[dict[str, Any]]:
    reasons = why_waiting(runs_dir)
    jobs = []
    for place, row in enumerate(rows, 1):
        try:
            want = read_request(runs_dir, row.job_id).want
            wants, reason = str(want), reasons.get(row.job_id, "its turn" if is_under_way else "somebody to serve")
        except StorageError as error:
            wants, reason = None, str(error)
        jobs.append({"place": place, **row_json(row), "wants": wants, "waits_for": reason})
    return jobs


def _pid(note: str | None) -> int | None:
    """The process that serves, as its note says."""
    number = (note or "").removeprefix("pid=")
    return int(number) if number.isdecimal() else None


def _write_table(jobs: list[dict[str, Any]]) -> None:
    cells = [("", "RUN", "SUBMITTED (UTC)", "JOB", "WANTS", "WAITS FOR")]
    for job in jobs:
        submitted = job["submitted_at"][:19].replace("T", " ")
        cells.append(
            (str(job["place"]), job["run_id"], submitted, job["job_id"], job["wants"] or "?", job["waits_for"])
        )
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    for line in cells:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=False))
        click.echo(clean_line("  ".join([*padded, line[5]]).rstrip()))
