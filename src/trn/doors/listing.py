"""The verb `list`, and what the other verbs about runs share with it: two options, and the newest jobs.

Its own module, since it imports the least of all verbs that read: a list of a hundred thousand jobs is to cost hardly
more than the start of the command line itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from trn.doors.completion import complete_folder, complete_run
from trn.doors.targets import runs_folder
from trn.doors.text import clean_line
from trn.errors import STATUS, UsageError
from trn.jobs import OPEN_STATES, UNREADABLE, Store, observe, open_store
from trn.records import JOB_STATES, JobRow, pretty_json

__all__ = [
    "json_option",
    "launcher_of",
    "list_command",
    "newest_jobs",
    "row_json",
    "runs_dir_option",
    "say_news",
    "write_json",
]

runs_dir_option = click.option(
    "--runs-dir",
    metavar="DIR",
    shell_complete=complete_folder,
    help="Where the runs are; else TRN_RUNS_DIR, else ./runs.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")


_GROUPS = {
    "open": OPEN_STATES,
    "ended": frozenset(JOB_STATES) - OPEN_STATES,
    "failed": frozenset({"rejected", "lost", *(word for word, status in STATUS.items() if status.exit != 0)}),
}
"""Words for several states."""

_UNSURE = frozenset({*OPEN_STATES, "lost"})
"""States of rows of which the disk may know better."""

_AGE = re.compile(r"(\d{1,6})([smhdw])")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def write_json(value: object) -> None:
    """The answer of a verb, on standard output."""
    click.echo(pretty_json(value), nl=False)


@click.command(name="list")
@click.option("--state", "states", metavar="STATE", multiple=True, help="Only in this state, or open, ended, failed.")
@click.option("--run", "run_id", metavar="ID", shell_complete=complete_run, help="Only the jobs of this run.")
@click.option("--since", metavar="WHEN", help="Only submitted since then: 2h, 3d, 2026-11-22, or a time; in UTC.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@click.option("--all", "is_all", is_flag=True, help="However many there are.")
@runs_dir_option
@json_option
def list_command(
    states: tuple[str, ...],
    run_id: str | None,
    since: str | None,
    limit: int,
    is_all: bool,
    runs_dir: str | None,
    as_json: bool,
) -> None:
    """List jobs and runs, the newest first.

    A run has one job for its start and one for each time it was resumed. Runs of which no job is known are listed
    too, without a job. --state may be given several times, or name several states with commas.
    """
    wanted, since = _states(states), _moment(since) if since else ""
    folder = runs_folder(runs_dir)
    with open_store(folder) as store:
        rows = newest_jobs(store, None if is_all else limit, wanted, run_id, since)
        say_news(store)
    if as_json:
        write_json([row_json(row) for row in rows])
    elif rows:
        _write_table(rows)
    elif wanted or run_id or since:
        click.echo(f"No job in {folder} is like that.", err=True)
    else:
        click.echo(f"There are no runs in {folder}.", err=True)


def say_news(store: Store) -> None:
    """Tell, once, of a store that was lost."""
    for line in store.news:
        click.echo(clean_line(f"trn: {line}"), err=True)


def newest_jobs(
    store: Store, limit: int | None, states: Collection[str] = (), run_id: str | None = None, since: str = ""
) -> list[JobRow]:
    """The newest jobs, and runs without a job, as the disk has them now; with `states`, those in one of these."""
    if run_id is not None:
        rows = [row for row in store.of_run(run_id) if row.submitted_at >= since]
        rows = rows or [row for row in store.runs_without_jobs() if row.run_id == run_id and row.submitted_at >= since]
    elif not states:
        rows = [*store.list(limit, since=since), *_without_jobs(store, limit, since)]
    else:
        sure = [state for state in states if state not in _UNSURE]
        rows = [*(store.list(limit, sure, since) if sure else ()), *store.list(None, _UNSURE, since)]
        rows += _without_jobs(store, None, since)
    rows.sort(key=lambda row: (row.submitted_at, row.job_id), reverse=True)
    found: list[JobRow] = []
    for row in rows:
        if limit is not None and len(found) == limit:
            break
        seen = observe(row, store.runs_dir)
        if not states or seen.state in states:
            found.append(seen)
    return found


def _without_jobs(store: Store, limit: int | None, since: str) -> list[JobRow]:
    return [row for row in store.runs_without_jobs(limit) if row.submitted_at >= since]


def _states(words: tuple[str, ...]) -> frozenset[str]:
    """The states that the words name. Raises UsageError."""
    states: set[str] = set()
    for word in (part.strip() for text in words for part in text.split(",")):
        if word not in _GROUPS and word not in JOB_STATES:
            raise UsageError(
                f"no state is called {word!r}.",
                where="--state",
                hint=f"Groups are {', '.join(_GROUPS)}; states are {', '.join(JOB_STATES)}.",
            )
        states |= _GROUPS.get(word, {word})
    return frozenset(states)


def _moment(text: str) -> str:
    """The moment that is meant, as job rows have it. Raises UsageError."""
    try:
        if age := _AGE.fullmatch(text):
            moment = datetime.now(UTC) - timedelta(seconds=int(age[1]) * _UNITS_S[age[2]])
        else:
            moment = datetime.fromisoformat(text)
            moment = moment.astimezone(UTC) if moment.tzinfo else moment
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"expected an age or a time, found {text!r}.",
            where="--since",
            hint="Say 90s, 30m, 2h, 3d or 1w, or a date or time in UTC: 2026-11-22, 2026-11-22T09:30.",
        ) from error
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def row_json(row: JobRow) -> dict[str, Any]:
    """A job as `--json` gives it: null for what is not known."""
    return {**row.to_json(), "job_id": row.job_id or None, "config_path": row.config_path or None}


def launcher_of(row: JobRow) -> str:
    """What started it, with the name it has there."""
    return f"{row.launcher} {row.engine_id}" if row.engine_id else row.launcher


def _write_table(rows: list[JobRow]) -> None:
    columns = {
        "RUN": [row.run_id for row in rows],
        "STATE": [row.state for row in rows],
        "EXIT": ["" if row.exit_code is None else str(row.exit_code) for row in rows],
        "SUBMITTED (UTC)": [row.submitted_at[:19].replace("T", " ") for row in rows],
        "DEVICES": [",".join(row.device_names()) for row in rows],
        "LAUNCHER": [launcher_of(row) if row.launcher != "local" else "" for row in rows],
        "JOB": [row.job_id or "-" for row in rows],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells) or name not in ("DEVICES", "LAUNCHER")}
    cells = [tuple(shown), *zip(*shown.values(), strict=True)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line, note in zip(cells, ["", *map(_note, rows)], strict=True):
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo(clean_line("  ".join([*padded, note]).rstrip()))


def _note(row: JobRow) -> str:
    """Why the state of a row may be an old one, "" where it was seen."""
    return row.reason if row.reason is not None and row.reason.startswith(UNREADABLE) else ""
