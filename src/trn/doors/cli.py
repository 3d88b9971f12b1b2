"""The `trn` command: its verbs by name, and the one place where an error becomes a line and an exit status.

A verb is a name, a module and a sentence in a table; its module is imported when it is called, so that `trn --help`
and the reading verbs start almost as fast as the interpreter. This is the only dynamic import of the house besides
the loading of trainers.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

# Nothing of what is imported is garbage, and the collector would walk over it again and again, at exit too: a tenth of
# what `trn list` costs. `_keep` lets it loose for the verb itself.
gc.disable()
atexit.register(gc.freeze)

import click  # noqa: E402 - its modules are the most of what is imported

from trn.errors import TrnError  # noqa: E402 - after the above

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["main", "trn"]

_VERBS = {
    "run": ("trn.doors.work", "Train: start a run from a spec, or continue one, and stay with it."),
    "resume": ("trn.doors.work", "Continue a run that was stopped, from its newest good checkpoint."),
    "status": ("trn.doors.read", "Show how one run stands; without a name, the newest."),
    "list": ("trn.doors.listing", "List jobs and runs, the newest first."),
    "logs": ("trn.doors.read", "Show what happened in a run, and what its trainer printed."),
    "cancel": ("trn.doors.cancel", "End a run that waits or runs, with a checkpoint."),
    "queue": ("trn.doors.queue", "List the jobs that wait and what for, or serve the queue."),
    "relay": ("trn.doors.relaying", "Send the events and metrics of a run to Redis, a web hook, a file ..."),
    "devices": ("trn.doors.devices", "Show what there is to compute on, what it is doing, and who holds it."),
    "export": ("trn.doors.exporting", "Export a checkpoint of a run, and compare it with PyTorch."),
    "eval": ("trn.doors.exporting", "Evaluate a checkpoint of a run, on its validation data or on others."),
    "verify": ("trn.doors.programs", "Check that a run's folder is what its records say."),
    "worker": ("trn.worker.command", "Do one job of a platform, as the environment says."),
    "data": ("trn.doors.programs", "Make and index data sets: `trn data text`, `trn data index`."),
    "schema": ("trn.doors.programs", "Print the JSON Schema of a spec, or of a file that a run writes."),
    "init": ("trn.doors.init", "Write a trainer and a spec to start from."),
    "doctor": ("trn.doors.doctor", "Say what this machine and this installation can do, and what is wrong."),
    "gc": ("trn.doors.gc", "Show what the runs occupy, and free what nobody needs any more."),
    "completion": ("trn.doors.completion", "Print the script that lets bash, zsh or fish complete `trn`."),
}

_INTERRUPTED = 130
_BROKEN_PIPE = 141


class _Verbs(click.Group):
    """A group whose commands are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command = getattr(_load(_VERBS[cmd_name][0]), f"{cmd_name}_command")
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _VERBS and not args[0].startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"no such verb: {args[0]!r}. The verbs are {', '.join(_VERBS)}.")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        from click.shell_completion import CompletionItem  # only a shell that asks needs it

        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(name, help=said) for name, (_, said) in _VERBS.items() if name.startswith(incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in _VERBS.items()])


def _load(name: str) -> ModuleType:
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        _keep()


def _keep() -> None:
    """Let the collector go on, with what is there now out of its reach."""
    gc.freeze()
    gc.enable()


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import version  # reads the installed metadata: only when asked for

    click.echo(f"trn {version('trn-runtime')}")
    ctx.exit()


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="VERB ...",
    no_args_is_help=True,
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def trn() -> None:
    """Train PyTorch models in runs that can be trusted: killed anywhere, finished bit for bit.

    `trn VERB --help` says more about each verb.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit status. A user's mistake is one line on stderr, never a traceback."""
    try:
        status = _run(arguments)
        if sys.stdout is not None:  # closed by the caller
            sys.stdout.flush()
        return status
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except TrnError as error:
        return _say(str(error), error.exit_status)
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except BrokenPipeError:
        return _abandon_stdout()
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        return _say(f"storage error [io_error]{where}: {error.strerror or error}.", 74)
    except UnicodeEncodeError as error:
        return _say(f"usage error [usage]: {error.object!r} is not UTF-8 text. Rename it.", 2)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = trn.main(args=None if arguments is None else list(arguments), prog_name="trn", standalone_mode=False)
    except SystemExit as answer:  # click's own: to a shell that asks for completions, or to a broken pipe
        return 0 if answer.code == 0 else _abandon_stdout()
    return result if isinstance(result, int) else 0


def _abandon_stdout() -> int:
    """Whoever read our output has gone; the interpreter must not try to flush into the pipe once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return _BROKEN_PIPE


def _say(text: str, status: int) -> int:
    from trn.doors.text import clean  # only an error needs it

    with contextlib.suppress(OSError):
        click.echo(clean(text), err=True)
    return status


_keep()

if __name__ == "__main__":
    sys.exit(main())
