"""What the loop is at, in plain attributes: set where it happens, read by the thread that gives signs of life.

Setting them costs a step a third of a microsecond; the marks are for what happens once, or takes long.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trn.errors import TrainerError

if TYPE_CHECKING:
    from trn.loop.progress import Progress

__all__ = ["STALE_S", "Pulse"]

STALE_S = 5.0
"""A reading that is older says nothing of now: its driver hangs."""


def _no_mark(event: str, **fields: Any) -> None:
    """Where nobody listens."""


@dataclass
class Pulse:
    """One for each process; `mark` takes the name of what happens, and plain JSON values."""

    mark: Callable[..., None] = _no_mark
    doing: str = "start"
    """What the main thread is at: start, setup, configure, train, evaluate, save, export, train_end or end."""
    progress: Progress | None = None
    """How far the run is, once that is known."""
    ended_s: float | None = None
    """When the last step ended, by time.perf_counter()."""
    waited_s: float | None = None
    """How long that step waited for its data."""
    waited_total_s: float = 0.0
    """How long all steps of this job did."""
    gpu: tuple[float, float] | None = None
    """How busy the accelerators are in percent, and when that was read, by time.perf_counter(); None: nobody knows."""
    is_over: bool = False

    def gpu_util_pct(self, now_s: float) -> float | None:
        """The newest reading, as the driver gave it."""
        newest = self.gpu
        return None if newest is None or now_s - newest[1] > STALE_S else newest[0]

    def begin(self, doing: str) -> None:
        """Mark it, and be at it until the next."""
        self.doing = doing
        self.mark(doing)

    @contextlib.contextmanager
    def during(self, doing: str) -> Iterator[None]:
        """Mark it, be at it inside, and afterwards at what was before."""
        before, self.doing = self.doing, doing
        self.mark(doing)
        try:
            yield
        finally:
            self.doing = before

    def ended(self, outcome: str | None) -> None:
        """The job has come to its end; said once, and not after `failed`."""
        if not self.is_over:
            self.is_over, self.doing = True, "end"
            self.mark("ended", outcome=outcome)

    def failed(self, error: BaseException) -> None:
        """The job ends with this; of an error of the trainer's code the name is that of what it raised."""
        if not self.is_over:
            self.is_over, self.doing = True, "end"
            cause = error.__cause__ if isinstance(error, TrainerError) else None
            self.mark("failed", exc_type=type(error if cause is None else cause).__name__)
