"""One job, from the held lock to the exit status: build, restore, loop, outcome."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from trn.checkpoint.discover import Found, find_named, find_newest_good
from trn.checkpoint.meta import meta_name
from trn.checkpoint.saver import Saver
from trn.errors import STATUS, PeerFailed, PlanRefused, ResumeRefused, Stopped, TrainerError, TrnError
from trn.feed import Dataset, check_unchanged
from trn.files import Lock
from trn.journal import EventLog, MetricsLog
from trn.loop.batches import Batches
from trn.loop.loop import Ending, Parts, announce, train
from trn.loop.progress import Progress
from trn.loop.stop import StopRequest
from trn.plan import warn_of_few_tokens
from trn.plan.publish import withdraw_run
from trn.provenance.process import clean_event
from trn.records import Json, Outcome, utc_now
from trn.reopen import announced_steps, progress_of
from trn.runner.alongside import Alongside, alongside
from trn.runner.artifacts import publish_revision, record_begin, record_resume, require_run_meta, safe_text
from trn.runner.company import Company, Job0, is_out_of_memory, outcome_of
from trn.runner.console import say
from trn.runner.contract import Difference
from trn.runner.exporting import export_at_end, keep_export_rows
from trn.runner.fence import Fence, RunTaken
from trn.runner.make import Made, make
from trn.runner.origin import read_forked_from
from trn.runner.outcome import archive_outcome, publish_outcome
from trn.runner.reading import open_feed, validation_of
from trn.runner.restore import Restored, is_announced, restore_folder
from trn.runner.transforming import open_batches
from trn.spec import Source
from trn.spec.plan_model import Plan
from trn.trainer import TorchState, Trainer

__all__ = ["Job", "Journal", "Resume", "enter", "execute", "finish_saving", "parts_of", "require_resumable"]


@dataclass
class Resume:
    """What a resume finds in the folder, and what it has to put in order before the run goes on."""

    published: Plan
    """The plan as it lies on disk."""
    sources: Sequence[Source] = ()
    """The spec's files, where the resume came with a spec."""
    before: Outcome | None = None
    """How the job before this one ended, where it came to an end."""
    named: int | None = None
    """The step of the checkpoint that the user named; None: the newest that holds."""
    is_fork: bool = False
    """Whether the run begins with this job, at another run's checkpoint."""
    is_planned: bool = False
    """Whether the run begins with this job, in a folder that was made before it."""
    run_meta: bytes = b""

    def settle(self, plan: Plan) -> None:
        """Put the outcome before aside and the revised plan in its place. Raises StorageError."""
        if self.before is not None:
            archive_outcome(Path(plan.run_dir), self.before)
        if plan.revision != self.published.revision:
            publish_revision(self.published, plan, sources=self.sources)


@dataclass(frozen=True)
class Job:
    """One request to bring a run forward."""

    plan: Plan
    trainer: Trainer
    job_id: str
    resume: Resume | None = None
    """What is taken up; None for a new run."""
    changes: tuple[Difference, ...] = ()
    """What this job's revision of the plan changed."""

    @property
    def made_folder(self) -> bool:
        """Whether the run's folder is this process's own, which a refusal takes back."""
        return self.resume is None or (self.resume.is_fork and not self.resume.is_planned)

    @property
    def goes_on(self) -> bool:
        """Whether there is something before it: jobs of this run, or the checkpoint that a fork begins with."""
        return self.resume is not None and (self.resume.is_fork or not self.resume.is_planned)


@dataclass(frozen=True)
class Journal:
    """What a job appends to, open."""

    events: EventLog
    metrics: MetricsLog
    val_metrics: MetricsLog

    @classmethod
    def open(cls, plan: Plan, job_id: str, fence: Fence | None = None) -> Journal:
        reports = Path(plan.run_dir) / "reports"
        return cls(
            EventLog(reports / "events.jsonl", run_id=plan.run_id, job_id=job_id, clean=clean_event, guard=fence),
            MetricsLog(reports / "train_metrics.jsonl", guard=fence),
            MetricsLog(reports / "val_metrics.jsonl", guard=fence),
        )

    def close_metrics(self) -> None:
        self.metrics.close()
        self.val_metrics.close()

    def close(self) -> None:
        self.close_metrics()
        self.events.close()

    def sync(self) -> None:
        self.metrics.sync()
        self.val_metrics.sync()
        self.events.sync()


def execute(job: Job, lock: Lock, stop: StopRequest, company: Company) -> int:
    """Run the job under its held lock, as rank 0 of its company; returns the exit status. The outcome says the same.

    Raises TrnError only where no outcome can be written: when the disk refuses, or when the job is refused, which
    then has changed nothing: a resume leaves the run as it was, a new run leaves no folder.
    """
    fence = Fence(lock)
    with fence.guarding(), alongside(job.plan, job.job_id, company, is_new=job.made_folder) as beside:
        return _execute(job, lock, fence, stop, company, beside)


def _execute(job: Job, lock: Lock, fence: Fence, stop: StopRequest, company: Company, beside: Alongside) -> int:
    plan, started_at, owner = job.plan, utc_now(), os.getpid()
    found = Found(None, ()) if job.resume is None else require_resumable(job)
    stop.limit_runtime(plan.max_runtime_s)
    made = _make_or_refuse(job, found, lock, stop, company)
    beside.admit()
    journal, restored = enter(job, found, fence)
    progress = restored.progress

    def publish(ending: Ending) -> None:
        publish_outcome(
            plan,
            job_id=job.job_id,
            status=ending.status,
            reason=safe_text(plan, job.job_id, ending.reason),
            progress=progress,
            events=journal.events,
            started_at=started_at,
        )

    def tell_instead(error: TrnError) -> None:
        """The main thread may only be slow: what it would still write finds no open file."""
        journal.sync()
        journal.close_metrics()
        publish(Ending(outcome_of(error), str(error)))

    def give_up(error: TrnError) -> None:
        company.leave(error, tell=partial(tell_instead, error))

    if company.ranks is not None or plan.hang_s:
        company.watchdog.watch(hang_s=plan.hang_s, give_up=give_up)
    work = partial(beside.fenced, partial(_train, job, journal, restored, made, stop, company))
    ending = _attempt(partial(company.telling, work))
    if os.getpid() != owner:
        os._exit(1)  # a child that the trainer forked and that came out of the loop: the run is its parent's
    company.watchdog.rest()
    company.last_word.take()
    journal.sync()
    beside.fenced(partial(publish, ending))
    beside.ended(ending.status, progress.step, ending.reason)
    lock.release()
    return STATUS[ending.status].exit


def enter(job: Job, found: Found, fence: Fence) -> tuple[Journal, Restored]:
    """Begin to change the run's folder: in order for the checkpoint that was found, its journal open, the job told."""
    plan = job.plan
    if job.resume is not None:
        job.resume.settle(plan)
        if job.resume.is_planned:
            record_begin(plan, job.resume.run_meta, job_id=job.job_id)
    journal = Journal.open(plan, job.job_id, fence)
    restored = Restored(None, Progress(), {})
    if job.resume is not None and job.goes_on:
        restored = restore_folder(
            plan,
            found,
            job.job_id,
            journal.events,
            journal.metrics,
            journal.val_metrics,
            is_named=job.resume.named is not None,
        )
        if not job.resume.is_fork:  # a fork's run_meta begins with this job
            record_resume(plan, job.resume.run_meta, job_id=job.job_id, from_step=restored.progress.step)
    _announce(job, journal.events)
    return journal, restored


_REFUSALS = frozenset({"plan_refused", "resume_refused"})
"""Endings of another rank that leave nothing behind, as they do on this one."""


def require_resumable(job: Job) -> Found:
    """The checkpoint to go on from. Raises what a resume is refused with, before anything is changed."""
    assert job.resume is not None, "asked only of a resume"
    plan, run_dir = job.plan, Path(job.plan.run_dir)
    job.resume.run_meta = require_run_meta(run_dir)
    if job.resume.named is not None:
        found = Found(find_named(run_dir, job.resume.named, lineage=plan.lineage), ())
    else:
        found = find_newest_good(run_dir, lineage=plan.lineage, announced=announced_steps(run_dir))
    if found.meta is not None:
        progress_of(found.meta)
    if found.meta is not None and found.meta.step > plan.budget.max_steps:
        raise ResumeRefused(
            f"the run stands at step {found.meta.step}, beyond a budget of {plan.budget.max_steps}.",
            where="max_steps",
        )
    return found


def _make_or_refuse(job: Job, found: Found, lock: Lock, stop: StopRequest, company: Company) -> Made:
    """What is trained, on all ranks, made before anything of the run is changed.

    Raises what the job is refused with; a failure of the trainer's own code is kept for the outcome.
    """
    plan = job.plan
    company.watch_each_other()
    company.tell_job(Job0(plan, job.job_id, None if found.meta is None else meta_name(found.meta.step)))
    try:
        made = make(plan, job.trainer, found.meta, stop, company)
        if isinstance(made.error, PeerFailed) and made.error.outcome in _REFUSALS:
            raise made.error
        return made
    except (PlanRefused, ResumeRefused, PeerFailed):
        if job.made_folder:
            withdraw_run(plan, lock, job_id=job.job_id)
        raise


def _announce(job: Job, events: EventLog) -> None:
    """The events of a job that begins."""
    plan = job.plan
    if not is_announced(plan):
        changes = [{"key": one.key, "was": one.was, "now": one.now} for one in job.changes]
        forked_from = read_forked_from(Path(plan.run_dir))
        forked = {} if forked_from is None else {"forked_from": forked_from}
        events.emit("plan_written", fingerprint=plan.fingerprint, revision=plan.revision, changes=changes, **forked)
    events.emit("job_started", pid=os.getpid(), resume=job.goes_on)
    before = plan if job.resume is None else job.resume.published
    for part, was in ((plan.dataset, before.dataset), (plan.validation, before.validation)):
        if part is not None and was is not None and (touched := _touched(part.data, was.data)):
            events.emit("data_touched", files=list(touched))


def _touched(data: Json, planned: Json) -> tuple[str, ...]:
    """Files with another time stamp than in the plan before, where they lie now: a spec's plan is made of them anew."""
    now, was = Dataset.from_json(data), Dataset.from_json(planned)
    if now.fingerprint != was.fingerprint:  # other data, which was allowed: nothing of them was planned before
        was = now
    files = zip(was.files, now.files, strict=True)
    return check_unchanged(replace(was, files=tuple(replace(one, path=here.path) for one, here in files)))


_ASKED_FOR = frozenset({"preempted", "cancelled", "time_limit"})
"""Endings that nobody has to be told the reason of; those of gates and of an export stand in no error."""


def _attempt(work: Callable[[], Ending]) -> Ending:
    """The ending of `work`, whatever it raises: the boundary where every failure becomes one outcome.

    But for a run that is another one's by now, of which this process tells nothing.
    """
    try:
        ending = work()
        if STATUS[ending.status].exit and ending.status not in _ASKED_FOR:
            say(f"{ending.status}: {ending.reason}")
        return ending
    except Stopped as error:
        return Ending(error.outcome, error.message)
    except PeerFailed as error:
        say(str(error))
        return Ending(error.outcome, str(error))
    except RunTaken:
        raise
    except TrnError as error:
        memory = is_out_of_memory(error.__cause__)
        if isinstance(error, TrainerError) and error.__cause__ is not None:
            say("".join(traceback.format_exception(error.__cause__)).rstrip())
        say(str(error))
        return Ending("out_of_memory" if memory else error.code, str(error))
    except BaseException as error:  # noqa: BLE001 - the boundary of the process: the failure is named in the outcome
        say("".join(traceback.format_exception(error)).rstrip())
        reason = f"{type(error).__name__}: {error}"
        return Ending("out_of_memory" if is_out_of_memory(error) else "crashed", reason)


def _train(job: Job, journal: Journal, restored: Restored, made: Made, stop: StopRequest, company: Company) -> Ending:
    plan, trainer, progress = job.plan, job.trainer, restored.progress
    ctx, state = made.ctx, made.state
    if made.error is not None:
        raise made.error
    is_new = not job.goes_on and isinstance(state, TorchState)
    if is_new and (warning := warn_of_few_tokens(plan, trainer, state.model)):
        say(f"warning: {warning}")
    keep_export_rows(plan, trainer)
    feed = open_batches(plan, trainer, ctx, open_feed(plan, progress, company, stop), stop)
    parts = parts_of(job, journal, made, feed, stop, company)
    delay = plan.checkpoint.save_delay_steps
    if progress.step < delay:
        say(f"no checkpoint before step {delay}, but where the job ends: checkpoint.save_delay_steps")
    journal.events.emit("started", step=progress.step, max_steps=plan.budget.max_steps)
    ended = False
    try:
        ending = train(parts, progress, restored.last_line)
        ended = True
    finally:
        company.watchdog.rest()  # a save that is in flight takes its time
        feed.close()
        finish_saving(parts.saver, journal, must_hold=ended)
    is_exported = plan.export.onnx and STATUS[ending.status].exit == 0
    with company.pulse.during("export") if is_exported else contextlib.nullcontext():
        return export_at_end(plan, journal.events, ending, stop)


def parts_of(job: Job, journal: Journal, made: Made, feed: Batches, stop: StopRequest, company: Company) -> Parts:
    """All that a loop works with."""
    plan = job.plan
    saver = Saver(
        made.ctx.checkpoints_dir,
        run_id=plan.run_id,
        job_id=job.job_id,
        plan_fingerprint=plan.fingerprint,
        keep=plan.checkpoint.keep,
        keep_epochs=plan.checkpoint.keep_epochs,
        sync_journal=journal.sync,
    )
    return Parts(
        plan=plan,
        trainer=job.trainer,
        state=made.state,
        ctx=made.ctx,
        feed=feed,
        validation=validation_of(plan, company.world),
        metrics=journal.metrics,
        val_metrics=journal.val_metrics,
        events=journal.events,
        saver=saver,
        stop=stop,
        agreement=made.agreement,
        watchdog=company.watchdog,
        pulse=company.pulse,
    )


def finish_saving(saver: Saver, journal: Journal, *, must_hold: bool) -> None:
    """Let a save that is in flight come to its end, also when the loop failed: it is of an earlier, good step.

    What goes wrong here then must not hide why the loop failed.
    """
    try:
        saver.wait()
        announce(saver, journal.events)
    except TrnError as error:
        if must_hold or isinstance(error, RunTaken):
            raise
        say(str(error))
