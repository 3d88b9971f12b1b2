"""The journal of a run and its trainer's output as lines for people, from the beginning and on as they come."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from trn.doors.follow import Follower, parsed
from trn.doors.lines import event_line, standing_line
from trn.doors.standing import Standing, after_event, after_metrics
from trn.doors.text import clean, clean_line

__all__ = ["Stream", "events_of"]

_FREQUENT = (b'{"event":"metric"', b'{"event":"heartbeat"')
_STEP = re.compile(rb'"step":(\d+)')
_INDENT = " " * 21  # the width of a time stamp and two spaces


def events_of(path: Path) -> Iterator[dict[str, Any]]:
    """The events in a file, without the kinds that come with every step."""
    return _shown_events(Follower(path))


def _shown_events(follower: Follower) -> Iterator[dict[str, Any]]:
    while lines := follower.read():
        yield from parsed([line for line in lines if not line.startswith(_FREQUENT)])


class Stream:
    """Writes the news of a run to standard output.

    `only` is "events", "metrics", "output", or None for all of them, condensed: the events in order, before each the
    last step before it, and then the output. With `as_json`, lines of events or metrics go out as they are.
    """

    def __init__(
        self,
        run_dir: Path,
        output: Path | None,
        *,
        only: str | None = None,
        as_json: bool = False,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = 10.0,
    ) -> None:
        self._only = only or ("events" if as_json else None)
        self._as_json = as_json
        self._clock = clock
        self._every_s = every_s
        self._events = Follower(run_dir / "reports" / "events.jsonl")
        self._metrics = Follower(run_dir / "reports" / "train_metrics.jsonl")
        self._output = Follower(output) if output else None
        self._waiting: deque[bytes] = deque()
        self._standing = Standing()
        self._written_step = 0
        self._written_s = clock()

    def write_news(self) -> None:
        """Write all that is new."""
        if self._as_json or self._only == "metrics":
            self._write_lines(self._metrics if self._only == "metrics" else self._events)
        elif self._only == "events":
            while lines := self._events.read():
                for event in parsed(lines):
                    _write_event(event)
        elif self._only is None:
            self._write_condensed()
        while self._output and self._only in (None, "output") and (lines := self._output.read()):
            for line in lines:
                self._write_output(line)

    def write_rest(self) -> None:
        """Write what waits for more: the last steps, and a line of the output that has no end."""
        if self._only is None and self._standing.step > self._written_step:
            self._write_step()
        if self._output and self._only in (None, "output") and (rest := self._output.rest()):
            self._write_output(rest)

    def _write_lines(self, follower: Follower) -> None:
        while lines := follower.read():
            if self._as_json:
                click.echo(b"".join(lines), nl=False)
                continue
            for line in parsed(lines):
                click.echo(standing_line(after_metrics(Standing(), line)._replace(step_s=None)))

    def _write_output(self, line: bytes) -> None:
        text = line.decode(errors="replace")
        click.echo(clean(text).removesuffix("\n") if self._only else f"| {clean_line(text)}")

    def _write_condensed(self) -> None:
        for event in _shown_events(self._events):
            step = event.get("step")
            if isinstance(step, int):
                self._take_steps(step)
            if self._standing.step > self._written_step:
                self._write_step()
            self._standing = after_event(self._standing, event)
            self._written_step = min(self._written_step, self._standing.step)
            _write_event(event)
        self._take_steps(None)
        if self._standing.step > self._written_step and self._clock() - self._written_s >= self._every_s:
            self._write_step()

    def _take_steps(self, last: int | None) -> None:
        """Take in the metrics up to step `last`, or all; only the last of these lines is looked into."""
        line = None
        while True:
            if not self._waiting:
                self._waiting.extend(self._metrics.read())
            found = _STEP.search(self._waiting[0]) if self._waiting else None
            if not self._waiting or (last is not None and found and int(found[1]) > last):
                break
            line = self._waiting.popleft()
        for values in parsed([line] if line else []):
            self._standing = after_metrics(self._standing, values)

    def _write_step(self) -> None:
        click.echo(_INDENT + standing_line(self._standing._replace(step_s=None, val_loss=None)))
        self._written_step = self._standing.step
        self._written_s = self._clock()


def _write_event(event: dict[str, Any]) -> None:
    click.echo(f"{clean_line(str(event.get('ts')))[:19]}  {event_line(event)}")
