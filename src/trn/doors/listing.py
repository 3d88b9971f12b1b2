"""The verb `list`, and what the other verbs about runs share with it: two options, and the newest jobs.

Its own module, since it imports the least of all verbs that read: a list of a thousand jobs is to cost hardly more
than the start of the command line itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trn.doors.completion import complete_folder
from trn.doors.targets import runs_folder
from trn.doors.text import clean_line
from trn.jobs import UNREADABLE, observe, open_store, rows_of_folders
from trn.records import JobRow, pretty_json

__all__ = ["json_option", "list_command", "newest_jobs", "row_json", "runs_dir_option", "write_json"]

runs_dir_option = click.option(
    "--runs-dir",
    metavar="DIR",
    shell_complete=complete_folder,
    help="Where the runs are; else TRN_RUNS_DIR, else ./runs.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")


def write_json(value: object) -> None:
    """The answer of a verb, on standard output."""
    click.echo(pretty_json(value), nl=False)


@click.command(name="list")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@runs_dir_option
@json_option
def list_command(limit: int, runs_dir: str | None, as_json: bool) -> None:
    """List jobs and runs, the newest first.

    A run has one job for its start and one for each time it was resumed. Runs of which no job is known are listed
    too, without a job.
    """
    folder = runs_folder(runs_dir)
    rows = newest_jobs(folder, limit)
    if as_json:
        write_json([row_json(row) for row in rows])
    elif rows:
        _write_table(rows)
    else:
        click.echo(f"There are no runs in {folder}.", err=True)


def newest_jobs(runs_dir: Path, limit: int) -> list[JobRow]:
    """The newest jobs, and runs without a job, as the disk has them now."""
    with open_store(runs_dir) as store:
        rows = [*store.list(limit), *rows_of_folders(runs_dir, store.run_ids())]
    rows.sort(key=lambda row: row.submitted_at, reverse=True)
    return [observe(row, runs_dir) for row in rows[:limit]]


def row_json(row: JobRow) -> dict[str, Any]:
    """A job as `--json` gives it: null for what is not known."""
    return {**row.to_json(), "job_id": row.job_id or None, "config_path": row.config_path or None}


def _write_table(rows: list[JobRow]) -> None:
    cells = [("RUN", "STATE", "EXIT", "SUBMITTED (UTC)", "JOB")]
    for row in rows:
        submitted = row.submitted_at[:19].replace("T", " ")
        code = "" if row.exit_code is None else str(row.exit_code)
        cells.append((row.run_id, row.state, code, submitted, row.job_id or "-"))
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    for line, note in zip(cells, ["", *map(_note, rows)], strict=True):
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo(clean_line("  ".join([*padded, note]).rstrip()))


def _note(row: JobRow) -> str:
    """Why the state of a row may be an old one, "" where it was seen."""
    return row.reason if row.reason is not None and row.reason.startswith(UNREADABLE) else ""
