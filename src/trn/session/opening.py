"""From what `trn.open_run` was asked to a run whose lock is held: a new one, or one that exists."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trn.checkpoint.discover import Found
from trn.checkpoint.named import named_step
from trn.errors import PlanRefused, ResumeRefused, UsageError
from trn.files import Lock, holder_note
from trn.plan import make_plan, publish_run
from trn.plan.publish import PLAN_NAME, refuse_taken, withdraw_run
from trn.ranks import World, read_world
from trn.records import Outcome, new_job_id, new_run_id
from trn.reopen import prepare_torch, read_run
from trn.runner.artifacts import start_artifacts
from trn.runner.contract import compare_with_spec, revise
from trn.runner.execute import Job, Resume, require_resumable
from trn.runner.outcome import mend_journal, read_outcome
from trn.runner.start import claim, goes_on
from trn.session.own_loop import Caller, OwnLoop, stand_in_for
from trn.spec import Flag, LoadedSpec, load_spec
from trn.spec.plan_model import Plan
from trn.trainer.loading import OWN_LOOP

__all__ = ["Asked", "Opened", "When", "open_job"]

When = Literal["auto", "never", "must"]


@dataclass(frozen=True)
class Asked:
    """What `trn.open_run` was called with, and by whom."""

    spec: str | os.PathLike[str] | Mapping[str, Any]
    caller: Caller
    run_id: str | None
    runs_dir: str | os.PathLike[str] | None
    resume: When
    sets: Sequence[str]
    allow_change: Sequence[str]
    checkpoint: str | None
    profile: str | None


@dataclass(frozen=True)
class Opened:
    """A run whose lock this process holds. Torch is set as its plan says."""

    job: Job
    loop: OwnLoop
    lock: Lock
    found: Found
    finished: Outcome | None = None
    """How the run ended, where it is finished: then nothing of it is changed."""

    def give_up(self) -> None:
        """Let it go as if it had never been asked for: a new run is taken back."""
        if self.job.resume is None:
            withdraw_run(self.job.plan, self.lock, job_id=self.job.job_id)
        else:
            self.lock.release()


def open_job(asked: Asked) -> Opened:
    """Raises TrnError for whatever is refused; then nothing was written, and no lock is held."""
    if asked.resume not in ("auto", "never", "must"):
        raise UsageError(f"expected auto, never or must, found {asked.resume!r}.", where="open_run(resume=...)")
    world = read_world(os.environ)
    if world.world_size > 1:
        raise PlanRefused(
            f"this is one of {world.world_size} processes, and a loop of your own runs in one.",
            where="open_run",
            hint="Start one process, or write a trainer: `trn run` trains with several.",
        )
    loaded = _load(asked)
    run_dir = _runs_dir(asked, loaded) / (loaded.spec.run_id or new_run_id())
    loop, job_id = stand_in_for(asked.caller), new_job_id()
    exists = (run_dir / PLAN_NAME).is_file()
    if exists and asked.resume != "never":
        return _take_up(run_dir, asked, loaded, loop, job_id, world)
    if asked.resume == "must" or asked.checkpoint is not None:
        raise ResumeRefused("there is no such run.", where=str(run_dir), hint="Begin it with resume='auto'.")
    refuse_taken(run_dir)
    plan, _ = make_plan(loaded, run_id=run_dir.name, runs_dir=run_dir.parent, world=world, trainer=loop)
    _refuse_hang(plan)
    prepare_torch(plan)
    artifacts = start_artifacts(plan, loaded.sources, job_id=job_id)
    lock = publish_run(plan, artifacts, job_id=job_id, note=holder_note(job_id))
    return Opened(Job(plan, loop, job_id), loop, lock, Found(None, ()))


def _load(asked: Asked) -> LoadedSpec:
    config = asked.spec if isinstance(asked.spec, Mapping) else Path(asked.spec)
    flags = [] if asked.run_id is None else [Flag("open_run(run_id=...)", "run_id", asked.run_id)]
    loaded = load_spec(config, sets=asked.sets, flags=flags, profile=asked.profile, defaults={"trainer": OWN_LOOP})
    if loaded.spec.trainer != OWN_LOOP:
        raise PlanRefused(
            f"expected no trainer, or {OWN_LOOP}, found {loaded.spec.trainer!r}.",
            where="trainer",
            hint="Remove the key to run your own loop, or run the trainer with `trn run`.",
        )
    return loaded


def _runs_dir(asked: Asked, loaded: LoadedSpec) -> Path:
    return Path(asked.runs_dir or os.environ.get("TRN_RUNS_DIR") or loaded.spec.runs_dir or "runs").resolve()


def _refuse_hang(plan: Plan) -> None:
    if plan.hang_s:
        raise PlanRefused(
            "it ends the process of a run that hangs, and this process is yours.",
            where="limits.hang_seconds",
            hint="Remove the key; reports/train_heartbeat.rank0.jsonl shows a hang.",
        )


def _take_up(run_dir: Path, asked: Asked, loaded: LoadedSpec, loop: OwnLoop, job_id: str, world: World) -> Opened:
    lock = claim(run_dir, job_id)
    try:
        plan = read_run(run_dir)
        if plan.trainer.name != OWN_LOOP:
            raise ResumeRefused(
                f"it was begun with the trainer {plan.trainer.name!r}.",
                where=str(run_dir),
                hint="Go on with it by `trn resume`, or choose another run_id.",
            )
        named = None if asked.checkpoint is None else named_step(run_dir, asked.checkpoint)
        before = read_outcome(run_dir)
        now, _ = compare_with_spec(plan, loaded, world, loop)
        _refuse_hang(now)
        revised, changes = revise(plan, now, allowed=asked.allow_change)
        resume = Resume(published=plan, sources=loaded.sources, before=before, named=named)
        job = Job(revised, loop, job_id, resume=resume, changes=changes)
        found = require_resumable(job)
        if before is not None:
            mend_journal(plan, before)
        is_finished = before is not None and before.exit_code == 0 and (named is None or named >= before.step)
        is_over = before is not None and is_finished and not goes_on(before, revised, changes)
        prepare_torch(revised)
    except BaseException:
        lock.release()
        raise
    return Opened(job, loop, lock, found, finished=before if is_over else None)
