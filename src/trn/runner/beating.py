"""The heartbeat of a rank: what its periodic beats say, from the system and from what the loop is at.

Nothing here is asked of the main thread, so a hang still beats; nothing draws from a random stream.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # psutil ships no types
import torch

from trn.journal.heartbeat import HeartbeatLog
from trn.loop.cadences import epoch_of
from trn.loop.pulse import Pulse
from trn.plan.device import leased_name
from trn.ranks import World
from trn.records import Json
from trn.runner.console import say
from trn.runner.telemetry import RunTelemetry
from trn.spec.plan_model import Plan

__all__ = ["Heartbeat"]


class Heartbeat:
    """Beats from `start` to `stop`, every `plan.heartbeat_s`; with 0 there is none. Hears the marks of `pulse`.

    Readings of the accelerators are taken meanwhile in any case: the steps' lines want them too.
    """

    def __init__(self, plan: Plan, pulse: Pulse, world: World, *, job_id: str) -> None:
        self._plan, self._pulse, self._world = plan, pulse, world
        self._process = psutil.Process()
        self._telemetry = RunTelemetry(plan, pulse, world)
        path = Path(plan.run_dir) / "reports" / f"train_heartbeat.rank{world.rank}.jsonl"
        interval_s = plan.heartbeat_s
        self._log = (
            HeartbeatLog(path, job_id=job_id, interval_s=interval_s, read=self._read, warn=say) if interval_s else None
        )

    def start(self) -> None:
        self._telemetry.start()
        if self._log is not None:
            self._process.cpu_percent()  # what it answers is since the last time it was asked
            self._log.start()
            self._pulse.mark = self._mark
            self._mark("heartbeat_enabled", rank=self._world.rank, pid=os.getpid(), interval_s=self._plan.heartbeat_s)

    def admit(self) -> None:
        """The job is not refused: its marks may be written."""
        if self._log is not None:
            self._log.admit()

    def drop(self) -> None:
        """The job was refused."""
        if self._log is not None:
            self._log.drop()

    def stop(self) -> None:
        self._telemetry.stop()
        if self._log is not None:
            self._log.stop()

    def _mark(self, event: str, **fields: Any) -> None:
        if self._log is not None:
            self._log.mark(event, **self._place(), **fields)

    def _place(self) -> Json:
        if self._pulse.progress is None:
            return {"step": None, "epoch": None}
        step = self._pulse.progress.step
        return {"step": step, "epoch": epoch_of(self._plan, step)}

    def _read(self) -> Json:
        pulse = self._pulse
        ended_s = pulse.ended_s
        return {
            **self._place(),
            "doing": pulse.doing,
            "since_step_s": None if ended_s is None else round(time.perf_counter() - ended_s, 3),
            "rss_bytes": int(self._process.memory_info().rss),
            "device_bytes": _device_bytes(self._plan.device, self._world.local_rank),
            "cpu_pct": float(self._process.cpu_percent()),
            **self._telemetry.beat(),
            "data_wait_s": pulse.waited_s,
            "data_wait_total_s": pulse.waited_total_s,
            "threads": int(self._process.num_threads()),
        }


def _device_bytes(device: str, local_rank: int) -> int | None:
    """Memory that this process has allocated on its device; None where it has none of its own, or has not begun."""
    kind, _, index = leased_name(device, os.environ).partition(":")
    if kind == "cuda" and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch does not say
        mine = int(index or local_rank)  # "the current one" is another thread's
        return torch.cuda.memory_allocated(mine if mine < torch.cuda.device_count() else 0)  # shown its own alone
    if kind == "mps":
        return torch.mps.current_allocated_memory()
    return None
