"""The verbs that train: `run` and `resume`. Here a command line becomes what is to be started, or is refused.

Both stay with their child and tell its ending (staying), or leave that to a keeper, the queue (submitting) or an engine
(engines). Of the house's upper rooms only the spec is read here, so that a mistake in it is told before anything is
created.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trn.devices import Want
from trn.doors.at_engine import ENGINES
from trn.doors.beginning import Beginning, fork_options, is_checkpoint, read_beginning
from trn.doors.completion import complete_file, complete_run
from trn.doors.device_options import AskedDevices, Choice, choose, device_options, want_of
from trn.doors.engine_options import EngineOptions, engine_options
from trn.doors.engines import Submission, submit_to_engine
from trn.doors.flags import WithKnobs, given_knobs, knob_options
from trn.doors.listing import json_option, runs_dir_option
from trn.doors.processes import Asked, Processes, process_options, read_processes
from trn.doors.staying import Start, stay_with
from trn.doors.storable import without_secrets
from trn.doors.submitting import asked_to_submit, submit, submit_options
from trn.doors.targets import Target, check_run_id, find, runs_folder
from trn.doors.versions import choose_version, claim_version
from trn.errors import SpecError, UsageError
from trn.records import JsonError, canonical_json, new_run_id, read_json

if TYPE_CHECKING:
    from trn.spec import Spec

__all__ = ["resume_command", "run_command"]

_launcher_option = click.option(
    "--launcher",
    type=click.Choice(["local", "inline", "torchrun", *ENGINES]),
    default="local",
    show_default=True,
    help="Processes of their own; inline: for a debugger, this very process; else an engine that starts it elsewhere.",
)


_allow_change_option = click.option(
    "--allow-change",
    multiple=True,
    metavar="NAME",
    help="On resume, go on in spite of a change of max_steps, lr, threads, ranks, versions, code, gates or guard; "
    "repeatable.",
)

_checkpoint_option = click.option(
    "--checkpoint",
    metavar="NAME",
    help="Go on from this checkpoint and no other: last, best, a step, or the path of its file.",
)

_verbose_option = click.option(
    "--verbose", is_flag=True, help="Show what all libraries log, from INFO on, of every rank; as TRN_VERBOSE=1 does."
)


# run, resume


@click.command(name="run", cls=WithKnobs)
@click.option(
    "--config", required=True, metavar="FILE", shell_complete=complete_file, help="The spec: YAML, JSON or TOML."
)
@click.option("--run-id", metavar="ID", help="The name of the run; else the spec's, else one made from the time.")
@click.option(
    "--add-version", is_flag=True, help="Begin a version of its own of the run: ID-v0-TIME, ID-v1-TIME and so on."
)
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a field of the spec; repeatable.")
@click.option("--profile", metavar="NAME", help="Use this profile of the spec.")
@runs_dir_option
@click.option("--resume", is_flag=True, help="Continue the run, which must exist and fit the spec.")
@click.option("--auto-resume", is_flag=True, help="Continue the run if it exists, else start it.")
@_checkpoint_option
@click.option(
    "--resume-from",
    metavar="NAME|RUN|PATH",
    help="A checkpoint's name: --resume with --checkpoint. Another run, or a checkpoint in it: begin there, as a fork.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and what it will take, and write nothing.")
@knob_options
@_allow_change_option
@process_options
@device_options
@submit_options
@_verbose_option
@_launcher_option
@engine_options
@json_option
def run_command(
    config: str,
    run_id: str | None,
    add_version: bool,
    sets: tuple[str, ...],
    profile: str | None,
    runs_dir: str | None,
    resume: bool,
    auto_resume: bool,
    checkpoint: str | None,
    resume_from: str | None,
    dry_run: bool,
    allow_change: tuple[str, ...],
    verbose: bool,
    launcher: str,
    as_json: bool,
    **given: Any,
) -> int:
    """Train: start a run from a spec, or continue one, and stay with it until it ends.

    The exit status says how it ended; everything the run did lies in one folder, which is named at the end. Ctrl-C
    ends the run after the step, with a checkpoint; a second Ctrl-C ends it at once.
    """
    _show_logs(verbose)
    how = asked_to_submit(given, launcher=launcher, dry_run=dry_run)
    at_engine = EngineOptions.of(given, launcher)
    asked, devices = Asked.of(given), AskedDevices.of(given)
    _refuse_contradictions(
        resume, auto_resume, dry_run=dry_run, add_version=add_version, has_begin=bool(checkpoint or resume_from)
    )
    spec, knobs = _read_spec(config, sets, profile, given, devices, run_id=run_id, add_version=add_version)
    folder, named = runs_folder(runs_dir, spec.runs_dir), spec.run_id
    run_id = check_run_id(new_run_id() if named is None else named)
    is_version = False
    if spec.add_version:
        continues = resume or auto_resume or is_checkpoint(resume_from)
        run_id, is_version = choose_version(folder, run_id, continues=continues)
    begin = read_beginning(resume_from, checkpoint, run_dir=folder / run_id, resume=resume, auto_resume=auto_resume)
    continues = begin.resume or auto_resume
    if named is None and continues:
        raise UsageError(
            "there is no run id to look for.",
            where="--auto-resume" if auto_resume else "--resume",
            hint="Give --run-id, or run_id in the spec.",
        )
    if launcher in ENGINES:
        _refuse_at_engine(begin, checkpoint)
        if is_version and named is not None and not dry_run:
            run_id = claim_version(folder, named)
        words = ["--config", os.path.abspath(config), "--run-id", run_id, "--resume" if resume else "--auto-resume"]
        words += ["--set", "add_version=false"] if spec.add_version else []
        grace_s = spec.limits.grace_seconds
        submission = Submission(
            "run", words, folder, run_id, words[1], grace_s, launcher, at_engine, continues, spec.ddp
        )
        return submit_to_engine(submission, dry_run=dry_run, as_json=as_json)
    choice, processes = _choose(
        devices, asked, spec.device, spec.ddp, _plan_of(folder / run_id) if continues else {}, launcher, continues
    )
    if is_version and named is not None and not (dry_run or processes.is_follower):
        run_id = claim_version(folder, named)
    options = [("--config", os.path.abspath(config)), ("--run-id", run_id), ("--runs-dir", str(folder))]
    options += [("--set", one) for one in sets] + ([("--profile", profile)] if profile else [])
    flags_of_choice = [] if devices.cpu_only else choice.flags
    options += [("--flag", canonical_json(list(flag)).decode()) for flag in [*knobs, *flags_of_choice]]
    options += [("--allow-change", name) for name in allow_change] + begin.options
    flags = [name for name, on in (("--resume", begin.resume), ("--auto-resume", auto_resume)) if on]
    arguments = [*(part for option in options for part in option), *flags]
    want = Want() if dry_run else want_of(choice, processes, os.environ)
    start = Start(folder, run_id, arguments, processes, config, spec.limits.grace_seconds, allow_change, want)
    if how:
        return submit(start, how, as_json)
    return start.foretell() if dry_run else stay_with(start, launcher, as_json)


def _refuse_contradictions(
    resume: bool, auto_resume: bool, *, dry_run: bool, add_version: bool, has_begin: bool
) -> None:
    if resume + auto_resume + dry_run > 1:
        raise UsageError("--resume, --auto-resume and --dry-run exclude each other.", where="command line")
    if add_version and resume:
        raise UsageError(
            "it begins a new version, and --resume goes on with one that is there.",
            where="--add-version",
            hint="Leave one of them out; --auto-resume goes on with the newest version, or begins the first.",
        )
    if dry_run and has_begin:
        raise UsageError("it plans a new run, and takes no checkpoint.", where="--dry-run")


def _refuse_at_engine(begin: Beginning, checkpoint: str | None) -> None:
    if begin.resume and begin.checkpoint:
        raise UsageError(
            "whoever starts the job again would begin there again.",
            where="--resume-from" if checkpoint is None else "--checkpoint",
            hint="Go back here, or fork the run into another.",
        )


def _read_spec(
    config: str,
    sets: Sequence[str],
    profile: str | None,
    given: dict[str, Any],
    devices: AskedDevices,
    *,
    run_id: str | None,
    add_version: bool,
) -> tuple[Spec, list[tuple[str, str, object]]]:
    """The spec as the command line has it; name, key and value of each flag, for the runner to read it once more."""
    from trn.spec import Flag, load_spec, read_number  # heavy: only for this verb

    knobs = [
        Flag(knob.name, knob.key, read_number(value) if knob.is_number and isinstance(value, str) else value)
        for knob, value in given_knobs(given)
    ]
    knobs += [Flag(*flag) for flag in devices.flags]
    own = [] if run_id is None else [Flag("--run-id", "run_id", check_run_id(run_id))]
    own += [Flag("--add-version", "add_version", True)] if add_version else []
    try:
        loaded = load_spec(Path(config), sets=sets, flags=[*knobs, *own], profile=profile, defaults=devices.defaults)
    except SpecError as error:
        raise without_secrets(error) from error
    return loaded.spec, [(knob.name, knob.key, knob.value) for knob in knobs]


def _choose(
    devices: AskedDevices,
    asked: Asked,
    device: str,
    ddp: bool,
    plan: dict[str, Any],
    launcher: str,
    is_resume: bool,
) -> tuple[Choice, Processes]:
    """Which devices, and how many processes on them; `plan` is that of a run that is there."""
    choice = choose(devices, device=device, ddp=ddp, nproc=asked.nproc, machines=asked.machines, is_resume=is_resume)
    asked = replace(asked, nproc=choice.nproc)
    processes = read_processes(
        asked, ddp=ddp, device=device, before=_size_of(plan), launcher=launcher, environ=os.environ
    )
    return choice, processes


@click.command(name="resume")
@click.argument("run", metavar="ID|PATH", shell_complete=complete_run)
@_checkpoint_option
@click.option("--run-id", metavar="NEW", help="Fork: leave the run as it is, and go on in a new one of this name.")
@runs_dir_option
@_allow_change_option
@process_options
@device_options
@submit_options
@_verbose_option
@_launcher_option
@engine_options
@json_option
def resume_command(
    run: str,
    checkpoint: str | None,
    run_id: str | None,
    runs_dir: str | None,
    allow_change: tuple[str, ...],
    verbose: bool,
    launcher: str,
    as_json: bool,
    **given: Any,
) -> int:
    """Continue a run that was stopped, by its own plan, from its newest good checkpoint.

    The run is named by its id, by the id of one of its jobs, or by the path of its folder. A finished run is left as
    it is, and its outcome is told again, unless --checkpoint names an older checkpoint: it then trains on from there.
    With --run-id the run itself stays as it is, and a new one goes on in its place, beside it or in --runs-dir.
    """
    _show_logs(verbose)
    how = asked_to_submit(given, launcher=launcher)
    at_engine = EngineOptions.of(given, launcher)
    target = find(run, runs_folder(runs_dir))
    if not target.run_dir.is_dir():
        raise UsageError(
            f"the job {run!r} was refused and left no run.", where=str(target.run_dir), hint="Start it with `trn run`."
        )
    plan = _plan_of(target.run_dir)
    if launcher in ENGINES:
        return _resume_at_engine(target, plan, launcher, at_engine, run_id, as_json)
    asked, devices = Asked.of(given), AskedDevices.of(given)
    device, ddp = str(plan.get("device")), plan.get("ddp") is True
    choice, processes = _choose(devices, asked, device, ddp, plan, launcher, True)
    options = [part for name in allow_change for part in ("--allow-change", name)]
    options += [] if checkpoint is None else ["--checkpoint", checkpoint]
    folder, own_id = target.runs_dir, target.run_id
    if run_id is None:
        options = ["--run-dir", str(target.run_dir), *options]
    else:
        folder, own_id = target.runs_dir if runs_dir is None else runs_folder(runs_dir), check_run_id(run_id)
        options += fork_options(target, run_id, folder)
    want = want_of(choice, processes, os.environ)
    start = Start(folder, own_id, options, processes, "", _grace_of(plan), allow_change, want)
    return submit(start, how, as_json) if how else stay_with(start, launcher, as_json)


def _resume_at_engine(
    target: Target, plan: dict[str, Any], launcher: str, options: EngineOptions, fork: str | None, as_json: bool
) -> int:
    if fork is not None:
        raise UsageError(
            "whoever starts the job again would fork it again.",
            where="--run-id",
            hint="Give `trn run --resume-from RUN` with a spec; the same job is then continued.",
        )
    words, is_ddp = [str(target.run_dir)], plan.get("ddp") is True
    submission = Submission(
        "resume", words, target.runs_dir, target.run_id, "", _grace_of(plan), launcher, options, True, is_ddp
    )
    return submit_to_engine(submission, dry_run=False, as_json=as_json)


def _grace_of(plan: dict[str, Any]) -> float:
    grace_s = plan.get("grace_s")
    return grace_s if isinstance(grace_s, float) else 30.0


def _show_logs(verbose: bool) -> None:
    """By the environment, so that every process of this job hears it, whoever starts it."""
    if verbose:
        os.environ["TRN_VERBOSE"] = "1"


def _plan_of(run_dir: Path) -> dict[str, Any]:
    """What the run's plan says, as far as it can be read; the runner refuses one that is damaged."""
    try:
        return read_json(run_dir / "reports" / "resolved_config.json")
    except (JsonError, OSError):
        return {}


def _size_of(plan: dict[str, Any]) -> int | None:
    """How many processes the plan is for."""
    size = plan.get("world_size")
    return size if isinstance(size, int) and size > 0 else None
