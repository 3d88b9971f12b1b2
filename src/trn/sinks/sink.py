"""The two interfaces of all sinks, and the two ways in which sending can fail.

A sink is told what to write and knows nothing of files, positions or patience: those are the relay's. It is made,
used and closed on one thread of its own, in a process beside the run's; what it does costs the run nothing, and what
it raises ends nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["Curve", "CurveSink", "EventSink", "Json", "Refused", "RunFacts", "Unreachable"]

Json = dict[str, Any]
Curve = Literal["train", "val"]


class Unreachable(Exception):
    """The target cannot take it now: it is asked again later, with what it then says it has.

    `retry_after_s` is the target's own wish, None where it has none.
    """

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


class Refused(Exception):
    """The target will never take it: what was being sent is dropped, counted, and told once.

    `lost` counts what was not taken, where that is not all of it. With `of_target`, or where it is raised before
    anything is sent, no batch would fare better (a wrong password, a missing library): then nothing is dropped, the
    target is asked again now and then, and at the end of the job nobody waits for it.
    """

    def __init__(self, reason: str, *, of_target: bool = False, lost: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.of_target = of_target
        self.lost = lost


@dataclass(frozen=True)
class RunFacts:
    """What a sink may know of the run: its names, its folder, and its plan as it was published."""

    run_id: str
    run_dir: Path
    job_id: str
    plan: Json = field(default_factory=dict)
    """The content of reports/resolved_config.json: trainer, hyperparameters, seed, experiment ..."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """Where secrets are that a target names by a variable."""

    @property
    def reports(self) -> Path:
        return self.run_dir / "reports"


class EventSink(ABC):
    """Takes the events of one run, in the order of their `seq`, which rises and may have gaps."""

    batch: int = 256
    """How many events it is given at once, at the most."""

    @abstractmethod
    def last_seq(self) -> int | None:
        """The `seq` of the last event of this run that the target has; 0 without one.

        None where it cannot tell: then the relay's own position counts, and an event may be sent twice. Connects, if
        that is how it is reached; asked before the first `send`, and again after each Unreachable. Raises
        Unreachable, Refused.
        """

    @abstractmethod
    def send(self, events: Sequence[Json]) -> None:
        """Deliver all of them, in this order; returns when the target has them. Raises Unreachable, Refused."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything. Called once, also after a failure; raises nothing."""


class CurveSink(ABC):
    """Takes the metrics of one run: lines of train_metrics.jsonl and val_metrics.jsonl, which have a `step`.

    begin(0)     write* (cut write*)*  close        a target that is begun anew
    begin(step)  write* (cut write*)*  close        one that has all up to `step` from an earlier process
    """

    @abstractmethod
    def begin(self, from_step: int) -> None:
        """Open the target: it has what was written up to `from_step`, and what it may have above that is void.

        0: whatever it has of this run is void. Called again after each Unreachable. Raises Unreachable, Refused.
        """

    @abstractmethod
    def write(self, kind: Curve, lines: Sequence[Json]) -> None:
        """Write lines of one of the two files, their steps rising; on return they are safe from a kill of this process.

        Raises Unreachable, Refused.
        """

    @abstractmethod
    def cut(self, step: int) -> None:
        """The run went back: all above `step` is void, and will be written again. Raises Unreachable, Refused."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything. Called once, also after a failure; raises nothing."""
