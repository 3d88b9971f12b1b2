"""What an engine's job is given of this command line and this environment, and that no secret is among it.

An engine stores its scripts, and Slurm the variables, too: what may be a secret is refused, or left out and named.
Not here: what the options are (engine_options), and who takes them (engines).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import click

from trn.doors.engine_options import EngineOptions
from trn.errors import UsageError

__all__ = ["given_again", "refuse_secrets", "variables_for_slurm"]

_TAKEN_OVER = frozenset(
    {
        *("config", "run", "run_id", "runs_dir", "add_version", "resume", "auto_resume", "launcher", "as_json"),
        *("dry_run", "detach", "queue", "nproc", "nnodes", "max_restarts", "cpus", "run_contract"),
        *EngineOptions.__dataclass_fields__,
    }
)
"""Parameters that are given to the door there by other words, or that are the engine's."""


def given_again(ctx: click.Context, without: Collection[str]) -> list[str]:
    """The options of this command line but those `without`, in the words of another one."""
    words = []
    for option in ctx.command.params:
        if not isinstance(option, click.Option) or option.name is None or option.name in {*_TAKEN_OVER, *without}:
            continue
        source = ctx.get_parameter_source(option.name)
        value = ctx.params.get(option.name)
        if source is not click.core.ParameterSource.COMMANDLINE or value is None:
            continue
        if option.is_flag and isinstance(value, bool):
            words += option.opts[:1] if value else option.secondary_opts[:1]
        else:
            words += [f"{option.opts[0]}={one}" for one in (value if option.multiple else [value])]
    return words


def refuse_secrets(arguments: Sequence[str], options: EngineOptions) -> None:
    """What may be a secret is not written into a script. Raises UsageError."""
    from trn.provenance.redact import redact  # heavy: only to submit

    words = [*arguments, *options.words()]
    for given, shown in zip(words, redact.argv(words), strict=True):
        if given != shown:
            raise UsageError(
                f"{shown} holds what may be a secret, and the engine stores the command line.",
                where="command line",
                hint="Name a file or a variable that holds it.",
            )


def variables_for_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for a job of Slurm, which keeps them on its disk: without secrets, and what is of another job."""
    from trn.provenance.redact import redact  # heavy: only to submit
    from trn.provenance.secret_names import is_secret_name

    kept, left_out = {}, []
    for name, value in environ.items():
        if is_secret_name(name) or redact.value(value) != value:
            left_out.append(name)
        elif name in _OWN_OF_SLURM or not name.startswith(_OF_ANOTHER_JOB):
            kept[name] = value
    if left_out:
        click.echo(f"trn: not handed to Slurm, since they may be secrets: {', '.join(sorted(left_out))}", err=True)
    return kept


_OF_ANOTHER_JOB = ("SLURM_", "TRN_LEASE_", "TRN_JOB_ID", "TRN_ENGINE_ID", "TRN_LAUNCHER")
_OWN_OF_SLURM = frozenset({"SLURM_CONF", "SLURM_CLUSTERS"})
