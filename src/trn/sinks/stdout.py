"""`-`: the events of a job as JSON lines on the standard output of the command that stays with it."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Sequence

from trn.records import json_line
from trn.sinks.reader import EventReader
from trn.sinks.sink import EventSink, Json, Refused, RunFacts, Unreachable
from trn.sinks.targets import Target

__all__ = ["StdoutSink", "open_stdout"]


class StdoutSink(EventSink):
    """Nobody can say what a reader of a pipe has: each process begins with the first event of its own job."""

    def __init__(self, run: RunFacts) -> None:
        self._run = run
        self._last: int | None = None
        self._rest = memoryview(b"")
        """Of a line that could be written in part: it is finished before anything else."""

    def last_seq(self) -> int:
        if self._last is None:
            self._last = self._before_job()
        self._write()
        return self._last

    def _before_job(self) -> int:
        """The seq before the job's first event; 0 where no job is meant."""
        reader = EventReader(self._run.reports / "events.jsonl")
        last = 0
        while self._run.job_id and (events := reader.read(256)):
            for event in events:
                if event.get("job_id") == self._run.job_id:
                    return last
                last = event["seq"]
        return last

    def send(self, events: Sequence[Json]) -> None:
        self._write()
        for event in events:
            self._rest = memoryview(json_line(event))
            self._last = event["seq"]
            self._write()

    def _write(self) -> None:
        while self._rest:
            try:
                self._rest = self._rest[os.write(1, self._rest) :]
            except BlockingIOError:  # whoever started us made it so
                select.select([], [1], [], 1.0)
            except OSError as error:
                if error.errno in (errno.EPIPE, errno.EBADF):  # a pipe whose reader has gone stays so
                    raise Refused(f"nobody reads standard output: {error.strerror}", of_target=True) from error
                raise Unreachable(f"standard output cannot be written to: {error.strerror}") from error

    def close(self) -> None:
        """Nothing was opened."""


def open_stdout(target: Target, run: RunFacts) -> EventSink:
    return StdoutSink(run)
