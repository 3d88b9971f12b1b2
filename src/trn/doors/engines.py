"""Jobs that an engine starts: the branch of `trn run` and `trn resume` that submits them.

    trn run --launcher slurm ──> script ──sbatch──> id ──> row: `queued`, with launcher and engine id
                                   └── later, elsewhere: trn run ... --auto-resume, which adopts that row

The engine is told the command line anew: what was given here is given there again, but for what the engine takes over.
What the options are: engine_options. What the job there is given: handed_on. What becomes of the job: at_engine. How
the door there finds its row: adopting.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trn.doors.engine_options import EngineOptions
from trn.doors.given import shown_argv
from trn.doors.handed_on import given_again, refuse_secrets, variables_for_slurm
from trn.doors.text import clean_line
from trn.errors import EngineError, PlanRefused, StorageError, TrnError, UsageError
from trn.jobs import job_log, open_store
from trn.jobs.log import JobLog, job_log_lines
from trn.records import JobRow, new_job_id, pretty_json, utc_now

if TYPE_CHECKING:
    from trn.launch.engine import Engine, Request

__all__ = ["Submission", "submit_to_engine"]


@dataclass(frozen=True)
class Submission:
    """A command that an engine is to start: what the door has found out before."""

    verb: str
    """`run` or `resume`, with what names the run, as it is to be started there."""
    named: Sequence[str]
    runs_dir: Path
    run_id: str
    config: str
    grace_s: float
    launcher: str
    options: EngineOptions
    continues: bool = False
    """Whether the run may be there already."""
    ddp: bool = True
    """Whether several processes may train together."""


def submit_to_engine(submission: Submission, *, dry_run: bool, as_json: bool) -> int:
    """Have the engine queue the job, or show what it would get; returns the exit status."""
    ctx = click.get_current_context()
    _check(submission, ctx)
    row = _new_row(submission)
    request = _request(submission, row, ctx)
    refuse_secrets(request.arguments, submission.options)
    engine = _configured(submission.launcher, submission.options)
    prepared = engine.prepare(request)
    if dry_run:
        answer = {"launcher": submission.launcher, "name": prepared.name, "text": prepared.text}
        click.echo(pretty_json(answer) if as_json else prepared.text, nl=False)
        return 0
    log = JobLog(job_log_lines(job_log(submission.runs_dir, row)))
    facts = {"run_id": row.run_id, "run_dir": row.run_dir, "config_path": row.config_path}
    # from then on the door there writes it
    log.write("job_submitted", **facts, devices=None, argv=shown_argv())
    try:
        row = replace(row, engine_id=engine.submit(prepared))
    except TrnError as error:
        log.write("job_rejected", run_id=row.run_id, exit_code=error.exit_status, reason=str(error))
        raise
    finally:
        log.close()
    _record(row, engine, submission.runs_dir)
    click.echo(f"trn: run {row.run_id} in {row.run_dir}", err=True)
    click.echo(f"trn: {row.launcher} has it as {row.engine_id}; `trn status {row.job_id}` says how it stands", err=True)
    click.echo(pretty_json(_answer(row)) if as_json else f"{row.job_id}\n", nl=False)
    return 0


def _check(submission: Submission, ctx: click.Context) -> None:
    given = ctx.params
    for name, hint in _NOT_HERE.items():
        value = given.get(name)
        if value or (value == 0 and value is not False):  # machine 0 is one, too
            raise UsageError(
                f"it does not go with --launcher {submission.launcher}.", where=f"--{name.replace('_', '-')}", hint=hint
            )
    if not submission.ddp and max(given.get("nnodes") or 1, given.get("nproc") or 1) > 1:
        raise UsageError(
            "expected `ddp: true` for several processes, found false.",
            where="ddp",
            hint="Set it in the spec, or --ddp.",
        )
    if not submission.continues and (submission.runs_dir / submission.run_id / "reports").exists():
        raise PlanRefused(
            f"the run {submission.run_id!r} exists already.",
            where=str(submission.runs_dir / submission.run_id),
            hint="Give --auto-resume to go on with it, or another --run-id.",
        )


_NOT_HERE = {
    "node_rank": "The engine numbers its machines.",
    "rdzv_endpoint": "The engine knows where they meet.",
    "checkpoint": "Whoever starts the job again would begin there again: go back here, or fork it with --resume-from.",
    "devices": "The engine gives out its devices; say how many with --device-count.",
}


def _request(submission: Submission, row: JobRow, ctx: click.Context) -> Request:
    from trn.launch.engine import Request

    given = ctx.params
    return Request(
        job_id=row.job_id,
        run_id=row.run_id,
        arguments=[
            submission.verb,
            *submission.named,
            "--runs-dir",
            str(submission.runs_dir),
            *given_again(ctx, _NOT_HERE),
        ],
        cwd=os.getcwd(),
        grace_s=submission.grace_s,
        max_restarts=given.get("max_restarts") or 0,
        nodes=given.get("nnodes") or 1,
        nproc=given.get("nproc"),
        cpus=given.get("cpus") or None,
        devices=given.get("device_count") or None,
        output=str(job_log(submission.runs_dir, row).with_suffix(f".{submission.launcher}.log")),
    )


def _new_row(submission: Submission) -> JobRow:
    return JobRow(
        job_id=new_job_id(),
        run_id=submission.run_id,
        run_dir=str(submission.runs_dir / submission.run_id),
        state="queued",
        config_path=submission.config,
        submitted_at=utc_now(),
        launcher=submission.launcher,
    )


def _record(row: JobRow, engine: Engine, runs_dir: Path) -> None:
    """Put the job into the store, where the door that the engine has started has not done so already."""
    with open_store(runs_dir) as store:
        try:
            store.add(row)
        except StorageError:
            with contextlib.suppress(StorageError):
                if store.get(row.job_id) is not None:
                    return
            # a job of which nobody here knows is not left behind
            assert row.engine_id is not None, "it was submitted"
            try:
                engine.cancel(row.engine_id)
            except EngineError as error:
                click.echo(clean_line(f"trn: {row.launcher} still has it as {row.engine_id}: {error}"), err=True)
            raise


def _answer(row: JobRow) -> dict[str, Any]:
    names = ("run_id", "job_id", "run_dir", "state", "launcher", "engine_id")
    return {name: getattr(row, name) for name in names}


# the engines, which are imported when they are asked: urllib alone costs more than the start of a verb


def _configured(launcher: str, options: EngineOptions) -> Engine:
    from trn.launch.engine import read_pairs

    if launcher == "slurm":
        from trn.launch.slurm import SlurmEngine

        if options.slurm_array and not click.get_current_context().params.get("max_restarts"):
            raise UsageError(
                "an array has a task for each restart.", where="--slurm-array", hint="Give --max-restarts."
            )
        pairs = read_pairs(options.slurm, "--slurm")
        return SlurmEngine(pairs, is_array=options.slurm_array, environ=variables_for_slurm(os.environ))
    if launcher == "ray":
        from trn.launch.ray import ADDRESS, RayEngine

        return RayEngine(options.ray_address or os.environ.get("RAY_API_SERVER_ADDRESS") or ADDRESS)
    from trn.launch.kubernetes import KEYS, KubernetesEngine

    return KubernetesEngine(
        options.image,
        read_pairs(options.kubernetes, "--kubernetes", KEYS),
        volumes=options.volume,
        secrets=_secret_pairs(options.secret),
    )


def _secret_pairs(given: Sequence[str]) -> dict[str, str]:
    """`NAME=SECRET/KEY` as a table; what is none goes on as an empty name, which is refused without being shown."""
    return {name if equals else "": place for name, equals, place in (one.partition("=") for one in given)}
