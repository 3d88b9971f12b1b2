"""The verbs that do something: `run`, `resume`, `verify`, `data`, `schema`. Each does it in a child program.

`run` and `resume` stay with their child and tell its ending; the others become it. Of the house's upper rooms only
the spec is read here, so that a mistake in it is told before anything is created.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import click

from trn.doors.completion import complete_file, complete_run
from trn.doors.foreground import Watch, run_in_foreground
from trn.doors.progress import display_for
from trn.doors.read import json_option, runs_dir_option
from trn.doors.summary import summary_lines
from trn.doors.targets import check_run_id, find, runs_folder
from trn.errors import UsageError
from trn.jobs import open_store, record_lost
from trn.jobs.ending import Ending
from trn.launch import InlineLauncher, Launcher, LocalLauncher, become
from trn.records import JobRow, new_job_id, new_run_id, pretty_json, utc_now

__all__ = ["data_command", "resume_command", "run_command", "schema_command", "verify_command"]

_LAUNCHERS: dict[str, type[Launcher]] = {"local": LocalLauncher, "inline": InlineLauncher}

_launcher_option = click.option(
    "--launcher",
    type=click.Choice(list(_LAUNCHERS)),
    default="local",
    show_default=True,
    help="A process of its own, or, for a debugger, this very process.",
)


_allow_change_option = click.option(
    "--allow-change",
    multiple=True,
    metavar="NAME",
    help="On resume, go on in spite of a change of max_steps, lr, threads, versions or code; repeatable.",
)


# run, resume


@click.command(name="run")
@click.option(
    "--config", required=True, metavar="FILE", shell_complete=complete_file, help="The spec: YAML, JSON or TOML."
)
@click.option("--run-id", metavar="ID", help="The name of the run; else the spec's, else one made from the time.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a field of the spec; repeatable.")
@click.option("--profile", metavar="NAME", help="Use this profile of the spec.")
@runs_dir_option
@click.option("--resume", is_flag=True, help="Continue the run, which must exist and fit the spec.")
@click.option("--auto-resume", is_flag=True, help="Continue the run if it exists, else start it.")
@click.option("--dry-run", is_flag=True, help="Print the plan as JSON and write nothing.")
@_allow_change_option
@_launcher_option
@json_option
def run_command(
    config: str,
    run_id: str | None,
    sets: tuple[str, ...],
    profile: str | None,
    runs_dir: str | None,
    resume: bool,
    auto_resume: bool,
    dry_run: bool,
    allow_change: tuple[str, ...],
    launcher: str,
    as_json: bool,
) -> int:
    """Train: start a run from a spec, or continue one, and stay with it until it ends.

    The exit status says how it ended; everything the run did lies in one folder, which is named at the end. Ctrl-C
    ends the run after the step, with a checkpoint; a second Ctrl-C ends it at once.
    """
    if resume + auto_resume + dry_run > 1:
        raise UsageError("--resume, --auto-resume and --dry-run exclude each other.", where="command line")
    from trn.spec import load_spec  # heavy: only for this verb

    spec = load_spec(Path(config), sets=sets, profile=profile).spec
    named = spec.run_id if run_id is None else run_id
    if named is None and (resume or auto_resume):
        raise UsageError(
            "there is no run id to look for.",
            where="--resume" if resume else "--auto-resume",
            hint="Give --run-id, or run_id in the spec.",
        )
    folder = runs_folder(runs_dir, spec.runs_dir)
    row = _new_job(folder, check_run_id(new_run_id() if named is None else named), config)
    options = [("--config", row.config_path), ("--run-id", row.run_id), ("--runs-dir", str(folder))]
    options += [("--set", one) for one in sets] + ([("--profile", profile)] if profile else [])
    options += [("--allow-change", name) for name in allow_change]
    flags = [name for name, on in (("--resume", resume), ("--auto-resume", auto_resume)) if on]
    argv = [*_runner(row), *(part for option in options for part in option), *flags]
    if dry_run:
        become([*argv, "--dry-run"])
    return _stay_with(row, folder, argv, launcher, as_json)


@click.command(name="resume")
@click.argument("run", metavar="ID|PATH", shell_complete=complete_run)
@runs_dir_option
@_allow_change_option
@_launcher_option
@json_option
def resume_command(run: str, runs_dir: str | None, allow_change: tuple[str, ...], launcher: str, as_json: bool) -> int:
    """Continue a run that was stopped, by its own plan, from its newest good checkpoint.

    The run is named by its id, by the id of one of its jobs, or by the path of its folder. A finished run is left as
    it is, and its outcome is told again.
    """
    target = find(run, runs_folder(runs_dir))
    if not target.run_dir.is_dir():
        raise UsageError(
            f"the job {run!r} was refused and left no run.", where=str(target.run_dir), hint="Start it with `trn run`."
        )
    row = _new_job(target.runs_dir, target.run_id, "")
    allowed = [part for name in allow_change for part in ("--allow-change", name)]
    return _stay_with(row, target.runs_dir, [*_runner(row), "--run-dir", row.run_dir, *allowed], launcher, as_json)


def _new_job(runs_dir: Path, run_id: str, config: str) -> JobRow:
    return JobRow(
        job_id=new_job_id(),
        run_id=run_id,
        run_dir=str(runs_dir / run_id),
        state="submitted",
        config_path=os.path.abspath(config) if config else "",
        submitted_at=utc_now(),
    )


def _runner(row: JobRow) -> list[str]:
    return [*_module("trn.runner"), "--job-id", row.job_id]


def _module(name: str) -> list[str]:
    # -u: what the trainer prints is seen when it is printed, and is not lost with a process that is killed
    # -P: a file in the current folder must not stand in for a module of the same name
    return [sys.executable, "-u", "-P", "-m", name]


def _stay_with(row: JobRow, runs_dir: Path, argv: list[str], launcher: str, as_json: bool) -> int:
    if launcher == "local":
        argv = [*argv, "--door-pid", str(os.getpid())]
    display = display_for(sys.stderr)
    with open_store(runs_dir) as store:
        record_lost(store)
        watch = Watch(store, row, display)
        watch.say(f"trn: run {row.run_id} in {row.run_dir}")
        ending = run_in_foreground(watch, _LAUNCHERS[launcher](), argv)
    for line in summary_lines(ending, watch):
        watch.say(line)
    if as_json:
        # the run's status is the answer, also to a script that has stopped reading
        with contextlib.suppress(OSError):
            click.echo(pretty_json(_document(ending, row)), nl=False)
    return ending.exit_code


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


# verbs that are another program's


@click.command(name="verify")
@click.argument("run", metavar="ID|PATH", shell_complete=complete_run)
@runs_dir_option
@json_option
def verify_command(run: str, runs_dir: str | None, as_json: bool) -> None:
    """Check that a run's folder is what its records say: every hash, every schema, the outcome against all."""
    target = find(run, runs_folder(runs_dir))
    become([*_module("trn.verify"), str(target.run_dir), *(["--json"] if as_json else [])])


@click.command(
    name="data", context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="text|index ...")
def data_command(arguments: tuple[str, ...]) -> None:
    """Make and index data sets: `trn data text --help`, `trn data index --help`."""
    become([*_module("trn.feed"), *(arguments or ("--help",))])


@click.command(name="schema")
@click.argument("name", default="spec", metavar="[NAME]")
def schema_command(name: str) -> None:
    """Print the JSON Schema of a spec, or of what a run writes: spec, event, metrics, outcome, job."""
    from trn.doors.schemas import schema_of  # reads the spec's models: heavy, only for this verb

    click.echo(pretty_json(schema_of(name)), nl=False)
