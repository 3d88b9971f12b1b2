"""The verbs that read a run: `status` and `logs`. They create nothing, ask no process, and start quickly.

What they print is the answer, so it goes to standard output: words for people, or JSON with `--json`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from trn.doors.alive import alive_line, last_beats
from trn.doors.at_engine import AtEngine, at_engine
from trn.doors.completion import complete_run
from trn.doors.follow import parsed
from trn.doors.lines import attempt_line, outcome_line, standing_line, value_line, waiting_line
from trn.doors.listing import json_option, launcher_of, newest_jobs, row_json, runs_dir_option, write_json
from trn.doors.standing import STEPS_LOOKED_AT, Standing, after_event, after_metrics, data_wait, eta_s
from trn.doors.stream import Stream, events_of
from trn.doors.targets import Target, find, runs_folder
from trn.doors.text import clean_line
from trn.errors import UsageError
from trn.files import last_lines
from trn.jobs import OPEN_STATES, Store, job_log, observe, open_store, outcome_of, row_of_folder
from trn.jobs.queue import why_waiting
from trn.records import JobRow, JsonError, read_json
from trn.sinks.position import standing_words, standings

__all__ = ["logs_command", "status_command"]

_LOOK_EVERY_S = 0.25
_ATTEMPTS_SHOWN = 10


# status


@click.command(name="status")
@click.argument("run", required=False, metavar="[ID|PATH]", shell_complete=complete_run)
@runs_dir_option
@json_option
def status_command(run: str | None, runs_dir: str | None, as_json: bool) -> None:
    """Show how one run stands: the run of this id, with this job, or in this folder; without a name, the newest."""
    target = find(run, runs_folder(runs_dir)) if run else _newest(runs_folder(runs_dir))
    report, standing, job = _report_on(target)
    if as_json:
        write_json(report)
        return
    for name, value in _report_lines(target, report, standing, job):
        click.echo(f"{name:<11}{clean_line(value)}")


def _newest(runs_dir: Path) -> Target:
    with open_store(runs_dir) as store:
        rows = newest_jobs(store, 1)
    if not rows:
        raise UsageError(
            "there are no runs here.", where=str(runs_dir), hint="Say where they are with --runs-dir or TRN_RUNS_DIR."
        )
    return Target(runs_dir, rows[0].run_id, rows[0])


def job_of(target: Target, store: Store) -> JobRow:
    """The job that was asked for, as the disk has it now; else the run's newest that was not refused."""
    if target.job is not None:
        return observe(target.job, target.runs_dir)
    rows = [row for row in store.of_run(target.run_id) if row.state != "rejected"]
    return observe(rows[-1] if rows else row_of_folder(target.run_dir), target.runs_dir)


def _report_on(target: Target) -> tuple[dict[str, Any], Standing, JobRow]:
    """What is known of a run, from its folder and its jobs, as `status --json` gives it."""
    reports = target.run_dir / "reports"
    with open_store(target.runs_dir) as store:
        job, engine = at_engine(store, job_of(target, store))
        jobs = [observe(row, target.runs_dir) for row in store.of_run(target.run_id)]
    standing = Standing()
    for event in events_of(reports / "events.jsonl"):
        standing = after_event(standing, event)
    lines = parsed(last_lines(reports / "train_metrics.jsonl", STEPS_LOOKED_AT))
    for line in lines:
        standing = after_metrics(standing, line)
    wait = data_wait(standing)
    outcome = outcome_of(target.run_dir, job.job_id)
    if outcome is None and job.exit_code == 0:  # it found its run finished, and told the outcome again
        outcome = outcome_of(target.run_dir, "")
    report = {
        "run_id": target.run_id,
        "job_id": job.job_id or None,
        "run_dir": str(target.run_dir),
        "state": job.state,
        "exit_code": job.exit_code,
        "reason": job.reason,
        "launcher": job.launcher,
        "engine_id": job.engine_id,
        "devices": job.device_names() or None,
        "engine": engine.to_json() if engine else None,
        "step": standing.step,
        "max_steps": standing.max_steps,
        "val_loss": standing.val_loss,
        "eta_s": eta_s(standing) if job.state == "running" else None,
        "metrics": lines[-1] if lines else None,
        "data_wait": wait._asdict() if wait else None,
        "heartbeats": last_beats(reports),
        "events": [one.to_json() for one in standings(target.run_dir)],
        "outcome": outcome.to_json() if outcome else None,
        "submitted_at": job.submitted_at,
        "output": str(job_log(target.runs_dir, job)) if job.job_id else None,
        "jobs": [row_json(row) for row in jobs],
    }
    return report, standing, job


def _report_lines(target: Target, report: dict[str, Any], standing: Standing, job: JobRow) -> Iterator[tuple[str, str]]:
    outcome, state = report["outcome"], report["state"]
    yield "run", target.run_id
    code = "" if report["exit_code"] is None else f" (exit {report['exit_code']})"
    yield "state", outcome_line(outcome) if outcome else f"{state}{code}"
    if not outcome and report["reason"]:
        yield "reason", report["reason"]
    if state == "queued" and (waits := why_waiting(target.runs_dir).get(job.job_id)):
        yield "waits for", waits
    if report["engine"]:
        yield "engine", str(AtEngine(**report["engine"]))
    if target.run_dir.is_dir():
        yield "progress", standing_line(standing if state in OPEN_STATES else standing._replace(step_s=None))
    if state in OPEN_STATES and (alive := alive_line(report["heartbeats"])):
        yield "alive", alive
    if waiting := waiting_line(data_wait(standing)):
        yield "data", waiting
    if outcome and (outcome["final"] or outcome["best"]):
        yield "final", value_line(outcome["final"])
        yield "best", value_line(outcome["best"])
    if outcome and outcome["checkpoint"]:
        yield "checkpoint", str(outcome["checkpoint"].get("file"))
    yield "job", f"{report['job_id'] or 'unknown'}, submitted {report['submitted_at']}"
    if report["launcher"] != "local" and not report["engine"]:
        yield "launcher", launcher_of(job)
    if report["devices"]:
        yield "devices", ", ".join(report["devices"])
    yield from _attempts(report["jobs"])
    yield "folder", str(target.run_dir) if target.run_dir.is_dir() else f"{target.run_dir} (never made)"
    if report["output"] and (output := Path(report["output"])).is_file() and output.stat().st_size:
        yield "output", str(output)
    for one in standings(target.run_dir):
        yield "events", standing_words(one)
    if state == "lost" or (outcome and outcome["resumable"]):
        yield "next", _next_of(target.run_dir)


def _attempts(jobs: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The run's jobs with their endings, where there was more than one."""
    if len(jobs) < 2:
        return
    numbered = list(enumerate(jobs, 1))[-_ATTEMPTS_SHOWN:]
    before = len(jobs) - len(numbered)
    yield "attempts", f"{len(jobs)}, the last {len(numbered)}:" if before else str(len(jobs))
    for number, row in numbered:
        yield "", f"{number}  {attempt_line(row)}"


def _next_of(run_dir: Path) -> str:
    """How the run goes on: a loop of the user's own does with its script, and with nothing else."""
    try:
        trainer = read_json(run_dir / "reports" / "resolved_config.json")["trainer"]
        if trainer["name"] == "own_loop":
            return f"start {trainer['qualname']} again: its loop goes on with the run"
    except (JsonError, OSError, KeyError, TypeError):
        pass  # a plan that cannot be read: the resume will say so
    return f"trn resume {run_dir}"


# logs


@click.command(name="logs")
@click.argument("run", metavar="ID|PATH", shell_complete=complete_run)
@click.option("-f", "--follow", is_flag=True, help="Go on until the run's job has ended.")
@click.option("--events", "only", flag_value="events", help="Every event.")
@click.option("--metrics", "only", flag_value="metrics", help="Every step.")
@click.option("--output", "only", flag_value="output", help="What the trainer printed in the newest job.")
@click.option("--json", "as_json", is_flag=True, help="The lines of events.jsonl (or train_metrics.jsonl) as they are.")
@runs_dir_option
def logs_command(run: str, follow: bool, only: str | None, as_json: bool, runs_dir: str | None) -> None:
    """Show what happened in a run, and what its trainer printed.

    Without --events, --metrics or --output: the events, with the steps between two of them in one line, and the
    output of the newest job (of the job, where a job's id was given).
    """
    if as_json and only == "output":
        raise UsageError("the output is no JSON.", where="--json", hint="Leave out --json or --output.")
    target = find(run, runs_folder(runs_dir))
    with open_store(target.runs_dir) as store:
        stream = Stream(target.run_dir, _output_of(target, store), only=only, as_json=as_json)
        while follow and job_of(target, store).state in OPEN_STATES:
            stream.write_news()
            sys.stdout.flush()
            time.sleep(_LOOK_EVERY_S)
    stream.write_news()
    stream.write_rest()


def _output_of(target: Target, store: Store) -> Path | None:
    job = job_of(target, store)
    return job_log(target.runs_dir, job) if job.job_id else None
