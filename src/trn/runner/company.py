"""The ranks around this one, from their meeting to the one exit status of all; in a world of one, none.

    rank 0                                  the others
    meet                                    meet
    plan, refuse or publish                 wait for word of the job            (store)
    tell_job  ---------------------------> plan, checkpoint
    assemble: all are there, connect        assemble                            (store, then collectives)
    make, compare                           make, compare
    loop                                    loop, writing nothing               (collectives)
    outcome, then `end` -----------------> leave with the same exit status

Whoever fails says so at once (`Ranks.fail`); rank 0 makes the outcome of it, whichever rank it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from trn.errors import STATUS, PeerFailed, PlanRefused, RankLost, Stopped, TrnError
from trn.loop.pulse import Pulse
from trn.loop.stop import StopRequest
from trn.ranks import World, error_file
from trn.ranks.group import Alone, Group
from trn.ranks.processes import Ranks, join
from trn.ranks.watchdog import Watchdog
from trn.ranks.words import BROKEN_S, POLL_S, Silence
from trn.runner.console import say
from trn.spec.plan_model import Plan

__all__ = ["Company", "Job0", "LastWord", "is_out_of_memory", "lead", "meet", "outcome_of", "refuse_stopped"]

T = TypeVar("T")
_DEPART_S = 15.0
"""How long rank 0 waits for the others to hear how it ended; those that are gone are not waited for."""
_BY_ITSELF_S = 10.0
_LAST_WORD_S = 15.0


@dataclass(frozen=True)
class Job0:
    """What rank 0 tells the others of the job."""

    plan: Plan
    job_id: str
    checkpoint: str | None
    """File name of the meta to begin from."""

    def to_json(self) -> dict[str, Any]:
        return {"plan": self.plan.to_json(), "job_id": self.job_id, "checkpoint": self.checkpoint}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Job0:
        """Of a sibling, whose word is not doubted."""
        return cls(Plan.model_validate(value["plan"], strict=False), value["job_id"], value["checkpoint"])


@dataclass(frozen=True)
class Company:
    """This process's place, and who is with it."""

    world: World = field(default_factory=World)
    ranks: Ranks | None = None
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(None))
    last_word: LastWord = field(default_factory=lambda: LastWord())
    pulse: Pulse = field(default_factory=Pulse)
    """What this process is at."""
    owner: int = field(default_factory=os.getpid)
    arrow: Path | None = None
    """The training data decoded, where whoever started this process has handed them over."""

    @property
    def group(self) -> Group:
        return self.ranks or Alone()

    def tell_job(self, job: Job0) -> None:
        """For rank 0."""
        if self.ranks is not None:
            self.ranks.silence_s = job.plan.grace_s
            self.ranks.tell("job", job.to_json())

    def hear_job(self, stop: StopRequest) -> Job0:
        """For the others."""
        assert self.ranks is not None, "a world of one has nobody to hear"
        job = Job0.from_json(self.ranks.hear("job", of=0, until=lambda: refuse_stopped(stop)))
        self.ranks.silence_s = job.plan.grace_s
        return job

    def assemble(self, device: torch.device, stop: StopRequest) -> None:
        """Connect, once all ranks are ready for it."""
        ranks = self.ranks
        if ranks is None:
            return
        ranks.tell(f"ready/{ranks.rank}", True)
        for rank in range(ranks.world_size):
            ranks.hear(f"ready/{rank}", of=rank, until=lambda: refuse_stopped(stop))
        ranks.open(device)

    def watch_each_other(self) -> None:
        """From the first word of the job on, notice a rank that is gone, also while this one waits in a collective."""
        ranks = self.ranks
        if ranks is None:
            return

        def give_up(error: TrnError) -> None:
            time.sleep(_BY_ITSELF_S)  # whoever can end by itself does that, with an outcome
            self.leave(error, tell=lambda: ranks.fail(outcome_of(error), str(error)))

        self.watchdog.watch(hang_s=0.0, give_up=give_up)

    def leave(self, error: TrnError, *, tell: Callable[[], None]) -> NoReturn:
        """End this process now: its main thread cannot be asked to."""
        code = error.exit_status
        self.pulse.failed(error)

        def tell_all() -> None:
            tell()
            if self.ranks is not None and self.ranks.rank == 0:
                self.ranks.end(code)
                self.ranks.wait_for_departures(_DEPART_S)

        self.last_word.leave(code, str(error), tell=tell_all)

    def telling(self, work: Callable[[], T]) -> T:
        """What `work` gives; where it raises, the others hear of it at once and wait no longer."""
        try:
            return self.unless_lost(work)
        except BaseException as error:
            if os.getpid() != self.owner:
                os._exit(1)  # a child that the trainer forked: it speaks for nobody
            self.pulse.failed(error)
            if self.ranks is not None and not isinstance(error, PeerFailed):
                self.ranks.fail(outcome_of(error), str(error))
            raise

    def unless_lost(self, work: Callable[[], T]) -> T:
        """What `work` gives. A stop that it raises is believed once all other ranks gave a sign of life.

        Launchers ask all to stop where one is gone. Raises RankLost naming those that give none, or PeerFailed.
        """
        try:
            return work()
        except Stopped as error:
            if error.outcome == "preempted" and os.getpid() == self.owner:
                self._require_others()
            raise

    def _require_others(self) -> None:
        ranks = self.ranks
        if ranks is None:
            return
        others = [rank for rank in range(ranks.world_size) if rank != ranks.rank]
        silence, last = Silence(ranks, others, BROKEN_S), {rank: ranks.beat_of(rank) for rank in others}
        try:
            while any(ranks.beat_of(rank) == last[rank] for rank in others):
                silence.check()
                time.sleep(POLL_S)
        except RankLost:
            if failure := ranks.failure_kept():  # it said why, and left
                raise failure from None
            raise

    def require_same_start(self, marks: list[float]) -> None:
        """Raise PlanRefused where the ranks did not build the same weights; what a failed rank said, as PeerFailed."""
        found = self.group.gather(marks)
        differing = [rank for rank, other in enumerate(found) if other != found[0]]
        if differing:
            raise PlanRefused(
                f"rank {differing[0]} built other weights than rank 0.",
                where="build or configure",
                hint="Draw weights from torch's global generator only, which is seeded alike on all ranks.",
            )


def refuse_stopped(stop: StopRequest) -> None:
    """Raise Stopped where a stop was asked for."""
    if stop.requested():
        raise Stopped(stop.outcome or "preempted", f"{stop.reason}, before the run began.")


def meet(world: World, stop: StopRequest) -> Company:
    """Join the other ranks, with signs of life from now on. Raises RankLost, Stopped."""
    ranks = join(world, lambda: refuse_stopped(stop))
    watchdog = Watchdog(ranks)
    watchdog.start()
    return Company(world, ranks, watchdog)


def lead(company: Company, work: Callable[[Company], int]) -> int:
    """Rank 0's part: do `work`, whose exit status becomes everybody's."""
    ranks = company.ranks
    assert ranks is not None, "a world of one has nobody to lead"
    code, reason = STATUS["crashed"].exit, "rank 0 did not come to an end of its own"
    try:
        code = company.unless_lost(lambda: work(company))
        reason = f"the job ended with exit status {code}"
        return code
    except TrnError as error:
        code, reason = error.exit_status, str(error)
        ranks.fail(outcome_of(error), reason)
        raise
    except OSError as error:
        code, reason = STATUS["io_error"].exit, str(error)
        raise
    finally:
        if code:
            error_file.write(code, reason, is_cause=ranks.failure_kept() is None)
        ranks.end(code)
        ranks.wait_for_departures(_DEPART_S)
        company.watchdog.stop()


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory was what is missing, on whatever device."""
    refused = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    refused = refused or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    return refused or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def outcome_of(error: BaseException) -> str:
    """The word of the outcome table that an exception ends with."""
    if is_out_of_memory(error) or (isinstance(error, TrnError) and is_out_of_memory(error.__cause__)):
        return "out_of_memory"
    if isinstance(error, (Stopped, PeerFailed)):
        return error.outcome
    return error.code if isinstance(error, TrnError) else "crashed"


class LastWord:
    """Who tells how the job ended: the main thread, or the watchdog in its place. Whoever takes it first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def take(self) -> None:
        """Comes back to the first who takes it, and never to another one: the process is about to end."""
        if not self._lock.acquire(blocking=False):
            while True:
                time.sleep(60)

    def leave(self, exit_status: int, reason: str, *, tell: Callable[[], None]) -> NoReturn:
        """End this process now, having told what there is to tell, if that is possible at all."""
        self.take()
        timer = threading.Timer(_LAST_WORD_S, lambda: os._exit(exit_status))
        timer.daemon = True
        timer.start()
        say(reason)
        with contextlib.suppress(Exception):  # the disk or the store may be what is stuck
            tell()
        error_file.write(exit_status, reason)
        os._exit(exit_status)
