"""One job around somebody else's loop: from the held lock to the outcome, in a process that is not ours.

    opened ─> the user's objects are tracked and restored ─> `begin`, at the first step: checked, the folder changed
           ─> steps ─> `leave`: what is in flight is finished, the outcome published, and all that was set put back

Until `begin` nothing of an existing run is changed, and a refusal takes a new one back.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from trn.checkpoint import rng
from trn.checkpoint.discover import load_payload
from trn.errors import PlanRefused, ResumeRefused, Stopped, StorageError, TrnError, UsageError
from trn.feed.tensors import to_tensors
from trn.files import remove
from trn.loop.agreement import Agreement
from trn.loop.batches import Batches, Rows
from trn.loop.loop import Ending, Parts
from trn.loop.progress import Progress
from trn.loop.stop import StopRequest
from trn.plan import make_params, torch_device
from trn.records import Outcome, cancel_path, utc_now
from trn.runner import signals
from trn.runner.alongside import Alongside, alongside
from trn.runner.artifacts import safe_text
from trn.runner.cancelled import CancelWatch
from trn.runner.company import Company, is_out_of_memory
from trn.runner.execute import Journal, enter, finish_saving, parts_of
from trn.runner.fence import Fence
from trn.runner.live import check_live
from trn.runner.make import Made
from trn.runner.outcome import publish_outcome
from trn.runner.reading import open_feed
from trn.runner.restore import Restored
from trn.session.no_data import NoData
from trn.session.opening import Opened
from trn.session.sending import sending
from trn.session.steps import Steps
from trn.session.tracked import Tracked
from trn.trainer import Context

__all__ = ["OwnJob", "settings_put_back"]

_REFUSALS = (UsageError, PlanRefused, ResumeRefused)


class OwnJob:
    """One job. Of a finished run nothing is changed: there its objects are restored, and its outcome told again."""

    def __init__(self, opened: Opened) -> None:
        self.plan = opened.job.plan
        self.stop = StopRequest()
        self.steps: Steps | None = None
        self.failure: BaseException | None = None
        """What the end of the run failed with, after the block was left without an error."""
        self.brings_data = False
        """Whether the loop takes no rows from the run."""
        self.is_left = False
        """Whether the block was left: the folder is not ours any more."""
        self._opened, self._job, self._lock = opened, opened.job, opened.lock
        self._fence = Fence(opened.lock)
        self._owner, self._started_at = os.getpid(), utc_now()
        self._company = Company()
        self._journal: Journal | None = None
        self._restored = Restored(None, Progress(), {})
        self._parts: Parts | None = None
        self._beside: Alongside | None = None
        self._undo = contextlib.ExitStack()
        agreement = Agreement(self._company.group, self.stop)
        ctx = Context(
            plan=self.plan,
            params=make_params(opened.loop, self.plan.trainer.params),
            device=torch_device(self.plan.device),
            run_dir=Path(self.plan.run_dir),
            cancelled=agreement.is_stopping,
            tensors=to_tensors,
        )
        saved = _saved_state(opened)
        self.tracked = Tracked(None if saved is None else saved["trainer"], _checkpoint(opened))
        self._rng = None if saved is None else saved["rng"][0]
        self.made = Made(ctx, agreement, self.tracked)

    def open(self) -> None:
        """Signals, deadline, heartbeat and log; then every random stream at its beginning."""
        if self._opened.finished is not None:
            return
        is_new = self._job.resume is None
        self._undo.enter_context(self._fence.guarding())
        self._beside = self._undo.enter_context(alongside(self.plan, self._job.job_id, self._company, is_new=is_new))
        if threading.current_thread() is threading.main_thread():
            self._undo.callback(signals.install(self.stop, ignored_too=False))
        asked = cancel_path(Path(self.plan.runs_dir), self._job.job_id)
        self._undo.callback(_forget, asked)
        watch = CancelWatch(asked, self.stop)
        watch.start()
        self._undo.callback(watch.end)
        self.stop.limit_runtime(self.plan.max_runtime_s)
        if self.made.ctx.device.type == "cuda":
            torch.cuda.set_device(self.made.ctx.device)
        rng.seed_all(self.plan.seed)
        self.stop.breakable = True

    def begin(self, *, with_data: bool) -> Steps:
        """The first step is asked for. Raises what the job is refused with, before anything of a run is changed."""
        self.tracked.require_all()
        if self.plan.validation is not None and self._opened.loop.evaluation is None:
            raise UsageError(
                "the spec has validation, and nothing evaluates.",
                where="run.evaluation",
                hint="Give a function with @run.evaluation before the first batch, or remove `validation`.",
            )
        check_live(self.plan, self._job.trainer, self.tracked.objects, self.made.ctx.device)
        self.brings_data = not with_data
        journal = self._enter()
        progress = self._restored.progress
        feed: Batches = NoData()
        take = feed.next
        if with_data:
            rows = open_feed(self.plan, progress, self._company, self.stop)
            feed, take = Rows(rows), rows.next
        self._undo.enter_context(sending(self.plan, self._job.job_id))
        self._parts = parts_of(self._job, journal, self.made, feed, self.stop, self._company)
        self.tracked.step = progress.step
        journal.events.emit("started", step=progress.step, max_steps=self.plan.budget.max_steps)
        if self._rng is not None:
            rng.restore(self._rng)
        self.steps = Steps(self._parts, progress, self._restored.last_line, take=take)
        return self.steps

    def leave(self, error: BaseException | None) -> Outcome | None:
        """End the job that `error`, or nothing, has left; None where it was refused. Raises StorageError."""
        if os.getpid() != self._owner:
            return None  # a child that the loop forked: the run is its parent's
        self.stop.breakable = False
        try:
            if self._opened.finished is not None:
                return self._opened.finished
            if self._journal is None and isinstance(error, _REFUSALS):
                self._company.pulse.failed(error)
                self._undo.close()
                self._opened.give_up()
                return None
            journal = self._enter()
            return self._tell(journal, error)
        finally:
            self.is_left = True
            if self.steps is not None:
                self.steps.close()
            self._undo.close()
            if self._journal is not None:
                self._journal.close()
            self._lock.release()

    @property
    def inexact_because(self) -> list[str]:
        """Why a kill and a resume of this run may give other bits; empty where they do not."""
        found = {
            "nothing is tracked: a resume begins with the objects that the script makes": not self.tracked.objects,
            "the loop brings its own data: their order and place are not known to the run": self.brings_data,
            "the loop has no file: a change of its code is not noticed": not self._opened.loop.has_file,
            f"deterministic is {self.plan.deterministic}": self.plan.deterministic is not True,
        }
        return [reason for reason, holds in found.items() if holds]

    def _enter(self) -> Journal:
        if self._journal is None:
            if self._beside is not None:
                self._beside.admit()
            self._journal, self._restored = enter(self._job, self._opened.found, self._fence)
        return self._journal

    def _tell(self, journal: Journal, error: BaseException | None) -> Outcome:
        def work() -> Outcome:
            self._fence()
            return self._publish(journal, self._ending(error))

        return work() if self._beside is None else self._beside.fenced(work)

    def _ending(self, error: BaseException | None) -> Ending:
        """How it ended; what is in flight has come to its end."""
        ending = None if self.steps is None else self.steps.ending
        if ending is not None:
            return ending  # it had ended by itself, whatever the block did with that
        try:
            if error is None:
                ending = self._left()
        except BaseException as late:  # noqa: BLE001 - the boundary: whatever the end fails with is the outcome
            error = self.failure = late
        if error is not None:
            self._company.pulse.failed(error)
            ending = _ending_of(error, self._restored.progress.step)
        assert ending is not None, "one of the two is there"
        return ending

    def _left(self) -> Ending:
        if self.steps is not None:
            return self.steps.leave()
        if self.stop.requested():
            return Ending(self.stop.outcome or "preempted", f"{self.stop.reason}, before the first step")
        return Ending("cancelled", "the loop was left before its first step")

    def _publish(self, journal: Journal, ending: Ending) -> Outcome:
        if self._parts is not None:
            self._parts.feed.close()
            finish_saving(self._parts.saver, journal, must_hold=False)
        self._company.pulse.ended(ending.status)
        journal.sync()
        return publish_outcome(
            self.plan,
            job_id=self._job.job_id,
            status=ending.status,
            reason=safe_text(self.plan, self._job.job_id, ending.reason),
            progress=self._restored.progress,
            events=journal.events,
            started_at=self._started_at,
            inexact_because=self.inexact_because,
        )


def _forget(asked: Path) -> None:
    """Remove the request to cancel a job that has ended: it has no door that would."""
    with contextlib.suppress(StorageError):
        if asked.exists():
            remove(asked)


def _ending_of(error: BaseException, step: int) -> Ending:
    """The word for what left the block. The exception goes on to whoever opened the run."""
    if isinstance(error, Stopped):
        return Ending(error.outcome, error.message)
    cause = error.__cause__ if isinstance(error, TrnError) else None
    if is_out_of_memory(error) or is_out_of_memory(cause):
        return Ending("out_of_memory", str(error))
    if isinstance(cause, (KeyboardInterrupt, SystemExit)):  # in an evaluation
        return Ending("cancelled", str(error))
    if isinstance(error, TrnError):
        return Ending(error.code, str(error))
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
        return Ending("cancelled", f"the loop was left by {error!r} after step {step}")
    return Ending("trainer_raised", f"{type(error).__name__}: {error} (after step {step})")


def _saved_state(opened: Opened) -> dict[str, Any] | None:
    """The content of the checkpoint that the run goes on from. Raises ResumeRefused."""
    meta = opened.found.meta
    if meta is None:
        return None
    try:
        payload = load_payload(Path(opened.job.plan.run_dir), meta)
    except Exception as error:  # whatever a file may do to the loader
        first = (str(error).splitlines() or [""])[0]
        raise ResumeRefused(
            f"it cannot be loaded: {type(error).__name__}: {first}", where=_checkpoint(opened)
        ) from error
    if {"trainer", "progress", "rng"} - set(payload) or payload["progress"] != meta.progress or not payload["rng"]:
        raise ResumeRefused("its parts and its meta do not fit together.", where=_checkpoint(opened))
    return payload


def _checkpoint(opened: Opened) -> str:
    return "" if opened.found.meta is None else f"checkpoints/{opened.found.meta.file}"


@contextlib.contextmanager
def settings_put_back() -> Iterator[None]:
    """Afterwards torch and the collector are set as before: the process goes on without the run."""
    undo: list[Callable[[], None]] = []
    threads, is_determined = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, deterministic = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    if not gc.get_freeze_count():
        undo.append(gc.unfreeze)
    if not gc.isenabled():
        undo.append(gc.disable)
    try:
        yield
    finally:
        for one in undo:
            one()
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(is_determined, warn_only=warns)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, deterministic
