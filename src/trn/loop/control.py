"""What a step may ask of the loop besides the next step: to hold back what is due after it, and to wait.

    skip_cadence_emit   no metric event and no sample after this step; a checkpoint or sample that its cadence asked for
                        comes after the next step that does not say so. Evaluations, what an epoch or a new best asks
                        for and the end of the run go on as ever.
    backoff_seconds     so long a pause after the step, that any request to stop ends within a second

With several ranks each must ask for the same: this is compared with the step's metrics.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

from trn.errors import TrainerError
from trn.trainer import Control

if TYPE_CHECKING:
    from trn.loop.loop import Parts
    from trn.loop.progress import Progress

__all__ = ["asked_of", "checked_control", "falls_due", "pause"]

_GLANCE_S = 0.25


def checked_control(control: Any, where: str) -> Control:
    """The control of a step, whose values are what the loop can obey. Raises TrainerError."""
    if not isinstance(control, Control):
        raise TrainerError(f"control is a {type(control).__name__}; expected a Control.", where=where)
    if type(control.skip_cadence_emit) is not bool:
        raise TrainerError(
            f"control.skip_cadence_emit is {control.skip_cadence_emit!r:.60}; expected True or False.", where=where
        )
    seconds = control.backoff_seconds
    if seconds is not None and not (type(seconds) in (int, float) and isfinite(seconds) and seconds >= 0):
        raise TrainerError(
            f"control.backoff_seconds is {seconds!r:.60}; expected a finite number of at least 0, or None.", where=where
        )
    return control


def asked_of(control: Control) -> dict[str, float]:
    """What ranks compare of it, by name."""
    seconds = -1.0 if control.backoff_seconds is None else float(control.backoff_seconds)
    return {"control.skip_cadence_emit": float(control.skip_cadence_emit), "control.backoff_seconds": seconds}


def falls_due(cadence: int, progress: Progress, *, since: int = 0, is_last: bool = False) -> bool:
    """Whether what comes at this cadence comes after the current step: by its number, or owed by steps just before.

    A step that holds back owes it to the next one that does not, unless no step follows it (`is_last`). What was due
    before step `since` is not owed. A cadence of 0 is never due.
    """
    if cadence <= 0 or (progress.holds_back and not is_last):
        return False
    step = progress.step
    before = max(step - progress.held_back, since) - 1
    return step // cadence > before // cadence


def pause(parts: Parts, seconds: float) -> None:
    """Wait, and look up often: ranks together, so that one that is asked to stop keeps none of them waiting."""
    left_s = seconds
    while left_s > 0 and not parts.agreement.stop_requested():
        parts.watchdog.step_ended()
        parts.stop.wait(min(left_s, _GLANCE_S))
        left_s -= _GLANCE_S
    parts.watchdog.step_ended()
