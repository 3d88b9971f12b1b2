"""What the accelerator of a rank is doing: for the step's line by way of the pulse, and for the heartbeat."""

from __future__ import annotations

import math
import os
import time

import torch

from trn.devices.drivers import Use
from trn.devices.telemetry import Reading, Telemetry
from trn.loop.pulse import STALE_S, Pulse
from trn.plan.device import leased_name
from trn.ranks import World
from trn.records import Json
from trn.spec.plan_model import Plan

__all__ = ["RunTelemetry"]


class RunTelemetry:
    """Reads between `start` and `stop`; of a run on the CPU there is nothing to read, and no thread."""

    def __init__(self, plan: Plan, pulse: Pulse, world: World, *, every_s: float = 1.0) -> None:
        self._pulse = pulse
        self._newest: Reading | None = None
        self._telemetry: Telemetry | None = None
        kind, _, number = leased_name(plan.device, os.environ).partition(":")
        self._reason = _WITHOUT.get(kind, f"nothing reads {kind}")
        if kind == "cuda":
            maker = "rocm" if torch.version.hip else "cuda"
            index = int(number or world.local_rank)
            self._telemetry = Telemetry(maker, index, os.environ, hear=self._hear, every_s=every_s)

    def start(self) -> None:
        if self._telemetry is not None:
            self._telemetry.start()

    def stop(self) -> None:
        if self._telemetry is not None:
            self._telemetry.stop()

    def beat(self) -> Json:
        """What a heartbeat says of this rank's device: null where it is unknown, with the reason."""
        newest, reason = self._newest, self._reason if self._telemetry is None else self._telemetry.reason
        if newest is not None and time.perf_counter() - newest.at_s > STALE_S:
            newest, reason = None, reason or "the driver does not answer"
        use = Use() if newest is None else newest.use
        total, free = use.memory_total_bytes, use.memory_free_bytes
        return {
            "gpu_util_pct": _finite(use.utilisation_pct),
            "gpu_memory_used_bytes": None if total is None or free is None else max(0, total - free),
            "gpu_power_w": _finite(use.power_w),
            "gpu_reason": reason,
        }

    def _hear(self, reading: Reading) -> None:
        self._newest = reading
        value = reading.use.utilisation_pct
        self._pulse.gpu = None if value is None else (value, reading.at_s)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


_WITHOUT = {"cpu": "the run has no accelerator", "mps": "macOS tells it to administrators only"}
