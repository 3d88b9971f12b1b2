"""Begin a job: plan and publish a new run, or take up one that exists; then hand over to `execute`."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from trn.errors import ResumeRefused, Stopped
from trn.files import Lock, foreign
from trn.loop.stop import StopRequest
from trn.plan import make_plan, publish_run
from trn.plan.publish import LOCK_NAME, PLAN_NAME, refuse_taken
from trn.ranks import read_world
from trn.records import new_run_id, pretty_json
from trn.runner.artifacts import prepare_torch, start_artifacts
from trn.runner.contract import compare_with_spec, compare_with_world, revise
from trn.runner.execute import Job, Resume, execute
from trn.runner.outcome import mend_journal, read_outcome, report
from trn.spec import LoadedSpec, load_spec
from trn.spec.plan_model import Plan

__all__ = ["run"]


@dataclass(frozen=True)
class _Request:
    loaded: LoadedSpec
    runs_dir: Path
    run_id: str


def run(args: argparse.Namespace, stop: StopRequest) -> int:
    """Do what the command line asks; returns the exit status. Raises TrnError for whatever is refused."""
    if args.run_dir is not None:
        return _take_up(args.run_dir.resolve(), args, stop, wanted=None)
    request = _read_request(args)
    target = request.runs_dir / request.run_id
    exists = (target / PLAN_NAME).is_file()
    if args.resume and not exists:
        raise ResumeRefused("there is no such run.", where=str(target), hint="Start it without --resume.")
    if exists and (args.resume or args.auto_resume):
        return _take_up(target, args, stop, wanted=request)
    if not args.dry_run:
        refuse_taken(target)
    return _begin(request, args, stop)


def _read_request(args: argparse.Namespace) -> _Request:
    loaded = load_spec(args.config, sets=args.sets, flags={"run_id": args.run_id}, profile=args.profile)
    runs_dir = args.runs_dir or os.environ.get("TRN_RUNS_DIR") or loaded.spec.runs_dir or "runs"
    return _Request(loaded, Path(runs_dir).resolve(), loaded.spec.run_id or new_run_id())


def _begin(request: _Request, args: argparse.Namespace, stop: StopRequest) -> int:
    world = read_world(os.environ)
    plan, trainer = make_plan(request.loaded, run_id=request.run_id, runs_dir=request.runs_dir, world=world)
    if args.dry_run:
        sys.stdout.write(pretty_json(plan.to_json()).decode())
        return 0
    if stop.requested():
        raise Stopped("preempted" if stop.outcome is None else stop.outcome, f"{stop.reason}, before the run began.")
    prepare_torch(plan)
    artifacts = start_artifacts(plan, request.loaded.sources, job_id=args.job_id)
    lock = publish_run(plan, artifacts, job_id=args.job_id, note=_note(args.job_id))
    return execute(Job(plan, trainer, args.job_id), lock, stop)


def _take_up(run_dir: Path, args: argparse.Namespace, stop: StopRequest, *, wanted: _Request | None) -> int:
    path = run_dir / PLAN_NAME
    if problem := foreign(run_dir):
        raise ResumeRefused(problem, where=str(run_dir), hint="A run is made of plain files and folders only.")
    if not path.is_file():
        raise ResumeRefused("this folder is no run: it has no plan.", where=str(run_dir))
    lock = Lock(run_dir / LOCK_NAME)
    if not lock.acquire(_note(args.job_id)):
        raise ResumeRefused("another process is running it.", where=str(run_dir), hint="Wait for it, or cancel it.")
    plan = Plan.read(path.read_bytes(), str(path))
    # the folder may have been moved or copied: where it lies now is where it runs
    plan = plan.model_copy(update={"run_dir": str(run_dir), "runs_dir": str(run_dir.parent)})
    before = read_outcome(run_dir)
    is_finished = before is not None and before.exit_code == 0
    if wanted is None and before is not None and is_finished:
        mend_journal(plan, before)
        return report(before, run_dir)
    now, trainer = compare_with_world(plan) if wanted is None else compare_with_spec(plan, wanted.loaded)
    revised, changes = revise(plan, now, allowed=args.allow_change)
    if before is not None:
        mend_journal(plan, before)
        if is_finished and revised.budget.max_steps <= before.step:
            return report(before, run_dir)
    prepare_torch(revised)
    sources = () if wanted is None else wanted.loaded.sources
    resume = Resume(published=plan, sources=sources, before=before)
    return execute(Job(revised, trainer, args.job_id, resume=resume, changes=changes), lock, stop)


def _note(job_id: str) -> str:
    return f"pid={os.getpid()} job={job_id}"
