"""The metrics of a run as batches of lines, each sent under one key until it is answered.

    {"run_id", "job_id", "lines": [lines of train_metrics.jsonl], "cut_above_step": null | step}

`cut_above_step` comes before the lines: what the other side has above that step is void. It is said where a resume cut
the file back, where a batch that was never answered cannot be repeated as it was, and with the first batch of all.
Not here: when a batch is due, and how it travels.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from trn.files import new_sha256
from trn.records import sha256_json
from trn.sinks.reader import Anchor, CurveReader
from trn.worker.upload_spool import InFlight, Spool

__all__ = ["Metrics"]

Json = dict[str, Any]

_LINES = 500
_WAITS_FOR_RESUME = 20


class Metrics:
    """What is to be told next of a metrics file. For one thread."""

    def __init__(self, path: Path, spool: Spool, run_id: str, job_id: str) -> None:
        self._path, self._spool, self._run_id, self._job_id = path, spool, run_id, job_id
        self._most_lines = _LINES
        self._vanished = 0

    def follow(self, seq: int, step: int) -> None:
        """The event `seq` said that the run went back to `step`."""
        state = self._spool.state
        if seq <= state.resumed_seq:
            return
        self._spool.state = replace(state, resumed_seq=seq)
        if state.in_flight is not None and (state.in_flight.end.step > step or self._batch() is None):
            self._forget_flight()
        reader = CurveReader(self._path, state.anchor)
        if state.anchor.step > step or not reader.stands():
            self._go_back(step)

    def next(self, *, is_last: bool) -> tuple[Json, str] | None:
        """The batch to send and its key; None where there is nothing new. Raises StorageError, OSError.

        The same again, until `taken` or `refused`.
        """
        if self._spool.state.in_flight is not None:
            if found := self._batch():
                return found
            self._forget_flight()
        if not CurveReader(self._path, self._spool.state.anchor).stands():
            self._vanished += 1
            if self._vanished <= _WAITS_FOR_RESUME and not is_last:
                return None  # a resume says in a moment how far back it went
            self._go_back(0)
        self._vanished = 0
        state = self._spool.state
        lines, end = CurveReader(self._path, state.anchor).read(self._most_lines)
        if 0 < len(lines) < self._most_lines:  # the same again, without what follows them and is none
            lines, end = CurveReader(self._path, state.anchor).read(len(lines))
        if not lines and not (is_last and state.batches and state.cut_above_step is not None):
            return None
        self._spool.keep(replace(state, in_flight=InFlight(len(lines), end, sha256_json(lines), self._job_id)))
        return self._batch()

    def _batch(self) -> tuple[Json, str] | None:
        """The batch that is in flight, None where its lines do not stand any more."""
        state = self._spool.state
        flight = state.in_flight
        assert flight is not None, "asked only for one that there is"
        lines, end = CurveReader(self._path, state.anchor).read(flight.count) if flight.count else ([], state.anchor)
        if (len(lines), end) != (flight.count, flight.end) or sha256_json(lines) != flight.sha256:
            return None
        body = {
            "run_id": self._run_id,
            "job_id": flight.job_id,
            "lines": lines,
            "cut_above_step": state.cut_above_step,
        }
        named = "\0".join((self._run_id, "metrics", state.name, str(state.batches)))
        return body, new_sha256(named.encode()).hexdigest()

    def taken(self) -> None:
        """The batch was accepted."""
        state = self._spool.state
        assert state.in_flight is not None, "asked only for one that was sent"
        anchor = state.in_flight.end
        self._most_lines = min(_LINES, self._most_lines + 1 + self._most_lines // 8)
        self._spool.save(anchor=anchor, cut_above_step=None, in_flight=None, batches=state.batches + 1)

    def too_large(self) -> bool:
        """It was refused for its size: the next is half as long. False where it was one line, which is left out."""
        state = self._spool.state
        assert state.in_flight is not None, "asked only for one that was sent"
        count = state.in_flight.count
        self._most_lines = max(1, count // 2)
        anchor = state.anchor if count > 1 else state.in_flight.end
        self._spool.save(anchor=anchor, in_flight=None, batches=state.batches + 1)
        return count > 1

    def has_more(self) -> bool:
        state = self._spool.state
        return state.in_flight is not None or CurveReader(self._path, state.anchor).peek() is not None

    def _forget_flight(self) -> None:
        """It cannot be repeated, and nobody knows whether it arrived: whatever came after the last answer is void."""
        state = self._spool.state
        cut = _lower(state.cut_above_step, state.anchor.step)
        self._spool.state = replace(state, in_flight=None, batches=state.batches + 1, cut_above_step=cut)

    def _go_back(self, step: int) -> None:
        reader = CurveReader(self._path, Anchor())
        reader.rewind(step)
        state = self._spool.state
        cut = _lower(state.cut_above_step, reader.anchor.step)
        self._spool.state = replace(state, anchor=reader.anchor, cut_above_step=cut)


def _lower(before: int | None, step: int) -> int:
    return step if before is None else min(before, step)
