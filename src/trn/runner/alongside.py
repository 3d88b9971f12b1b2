"""What goes on beside a job, on its behalf and never in its way: the heartbeat of its rank, and the mirror of its log.

A job that is refused leaves nothing: until it is admitted, what there is to write into the folder of a run that is
older than the job stays in memory. A new run's folder is taken back as a whole, so there writing begins at once.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from trn.loop.pulse import Pulse
from trn.ranks.words import Ended
from trn.runner.beating import Heartbeat
from trn.runner.company import Company
from trn.runner.fence import RunTaken
from trn.runner.mirror import Mirror, mirroring
from trn.spec.plan_model import LogPlan, Plan

__all__ = ["Alongside", "alongside"]

_OFF = LogPlan(enabled=False, filename="off", capture_stdout=False, capture_stderr=False)
T = TypeVar("T")
_logger = logging.getLogger("trn")


class Alongside:
    """To be told that the job is not refused, and how it ended."""

    def __init__(self, pulse: Pulse, heartbeat: Heartbeat, mirror: Mirror | None) -> None:
        self._pulse, self._heartbeat, self._mirror = pulse, heartbeat, mirror
        self._is_admitted = False

    def admit(self) -> None:
        """From now on both are written; asked again, nothing happens."""
        if not self._is_admitted:
            self._is_admitted = True
            self._heartbeat.admit()
            if self._mirror is not None:
                self._mirror.admit()

    def fenced(self, work: Callable[[], T]) -> T:
        """What `work` gives; where the run turns out to be another one's, no more of the heartbeat is written."""
        try:
            return work()
        except RunTaken:
            self._heartbeat.drop()
            raise

    def ended(self, status: str | None, step: int, reason: str) -> None:
        """The job has its outcome; None where this rank does not know it."""
        self._pulse.ended(status)
        _logger.info("%s at step %d: %s", status or "ended", step, reason)

    def _end(self) -> None:
        if not self._is_admitted:
            self._heartbeat.drop()
        self._heartbeat.stop()


@contextlib.contextmanager
def alongside(plan: Plan, job_id: str, company: Company, *, is_new: bool) -> Iterator[Alongside]:
    """Inside there is a heartbeat, and on rank 0 the mirror; how the block is left is their last word."""
    run_dir, world, pulse = Path(plan.run_dir), company.world, company.pulse
    with mirroring(plan.log if world.rank == 0 else _OFF, run_dir) as mirror:
        heartbeat = Heartbeat(plan, pulse, world, job_id=job_id)
        beside = Alongside(pulse, heartbeat, mirror)
        heartbeat.start()
        if is_new:
            beside.admit()
        _logger.info("job %s of run %s, plan %s", job_id, plan.run_id, plan.fingerprint[:12])
        try:
            yield beside
        except Ended:
            pulse.ended(None)
            raise
        except BaseException as error:
            pulse.failed(error)
            raise
        finally:
            beside._end()
