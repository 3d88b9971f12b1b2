"""The verbs that work on a checkpoint of a run, at any time: `export` and `eval`. Each becomes its own program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from trn.doors.apart import module
from trn.doors.completion import complete_file, complete_folder, complete_run
from trn.doors.listing import json_option, runs_dir_option
from trn.doors.targets import find, runs_folder
from trn.errors import UsageError
from trn.launch import become

__all__ = ["eval_command", "export_command"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _reopening(command: _Command) -> _Command:
    """The options that say which checkpoint of which run, built how."""
    for option in (
        click.option(
            "--allow-change", multiple=True, metavar="NAME", help="code: go on with other code of the trainer."
        ),
        click.option(
            "--code",
            metavar="DIR",
            shell_complete=complete_folder,
            help="Import the trainer from this folder; else from what is installed, the spec's folder or this one.",
        ),
        click.option("--device", metavar="NAME", help="Where the model is built; else where the run was trained."),
        click.option(
            "--checkpoint",
            metavar="NAME",
            help="best (the default; without a best: last), last, a step, or the path of its file.",
        ),
        runs_dir_option,
        click.argument("run", metavar="ID|PATH", shell_complete=complete_run),
    ):
        command = option(command)
    return command


@click.command(name="export")
@_reopening
@click.option(
    "--format",
    "formats",
    type=click.Choice(["onnx", "safetensors", "hf"]),
    multiple=True,
    help="onnx if not said; repeatable.",
)
@click.option("--opset", type=click.IntRange(min=1), metavar="N", help="Of ONNX; else the plan's.")
@click.option(
    "--parity-policy", type=click.Choice(["fail", "warn"]), help="What a failed comparison does; else the plan's."
)
@click.option("--atol", type=float, metavar="X", help="The largest absolute difference; else by the model itself.")
@json_option
def export_command(run: str, runs_dir: str | None, as_json: bool, formats: tuple[str, ...], **given: Any) -> None:
    """Export a checkpoint of a run into its folder exports/, and compare what was written with PyTorch.

    Works from the run's folder alone, also while the run is training and where the folder was copied to.
    """
    lists = {"--format": formats, "--allow-change": given.pop("allow_change")}
    _become("trn.export", run, runs_dir, as_json, given, lists)


@click.command(name="eval")
@_reopening
@click.option(
    "--data",
    "data",
    multiple=True,
    metavar="DATA",
    shell_complete=complete_file,
    help="Parquet files, a folder, a glob, a manifest, or a spec; else the run's validation data; repeatable.",
)
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="Rows a batch; else as planned.")
@click.option("--max-batches", type=click.IntRange(min=0), metavar="N", help="At most so many; 0: all.")
@json_option
def eval_command(run: str, runs_dir: str | None, as_json: bool, data: tuple[str, ...], **given: Any) -> None:
    """Evaluate a checkpoint of a run: on its validation data these are the run's own numbers, to the bit.

    Prints a metric a line and keeps a record in reports/evaluations/. Works from the run's folder alone, also while the
    run is training and where the folder was copied to.
    """
    lists = {"--data": data, "--allow-change": given.pop("allow_change")}
    _become("trn.evaluate", run, runs_dir, as_json, given, lists)


def _become(
    program: str,
    run: str,
    runs_dir: str | None,
    as_json: bool,
    given: dict[str, Any],
    lists: dict[str, tuple[str, ...]],
) -> None:
    """Find the run, then be the program that does it. `--name=value`: a value may begin with a dash."""
    target = find(run, runs_folder(runs_dir))
    if not target.run_dir.is_dir():
        raise UsageError(f"the job {run!r} was refused and left no run.", where=str(target.run_dir))
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    words += [f"{name}={value}" for name, values in lists.items() for value in values]
    # with the variables of a runner: what depends on the order of a set comes out as it did there
    become([*module(program), str(target.run_dir), *words, *(["--json"] if as_json else [])], {})
