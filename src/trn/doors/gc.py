"""The verb `gc`: what the runs occupy, what of it may go, and, with `--yes`, its removal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from trn.doors.cleaning import Cleaner, Report
from trn.doors.completion import complete_run
from trn.doors.leftovers import KINDS, runs_in
from trn.doors.lines import size
from trn.doors.listing import json_option, runs_dir_option
from trn.doors.targets import find, runs_folder
from trn.doors.text import clean_line
from trn.errors import UsageError, exit_code
from trn.records import pretty_json

__all__ = ["gc_command"]

_DAY_S = 86_400.0


@click.command(name="gc")
@click.argument("runs", nargs=-1, metavar="[ID|PATH]...", shell_complete=complete_run)
@click.option("--yes", is_flag=True, help="Free it; without this nothing is changed.")
@click.option(
    "--older-than",
    type=click.IntRange(min=0),
    metavar="DAYS",
    help="Leave alone what was changed in the last so many days: of a run, any of its files.",
)
@runs_dir_option
@json_option
def gc_command(runs: tuple[str, ...], yes: bool, older_than: int | None, runs_dir: str | None, as_json: bool) -> int:
    """Show what the runs occupy, and free what nobody needs any more.

    Of the runs that are named, or of all of them and what lies beside them: what crashes and resumes left behind, and
    checkpoints of finished runs but for the newest two and the best. A run that somebody works on is never touched, nor
    is anything that trn did not make.
    """
    folder = runs_folder(runs_dir)
    named = _named(runs, folder)
    until = None if older_than is None else time.time() - older_than * _DAY_S
    cleaner = Cleaner(is_sure=yes, until=until)
    reports = [cleaner.run(run_dir) for run_dir in named or runs_in(folder)]
    beside = Report(folder) if named else cleaner.beside(folder)
    if as_json:
        click.echo(pretty_json(_document(folder, reports, beside, yes)), nl=False)
    else:
        for line in _lines(folder, reports, beside, yes):
            click.echo(clean_line(line))
    for problem in cleaner.problems:
        click.echo(clean_line(problem), err=True)
    return exit_code("io_error") if cleaner.problems else 0


def _named(runs: Sequence[str], runs_dir: Path) -> list[Path]:
    """The folders of the runs that are named, each once. Raises UsageError for one that is not there."""
    targets = [find(run, runs_dir) for run in runs]
    for run, target in zip(runs, targets, strict=True):
        if not target.run_dir.is_dir():
            raise UsageError(f"the job {run!r} was refused and left no run.", where=str(target.run_dir))
    return list(dict.fromkeys(target.run_dir for target in targets))


def _document(runs_dir: Path, reports: list[Report], beside: Report, is_sure: bool) -> dict[str, Any]:
    everything = [*reports, beside]
    return {
        "runs_dir": str(runs_dir),
        "changed": is_sure,
        "size_bytes": sum(report.size_bytes for report in reports),
        "freeable_bytes": sum(report.total_bytes(removed=False) for report in everything),
        "freed_bytes": sum(report.total_bytes(removed=True) for report in everything),
        "runs": [report.to_json() for report in reports],
        "beside": [vars(row) for row in beside.rows],
    }


def _lines(runs_dir: Path, reports: list[Report], beside: Report, is_sure: bool) -> Iterator[str]:
    if reports:
        yield from _table(reports, is_sure)
        yield ""
    for report in (*reports, beside):
        for row in report.rows:
            left = " (still there)" if is_sure and not row.removed else ""
            yield f"{size(row.size_bytes):>11}  {' '.join(row.paths)}: {KINDS[row.kind]}{left}"
        if report.kept:
            yield f"{'':>11}  {report.run_id} stays as it is: {report.kept}"
    document = _document(runs_dir, reports, beside, is_sure)
    total, freed, left = (size(document[key]) for key in ("size_bytes", "freed_bytes", "freeable_bytes"))
    answer = f"{freed} were freed." if is_sure else f"{left} can be freed; nothing was changed, --yes frees it."
    yield f"The {len(reports)} runs in {runs_dir} {'occupied' if is_sure else 'occupy'} {total}: {answer}"


def _table(reports: list[Report], is_sure: bool) -> Iterator[str]:
    """The runs, the largest first."""
    width = max(len("RUN"), *(len(report.run_id) for report in reports))
    before, amount_of = ("OCCUPIED", "FREED") if is_sure else ("OCCUPIES", "CAN GO")
    yield f"{'RUN':<{width}}  {'STATE':<22}{before:>11}{amount_of:>11}"
    for report in sorted(reports, key=lambda one: one.size_bytes, reverse=True):
        amount = report.total_bytes(removed=is_sure)
        yield f"{report.run_id:<{width}}  {report.state:<22}{size(report.size_bytes):>11}{size(amount):>11}"
