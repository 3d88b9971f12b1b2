"""The verbs that only hand on: `verify` and `data` become another program, and `schema` prints what others check by."""

from __future__ import annotations

import click

from trn.doors.apart import module
from trn.doors.completion import complete_run
from trn.doors.data import program_of
from trn.doors.listing import json_option, runs_dir_option
from trn.doors.targets import find, runs_folder
from trn.launch import become
from trn.records import pretty_json

__all__ = ["data_command", "schema_command", "verify_command"]


@click.command(name="verify")
@click.argument("run", metavar="ID|PATH", shell_complete=complete_run)
@runs_dir_option
@json_option
def verify_command(run: str, runs_dir: str | None, as_json: bool) -> None:
    """Check that a run's folder is what its records say: every hash, every schema, the outcome against all."""
    target = find(run, runs_folder(runs_dir))
    become([*module("trn.verify"), str(target.run_dir), *(["--json"] if as_json else [])])


@click.command(
    name="data", context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="inspect|validate|cache|index|text|pack ...")
def data_command(arguments: tuple[str, ...]) -> None:
    """Look at data sets and make them: inspect, validate, cache, index, text, pack; each takes `--help`."""
    become([*module(program_of(arguments)), *(arguments or ("--help",))])


@click.command(name="schema")
@click.argument("name", default="spec", metavar="[NAME]")
def schema_command(name: str) -> None:
    """Print the JSON Schema of a spec, or of a record that a run writes.

    NAME is spec, plan, event, job_log, metrics, validation, heartbeat, outcome, checkpoint, epoch, run_meta,
    run_metadata, runtime_env, forked_from, evaluation, export, parity, dataset, job or contract.
    """
    from trn.doors.schemas import schema_of  # reads the spec's models: heavy, only for this verb

    click.echo(pretty_json(schema_of(name)), nl=False)
