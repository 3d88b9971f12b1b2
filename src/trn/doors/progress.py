"""What is shown while a run goes on: a live line on a terminal, a plain line now and then elsewhere.

A display is told the news and never asks for them; what the trainer prints appears above the live line. It writes
where it was told to, to nothing else, and an OSError from there (a closed terminal) is for the caller to take.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from trn.doors.lines import event_line, standing_line
from trn.doors.standing import Standing

__all__ = ["Display", "PlainDisplay", "SilentDisplay", "TerminalDisplay", "display_for"]

Events = Sequence[Mapping[str, Any]]

_SHOWN = frozenset(
    {
        "resumed",
        "started",
        "checkpoint",
        "checkpoint_rejected",
        "metrics_cut",
        "evaluated",
        "step_skipped",
        "stop_requested",
        "weights_loaded",
        "compile_fallback",
        "exported",
        "parity",
    }
)
"""Events that get a line while a run goes on; its beginning and its end are told by the door."""


class Display(ABC):
    """Shows a run while it goes on."""

    @abstractmethod
    def line(self, text: str) -> None:
        """One line of words: from the door, or from the trainer's own code."""

    @abstractmethod
    def update(self, standing: Standing, events: Events) -> None:
        """Where the run stands now, and what happened since the last call."""

    @abstractmethod
    def close(self) -> None:
        """Leave the stream as it should be; only lines are shown afterwards."""


class SilentDisplay(Display):
    """Shows nothing."""

    def line(self, text: str) -> None:
        """Nothing."""

    def update(self, standing: Standing, events: Events) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class PlainDisplay(Display):
    """Whole lines: one for an event, and one about every `every_s` seconds for the steps in between."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic, every_s: float = 10.0) -> None:
        self._stream = stream
        self._clock = clock
        self._every_s = every_s
        self._next_s = clock()
        self._shown_step = 0

    def line(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def update(self, standing: Standing, events: Events) -> None:
        for event in _newest_of_each(events):
            self.line(event_line(event))
        due = self._clock() >= self._next_s
        evaluated = any(event.get("event") == "evaluated" for event in events)
        if standing.loss is not None and standing.step != self._shown_step and (due or evaluated):
            self.line(standing_line(standing))
            self._shown_step = standing.step
            self._next_s = self._clock() + self._every_s

    def close(self) -> None:
        self._stream.flush()


def _newest_of_each(events: Events) -> list[Mapping[str, Any]]:
    """The events to show, in order: of a kind that came several times since the last look only the newest."""
    newest = {event.get("event"): index for index, event in enumerate(events) if event.get("event") in _SHOWN}
    return [events[index] for index in sorted(newest.values())]


class TerminalDisplay(Display):
    """A bar with step, loss, learning rate, pace and time left on the last line of a terminal."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console  # slow to import, and useless without a terminal
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        # no thread that refreshes: the door looks several times a second, and draws when there is something new
        self._progress = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("", total=None)

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def update(self, standing: Standing, events: Events) -> None:
        for event in _newest_of_each(events):
            self.line(event_line(event))
        if standing.max_steps is None and standing.loss is None:
            return
        self._progress.update(
            self._task,
            completed=standing.step,
            total=standing.max_steps,
            description=standing_line(standing),
        )
        self._progress.start()
        self._progress.refresh()

    def close(self) -> None:
        self._progress.stop()


def display_for(stream: TextIO | None) -> Display:
    """The display that fits `stream`; None where the caller has closed it."""
    if stream is None:
        return SilentDisplay()
    is_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
    return TerminalDisplay(stream) if is_terminal else PlainDisplay(stream)
