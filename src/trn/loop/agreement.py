"""What the ranks of a run agree on at each step: whether to stop, whether the step was made, and what came out of it.

One exchange a step. Every rank then goes on from the same facts, so that all that follows from them (gates, cadences,
checkpoints, the ending) is the same on every rank without another word. A world of one agrees with itself, for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from trn.errors import TrainerError
from trn.loop.stop import StopRequest
from trn.ranks.group import Group

__all__ = ["Agreement"]

_STOPS = ("preempted", "cancelled", "time_limit")
_AT_ONCE = 8
_DIGEST = (1 << 52) - 1
"""What a float64 holds exactly."""
_UNREAD = -math.inf
"""Where nobody reads a sensor."""


class Agreement:
    """Asked at the same places by all ranks."""

    def __init__(self, group: Group, stop: StopRequest) -> None:
        self._group, self._stop = group, stop
        self._is_alone = group.world_size == 1
        self._is_stopping = False
        self._has_met = False

    def stop_requested(self) -> bool:
        """Whether to stop: once one rank was asked to, all of them are."""
        if self._is_alone:
            return self._stop.requested()
        if not (self._has_met or self._is_stopping):
            self._meet([])
        self._has_met = False
        return self._is_stopping

    def is_stopping(self) -> bool:
        """What `stop_requested` said last, without asking: for a trainer's own code."""
        return self._stop.requested() if self._is_alone else self._is_stopping

    def step_made(
        self,
        step: int,
        values: Mapping[str, float],
        tokens: int | None,
        wall_s: float,
        waited_s: float,
        gpu_util_pct: float | None = None,
    ) -> tuple[float, float, float | None]:
        """The step is made on all ranks; returns (seconds it took, seconds it waited for data, gpu_util_pct).

        The seconds are those of the slowest, the percent the mean of those that have a reading. Raises TrainerError
        where the ranks did not come to the same values.
        """
        if self._is_alone:
            return wall_s, waited_s, gpu_util_pct
        values = {**values, "tokens": -1 if tokens is None else tokens}
        rows = self._meet([1.0, _digest(values), wall_s, waited_s, _UNREAD if gpu_util_pct is None else gpu_util_pct])
        self._require_alike(step, rows)
        if len({row[1] for row in rows}) > 1:
            self._tell_apart(step, values)
        return max(row[2] for row in rows), max(row[3] for row in rows), _mean([row[4] for row in rows])

    def step_refused(self, step: int) -> None:
        """The step was refused before its update, on all ranks. Raises TrainerError where it was made on some."""
        if not self._is_alone:
            self._require_alike(step, self._meet([0.0, 0.0, 0.0, 0.0, _UNREAD]))

    def gather(self, value: Any) -> list[Any]:
        """A JSON value of each rank."""
        return self._group.gather(value)

    def row_ids(self, own: Sequence[int]) -> list[int]:
        """The rows of a whole batch, of which each rank has its own."""
        return [row for part in self._group.gather(list(own)) for row in part]

    def require_same(self, where: str, values: Mapping[str, float]) -> None:
        """Raise TrainerError where the ranks do not have the same values."""
        if not self._is_alone:
            rows = self._meet([_digest(values)])
            if len({row[0] for row in rows}) > 1:
                self._tell_apart(where, values)

    def _meet(self, facts: Sequence[float]) -> list[list[float]]:
        """The facts of every rank; and the first of them that was asked to stop stops all."""
        own = 0
        if self._stop.requested() and self._stop.outcome in _STOPS:
            own = 1 + _STOPS.index(self._stop.outcome) + (_AT_ONCE if self._stop.at_once else 0)
        rows = self._group.exchange([float(own), *facts])
        asked = [(rank, int(row[0])) for rank, row in enumerate(rows) if row[0]]
        if asked:
            rank, code = asked[0]
            self._stop.ask(_STOPS[code % _AT_ONCE - 1], f"rank {rank} was asked to stop")
            self._stop.at_once = self._stop.at_once or any(code > _AT_ONCE for _, code in asked)
            self._is_stopping = True
        self._has_met = True
        return [row[1:] for row in rows]

    def _require_alike(self, step: int, rows: Sequence[Sequence[float]]) -> None:
        made = {rank for rank, row in enumerate(rows) if row[0]}
        if made and len(made) < len(rows):
            refused = sorted(set(range(len(rows))) - made)
            raise TrainerError(
                f"rank {refused[0]} refused it, rank {min(made)} made it; they are no longer the same.",
                where=f"step {step}",
                hint="A trainer must judge what is the same on all ranks: sums over them, not its own part.",
            )

    def _tell_apart(self, step: int | str, values: Mapping[str, float]) -> None:
        found = self._group.gather(dict(values))
        first = found[0]
        for rank, other in enumerate(found):
            for name in first.keys() | other.keys():
                if first.get(name) != other.get(name):
                    raise TrainerError(
                        f"{name} is {first.get(name)!r} on rank 0 and {other.get(name)!r} on rank {rank}; what a step "
                        "reports must be of the whole batch, and the same on all ranks.",
                        where=f"step {step}" if isinstance(step, int) else step,
                        hint="Sum it with ctx.ranks before it is returned.",
                    )


def _mean(readings: Sequence[float]) -> float | None:
    """Of those that there are; one that is impossible as it is, so that no mean hides it from the gate."""
    known = [one for one in readings if one != _UNREAD]
    impossible = next((one for one in known if not 0.0 <= one <= 100.0), None)
    return impossible if impossible is not None else (fmean(known) if known else None)


def _digest(values: Mapping[str, float]) -> float:
    """The same on two ranks where the values are; numbers hash alike in every process."""
    return float(hash(tuple(values.values())) & _DIGEST)
