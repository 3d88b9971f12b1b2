"""Begin a job: plan and publish a new run, or take up one that exists; then hand over to `execute`.

With --plan-only a job comes as far as that, and nothing is told as begun: the folder waits, without a lock, for a later
process of the same job, or of another one, to take it up. Of a run that exists, all that a resume could be refused for
is looked at, and nothing is changed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trn.checkpoint.named import named_step
from trn.errors import ResumeRefused
from trn.files import Lock, foreign, holder_note
from trn.loop.stop import StopRequest
from trn.plan import make_forecast, make_plan, publish_run
from trn.plan.mock import MOCK_FOLDER, moved_mock
from trn.plan.publish import LOCK_NAME, PLAN_NAME, refuse_taken
from trn.ranks import World
from trn.records import Outcome, canonical_json, new_run_id, pretty_json
from trn.reopen import prepare_torch
from trn.runner.artifacts import start_artifacts
from trn.runner.company import Company, refuse_stopped
from trn.runner.console import say
from trn.runner.contract import Difference, compare_with_spec, compare_with_world, revise
from trn.runner.contracted import hold_to_contract
from trn.runner.execute import Job, Resume, execute, require_resumable
from trn.runner.fork import Fork, fork
from trn.runner.origin import read_forked_from
from trn.runner.outcome import mend_journal, read_outcome, report
from trn.runner.reading import require_handed_over
from trn.runner.restore import is_untouched
from trn.spec import Flag, LoadedSpec, load_spec
from trn.spec.plan_model import Plan
from trn.trainer import Trainer

__all__ = ["claim", "goes_on", "run"]

_CONTRACT_WAIT_S = 20.0


@dataclass(frozen=True)
class _Request:
    loaded: LoadedSpec
    runs_dir: Path
    run_id: str


def run(args: argparse.Namespace, stop: StopRequest, company: Company) -> int:
    """Do what the command line asks, as rank 0 of its company; returns the exit status.

    Raises TrnError for whatever is refused.
    """
    if args.run_dir is not None and args.run_id is not None:
        run_dir = args.run_dir.resolve()
        runs_dir = (args.runs_dir or run_dir.parent).resolve()
        return _fork(run_dir, runs_dir, args.run_id, args, stop, company, loaded=None)
    if args.run_dir is not None:
        return _take_up(args.run_dir.resolve(), args, stop, company, wanted=None)
    request = _read_request(args)
    target = request.runs_dir / request.run_id
    exists = (target / PLAN_NAME).is_file()
    if args.resume and not exists:
        raise ResumeRefused("there is no such run.", where=str(target), hint="Start it without --resume.")
    if exists and (args.resume or args.auto_resume):
        return _take_up(target, args, stop, company, wanted=request)
    if args.fork_from is not None:
        source = args.fork_from.resolve()
        return _fork(source, request.runs_dir, request.run_id, args, stop, company, loaded=request.loaded)
    if not args.dry_run:
        refuse_taken(target)
    return _begin(request, args, stop, company)


def _read_request(args: argparse.Namespace) -> _Request:
    flags = [Flag(*parts) for parts in args.flags]
    if args.run_id is not None:
        flags.append(Flag("--run-id", "run_id", args.run_id))
    config = args.config if args.contract is None else Path(args.contract.job_spec_path)
    loaded = load_spec(config, sets=args.sets, flags=flags, profile=args.profile)
    runs_dir = args.runs_dir or os.environ.get("TRN_RUNS_DIR") or loaded.spec.runs_dir or "runs"
    request = _Request(loaded, Path(runs_dir).resolve(), loaded.spec.run_id or new_run_id())
    if args.contract is None:
        return request
    return replace(request, loaded=hold_to_contract(args.contract, loaded, request.runs_dir / request.run_id))


def _begin(request: _Request, args: argparse.Namespace, stop: StopRequest, company: Company) -> int:
    if args.dry_run:
        return _foretell(request, company.world)
    plan, trainer = _plan(request, company.world)
    require_handed_over(plan, company)
    refuse_stopped(stop)
    prepare_torch(plan)
    artifacts = start_artifacts(plan, request.loaded.sources, job_id=args.job_id)
    lock = publish_run(plan, artifacts, job_id=args.job_id, note=holder_note(args.job_id))
    if plan.defaulted:
        filled = ", ".join(f"{key}: {canonical_json(value).decode()}" for key, value in plan.defaulted.items())
        say(f"trn: the job file leaves open, and was filled in: {filled}")
    if args.plan_only:
        lock.release()
        return 0
    return execute(Job(plan, trainer, args.job_id), lock, stop, company)


def _fork(
    source: Path,
    runs_dir: Path,
    run_id: str,
    args: argparse.Namespace,
    stop: StopRequest,
    company: Company,
    *,
    loaded: LoadedSpec | None,
) -> int:
    asked = Fork(source, args.checkpoint, runs_dir, run_id, loaded, args.allow_change, plan_only=args.plan_only)
    return fork(asked, job_id=args.job_id, note=holder_note(args.job_id), stop=stop, company=company)


def _plan(request: _Request, world: World, mock_folder: Path | None = None) -> tuple[Plan, Trainer]:
    return make_plan(
        request.loaded, run_id=request.run_id, runs_dir=request.runs_dir, world=world, mock_folder=mock_folder
    )


def _foretell(request: _Request, world: World) -> int:
    """The plan and what it will take: as JSON on standard output, and for people on standard error."""
    # what a trainer prints when it is imported or built must not stand before the answer
    with tempfile.TemporaryDirectory(prefix="trn-mock-") as aside, contextlib.redirect_stdout(sys.stderr):
        plan, trainer = _plan(request, world, Path(aside))
        forecast = make_forecast(plan, trainer)
    plan = moved_mock(plan, Path(aside), request.runs_dir / MOCK_FOLDER)
    sys.stdout.write(pretty_json({"plan": plan.to_json(), "forecast": forecast.to_json()}).decode())
    sys.stdout.flush()
    for line in forecast.lines():
        say(line)
    return 0


def _take_up(
    run_dir: Path, args: argparse.Namespace, stop: StopRequest, company: Company, *, wanted: _Request | None
) -> int:
    path = run_dir / PLAN_NAME
    if problem := foreign(run_dir):
        raise ResumeRefused(problem, where=str(run_dir), hint="A run is made of plain files and folders only.")
    if not path.is_file():
        raise ResumeRefused("this folder is no run: it has no plan.", where=str(run_dir))
    # the trainer of a worker that was killed before its first step looks at its run, and lets go of it
    lock = claim(run_dir, args.job_id, wait_s=0.1 if args.contract is None else _CONTRACT_WAIT_S)
    plan = Plan.read(path.read_bytes(), str(path))
    # the folder may have been moved or copied: where it lies now is where it runs
    plan = plan.model_copy(update={"run_dir": str(run_dir), "runs_dir": str(run_dir.parent)})
    # the checkpoint that a fork began with is not one of the fork itself, once it is there
    named = None if args.checkpoint is None or args.fork_from is not None else named_step(run_dir, args.checkpoint)
    before = read_outcome(run_dir)
    is_fork = read_forked_from(run_dir) is not None
    is_planned = before is None and is_untouched(run_dir, is_fork=is_fork)
    is_finished = before is not None and before.exit_code == 0 and (named is None or named >= before.step)
    if wanted is None and before is not None and is_finished:
        mend_journal(plan, before)
        return report(before, run_dir)
    world = company.world
    if wanted is None:
        now, trainer = compare_with_world(plan, world, allowed=args.allow_change)
    else:
        now, trainer = compare_with_spec(plan, wanted.loaded, world)
    revised, changes = revise(plan, now, allowed=args.allow_change)
    if before is not None:
        mend_journal(plan, before)
        if is_finished and not goes_on(before, revised, changes):
            return report(before, run_dir)
    require_handed_over(revised, company)
    prepare_torch(revised)
    sources = () if wanted is None else wanted.loaded.sources
    resume = Resume(
        published=plan,
        sources=sources,
        before=before,
        named=named,
        is_fork=is_planned and is_fork,
        is_planned=is_planned,
    )
    job = Job(revised, trainer, args.job_id, resume=resume, changes=changes)
    if args.plan_only:
        require_resumable(job)
        lock.release()
        return 0
    return execute(job, lock, stop, company)


def claim(run_dir: Path, job_id: str, *, wait_s: float = 0.1) -> Lock:
    """The lock of an existing run, held. Raises ResumeRefused where somebody else has it."""
    lock = Lock(run_dir / LOCK_NAME)
    if not lock.acquire(holder_note(job_id), wait_s):
        raise ResumeRefused("another process is running it.", where=str(run_dir), hint="Wait for it, or cancel it.")
    return lock


def goes_on(before: Outcome, revised: Plan, changes: Sequence[Difference]) -> bool:
    """Whether a finished run has more to do: only a longer budget, or other rules of the gates, can give it that."""
    changed = {one.key for one in changes}
    if revised.budget.max_steps <= before.step:
        return False
    by_budget = before.status == "completed" and "budget.max_steps" in changed
    return by_budget or any(key.startswith("gates.") for key in changed)
