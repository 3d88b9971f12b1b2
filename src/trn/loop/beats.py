"""The event `heartbeat`: that steps are still made, for whoever has only the events.

It comes after a step, at most one each `heartbeat_s`. What beats also while no step ends is a file of its own, see
trn.runner.beating. Not here: when it is asked; the loops compare `due_s` with the clock that they have read anyway.
"""

from __future__ import annotations

import time
from math import inf

from trn.journal import EventLog
from trn.loop.cadences import epoch_of
from trn.loop.pulse import Pulse
from trn.spec.plan_model import Plan

__all__ = ["Beats"]


class Beats:
    """Those of one job, from when its loop begins; with an interval of 0 none is ever due."""

    def __init__(self, plan: Plan, events: EventLog, pulse: Pulse) -> None:
        self._plan, self._events, self._pulse = plan, events, pulse
        self._since_s, self._waited_s = time.perf_counter(), pulse.waited_total_s
        self.due_s = self._since_s + plan.heartbeat_s if plan.heartbeat_s else inf
        """When the next may come, by time.perf_counter()."""

    def beat(self, step: int, now_s: float) -> None:
        """Tell of `step`, which ended now, and of the share of the time since the last beat that waited for data."""
        waited_s = self._pulse.waited_total_s - self._waited_s
        share = min(1.0, max(0.0, waited_s / (now_s - self._since_s)))  # ranks have a clock each
        self._events.emit("heartbeat", step=step, epoch=epoch_of(self._plan, step), data_wait_share=round(share, 4))
        self._since_s, self._waited_s = now_s, self._pulse.waited_total_s
        self.due_s = now_s + self._plan.heartbeat_s
