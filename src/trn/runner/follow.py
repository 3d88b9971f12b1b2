"""A rank that is not the first: it does what rank 0 says, trains in step with it, and writes nothing."""

from __future__ import annotations

import contextlib
import math
import os
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from trn.checkpoint.meta import CheckpointMeta
from trn.checkpoint.saver import Moment, Saver
from trn.errors import STATUS, PeerFailed, RankLost, ResumeRefused, TrainerError, TrnError
from trn.journal import EventLog, MetricsLog
from trn.loop.loop import Ending, Parts, train
from trn.loop.progress import Progress
from trn.loop.stop import StopRequest
from trn.plan import NOT_LIBRARIES, use_spec_folder, versions_here
from trn.provenance.code import code_sha256
from trn.ranks import error_file
from trn.ranks.words import Ended
from trn.records import EMPTY, Json, JsonError, Position
from trn.reopen import prepare_torch, progress_of
from trn.runner.alongside import Alongside, alongside
from trn.runner.company import Company, Job0, outcome_of
from trn.runner.console import say, speak_as
from trn.runner.make import make
from trn.runner.reading import open_feed, validation_of
from trn.runner.transforming import open_batches
from trn.trainer import load_trainer

__all__ = ["follow"]

_FOLLOWED = "rank 0 ended the job"


def follow(company: Company, stop: StopRequest) -> int:
    """Take part in the job that rank 0 leads; returns the exit status, which is rank 0's wherever that is known."""
    ranks = company.ranks
    assert ranks is not None, "a world of one has nobody to follow"
    speak_as(f"rank {ranks.rank}: ")
    own: int | None = None
    code: int | None = None
    reason, patience_s = _FOLLOWED, math.inf
    try:
        job = company.unless_lost(lambda: company.hear_job(stop))
        is_new = not (Path(job.plan.run_dir) / "reports/events.jsonl").exists()
        with alongside(job.plan, job.job_id, company, is_new=is_new) as beside:
            ending, step = company.unless_lost(partial(_take_part, company, job, stop, beside))
            company.watchdog.rest()
            code = ranks.ending()  # rank 0 may export, and that may make another outcome of it
            is_same = code == STATUS[ending.status].exit
            beside.ended(ending.status if is_same else None, step, ending.reason)
    except Ended as error:
        own = error.exit_status
    except PeerFailed as error:
        own, reason = error.exit_status, str(error)
    except BaseException as error:  # noqa: BLE001 - the boundary of the process: rank 0 is told, whatever it is
        if os.getpid() != company.owner:
            os._exit(1)  # a child that the trainer forked: it speaks for nobody
        own = STATUS[outcome_of(error)].exit
        reason = str(error) if isinstance(error, TrnError) else f"{type(error).__name__}: {error}"
        _report(error)
        error_file.write(own, reason)
        ranks.fail(outcome_of(error), reason)
        if isinstance(error, RankLost):
            patience_s = 2.0  # perhaps it was rank 0 that is lost
    company.watchdog.rest()
    company.last_word.take()
    if own is not None:
        code = ranks.ending(timeout_s=patience_s)
    if code is None:
        code, reason = own or STATUS["rank_lost"].exit, reason if own else "rank 0 is gone"
    if code:
        error_file.write(code, reason, is_cause=reason != _FOLLOWED)
    ranks.disconnect()
    company.watchdog.stop()
    ranks.depart()
    return code


def _report(error: BaseException) -> None:
    if isinstance(error, TrainerError) and error.__cause__ is not None:
        say("".join(traceback.format_exception(error.__cause__)).rstrip())
    elif not isinstance(error, TrnError):
        say("".join(traceback.format_exception(error)).rstrip())


def _take_part(company: Company, job: Job0, stop: StopRequest, beside: Alongside) -> tuple[Ending, int]:
    """Train in step with rank 0; returns how the loop ended, and at which step."""
    plan, run_dir = job.plan, Path(job.plan.run_dir)
    use_spec_folder(Path(plan.spec_folder))
    trainer = load_trainer(plan.trainer.name)
    if code_sha256(type(trainer).__module__) != plan.trainer.code_sha256:
        raise ResumeRefused(
            "the trainer's code is not that of rank 0.",
            where=plan.trainer.module,
            hint="Let all ranks see the same files.",
        )
    if (here := versions_here(tuple(name for name in plan.versions if name not in NOT_LIBRARIES))) != plan.versions:
        name = next(name for name in plan.versions if here.get(name) != plan.versions[name])
        raise ResumeRefused(
            f"this rank has {here.get(name)!r}, rank 0 has {plan.versions[name]!r}.",
            where=f"versions.{name}",
            hint="Install the same on all machines.",
        )
    prepare_torch(plan)
    company.watch_each_other()
    stop.limit_runtime(0.0)  # rank 0 looks at the clock for all
    meta = None if job.checkpoint is None else _read_meta(run_dir / "checkpoints" / job.checkpoint)
    made = make(plan, trainer, meta, stop, company)
    beside.admit()
    if made.error is not None:
        raise made.error
    progress = Progress() if meta is None else progress_of(meta)
    ranks = company.ranks
    assert ranks is not None, "a follower has somebody to follow"

    def give_up(error: TrnError) -> None:
        company.leave(error, tell=lambda: ranks.fail(outcome_of(error), str(error)))

    feed = open_feed(plan, progress, company, stop)
    with contextlib.closing(open_batches(plan, trainer, made.ctx, feed, stop)) as batches:
        parts = Parts(
            plan=plan,
            trainer=trainer,
            state=made.state,
            ctx=made.ctx,
            feed=batches,
            validation=validation_of(plan, company.world),
            metrics=_SilentMetrics(run_dir / "reports/train_metrics.jsonl"),
            val_metrics=_SilentMetrics(run_dir / "reports/val_metrics.jsonl"),
            events=_SilentEvents(),
            saver=_SilentSaver(),
            stop=stop,
            agreement=made.agreement,
            watchdog=company.watchdog,
            pulse=company.pulse,
        )
        company.watchdog.watch(hang_s=plan.hang_s, give_up=give_up)
        ending = train(parts, progress, {} if meta is None else meta.metrics)
        return ending, progress.step


def _read_meta(path: Path) -> CheckpointMeta:
    try:
        return CheckpointMeta.read(path)
    except (OSError, JsonError) as error:
        raise ResumeRefused(
            f"rank 0 goes on from it, and it cannot be read here: {error}.",
            where=str(path),
            hint="Let all ranks see the same folder of runs.",
        ) from error


class _SilentEvents(EventLog):
    """Rank 0 tells them."""

    def __init__(self) -> None:
        self.seq = 0

    def emit(self, event: str, **fields: Any) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


class _SilentMetrics(MetricsLog):
    """Rank 0 writes them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def position(self) -> Position:
        return EMPTY

    def append(self, line: Any) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


class _SilentSaver(Saver):
    """Rank 0 saves."""

    def __init__(self) -> None: ...
    def save(self, state: dict[str, Any], moment: Moment) -> None: ...
    def committed(self) -> list[CheckpointMeta]:
        return []

    def mark_best(self, step: int) -> None: ...
    def complete_epoch(self, step: int, metadata: Json) -> None: ...
    def retract(self, step: int, *, epochs_over: int, best_step: int | None) -> None: ...
    def wait(self) -> None: ...
