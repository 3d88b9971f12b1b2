"""The verb `completion`, and what the shell offers for a run, a file or a folder that is being typed.

A shell asks by starting `trn` with a variable set, for each press of the tab key: so this is light, reads names only,
and stays silent about whatever it cannot read.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from trn.doors.targets import runs_folder
from trn.errors import StorageError, UsageError
from trn.jobs import open_store

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["complete_file", "complete_folder", "complete_run", "completion_command"]

_VARIABLE = "_TRN_COMPLETE"
_MOST_NAMES = 200


def complete_run(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """The ids of the runs that begin with `incomplete`, the newest first; folders, once it is a path."""
    from click.shell_completion import CompletionItem  # only a shell that asks needs it

    if os.sep in incomplete:
        return complete_folder(ctx, param, incomplete)
    try:
        with open_store(runs_folder(ctx.params.get("runs_dir"))) as store:
            return [CompletionItem(run_id) for run_id in store.names_of_runs(incomplete, _MOST_NAMES)]
    except (OSError, StorageError, UsageError):
        return []


def complete_folder(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Whatever folders the shell finds."""
    from click.shell_completion import CompletionItem  # as above

    return [CompletionItem(incomplete, type="dir")]


def complete_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Whatever files the shell finds."""
    from click.shell_completion import CompletionItem  # as above

    return [CompletionItem(incomplete, type="file")]


@click.command(name="completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the script that lets a shell complete verbs, options and run ids.

    For bash, put `eval "$(trn completion bash)"` into ~/.bashrc; for zsh likewise, after compinit, into ~/.zshrc; for
    fish, `trn completion fish > ~/.config/fish/completions/trn.fish`.
    """
    from click.shell_completion import get_completion_class  # only this verb needs it

    kind = get_completion_class(shell)
    assert kind is not None, "click knows the three shells that the option allows"
    click.echo(kind(ctx.find_root().command, {}, "trn", _VARIABLE).source(), nl=False)
