"""One target's way from file to sink, a batch at a time: where it goes on, what comes next, and how much is left.

    EventFeed   events.jsonl ──────────────────> EventSink; goes on after what the sink says it has
    CurveFeed   events.jsonl ─ resumed ──cut───> CurveSink; goes on where both metrics files are safely written
                train_, val_metrics.jsonl ─────>

A feed keeps no batch between two calls, and moves its position only when the sink has taken what it was given. Not
here: patience with a sink that fails (relay).
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, get_args

from trn.sinks.position import Standing
from trn.sinks.reader import Anchor, CurveReader, EventReader
from trn.sinks.sink import Curve, CurveSink, EventSink, RunFacts, Unreachable

__all__ = ["CurveFeed", "EventFeed", "Feed", "feed_of"]

_EVENTS = 256
_LINES = 512
_CURVES: tuple[Curve, ...] = get_args(Curve)


class Feed(ABC):
    """What a relay drives. Each call but `close` raises what the sink raises, and OSError of the run's files."""

    @abstractmethod
    def connect(self) -> None:
        """Find out where to go on; called before the first `deliver`, and after each failure."""

    @abstractmethod
    def deliver(self) -> int:
        """Send the next batch; returns how many events or lines it had, 0 when there is nothing to send."""

    @abstractmethod
    def confirm(self) -> None:
        """Ask whether the sink still has what it took, and go back where it does not, if it can tell.

        One that cannot be reached is asked another time.
        """

    @abstractmethod
    def skip(self) -> int:
        """Leave out the batch that was refused; returns how many events or lines that were."""

    @abstractmethod
    def behind(self) -> int:
        """How many events or lines are still to be sent."""

    @abstractmethod
    def mark(self, standing: Standing) -> Standing:
        """The standing with the position as it is now."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the sink."""


class EventFeed(Feed):
    """The events of a run. Where the sink can tell what it has, that counts, and not the position."""

    def __init__(self, sink: EventSink, run: RunFacts, standing: Standing) -> None:
        self._sink = sink
        self._reader = EventReader(run.reports / "events.jsonl")
        self._taken = standing.seq, standing.offset
        self._refused = self._taken

    def connect(self) -> None:
        _require(self._reader)
        known = self._sink.last_seq()
        self._reader.seek(*self._taken if known is None or known == self._taken[0] else (known, 0))
        self._taken = self._reader.seq, self._reader.offset
        self._refused = self._taken

    def deliver(self) -> int:
        _require(self._reader)
        events = self._reader.read(self._sink.batch)
        here = self._reader.seq, self._reader.offset
        self._refused = here
        if events:
            self._sink.send(events)
        self._taken = here
        return len(events)

    def confirm(self) -> None:
        with contextlib.suppress(Unreachable):
            if self._sink.last_seq() not in (None, self._taken[0]):
                self.connect()

    def skip(self) -> int:
        before = self.behind()
        self._taken = self._refused
        return before - self.behind()

    def behind(self) -> int:
        reader = EventReader(self._reader.path)
        reader.offset = self._taken[1]
        return reader.behind()

    def mark(self, standing: Standing) -> Standing:
        return replace(standing, seq=self._taken[0], offset=self._taken[1])

    def close(self) -> None:
        self._sink.close()


class CurveFeed(Feed):
    """The metrics of a run. A resume cuts them back, which it says in an event before it writes new lines."""

    def __init__(self, sink: CurveSink, run: RunFacts, standing: Standing) -> None:
        self._sink = sink
        self._events = EventReader(run.reports / "events.jsonl")
        self._events.seek(standing.seq, standing.offset)
        self._files = {
            kind: CurveReader(run.reports / f"{kind}_metrics.jsonl", Anchor.from_json(standing.curves.get(kind)))
            for kind in _CURVES
        }
        self._refused: tuple[Curve, Anchor, int] | None = None
        self._vanished = 0

    def connect(self) -> None:
        """Go on above the last step that is in the sink for certain, in both files; what it may have above is void."""
        _require(self._events)
        steps = [file.anchor.step for file in self._files.values()]
        ahead = [step - 1 for file in self._files.values() if (step := file.peek()) is not None]
        self._begin(min([max(steps), *ahead]))

    def _begin(self, step: int) -> None:
        self._sink.begin(max(0, step))
        for file in self._files.values():
            if file.anchor.step > step:
                file.rewind(step)

    def deliver(self) -> int:
        _require(self._events)
        while events := self._events.read(_EVENTS):
            for event in events:
                if event.get("event") == "resumed" and isinstance(step := event.get("from_step"), int):
                    self._cut(step)
        if not all(file.stands() for file in self._files.values()):
            return self._wait_for_resume()
        self._vanished = 0
        return sum(self._deliver(kind) for kind in _CURVES)

    def _cut(self, step: int) -> None:
        is_ahead = any(file.anchor.step > step for file in self._files.values())
        for file in self._files.values():
            if file.anchor.step > step or not file.stands():
                file.rewind(step)
        if is_ahead:  # last: where it fails, `connect` goes on from what was rewound
            self._sink.cut(step)

    def _wait_for_resume(self) -> int:
        """What was sent is gone from a file: its resume says in a moment how far back; without one, begin anew."""
        self._vanished += 1
        if self._vanished > 20:
            self._vanished = 0
            for file in self._files.values():
                file.anchor = Anchor()
            self._sink.begin(0)
        return 0

    def _deliver(self, kind: Curve) -> int:
        file = self._files[kind]
        lines, anchor = file.read(_LINES)
        if lines:
            self._refused = kind, anchor, len(lines)
            self._sink.write(kind, lines)
            self._refused = None
        file.anchor = anchor
        return len(lines)

    def confirm(self) -> None:
        """A curve sink cannot tell."""

    def skip(self) -> int:
        if self._refused is None:
            return 0
        kind, anchor, count = self._refused
        self._files[kind].anchor = anchor
        self._refused = None
        return count

    def behind(self) -> int:
        return sum(file.behind() for file in self._files.values())

    def mark(self, standing: Standing) -> Standing:
        curves: dict[str, Any] = {kind: asdict(file.anchor) for kind, file in self._files.items()}
        return replace(standing, seq=self._events.seq, offset=self._events.offset, curves=curves)

    def close(self) -> None:
        self._sink.close()


def _require(journal: EventReader) -> None:
    """What is gone is not what is delivered; and where a run went, its sinks do not follow."""
    if not journal.stands():
        raise Unreachable("the run's journal is not where it was")


def feed_of(sink: EventSink | CurveSink, run: RunFacts, standing: Standing) -> Feed:
    """The feed for a sink, at the position that is remembered."""
    make: Callable[[Any, RunFacts, Standing], Feed] = CurveFeed if isinstance(sink, CurveSink) else EventFeed
    return make(sink, run, standing)
