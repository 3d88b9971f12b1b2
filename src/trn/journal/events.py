"""events.jsonl: what happened, in order, for whoever watches. Never cut, never rewritten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import time
from typing import Any

from trn.files import AppendLog
from trn.journal.metrics import GUARD_EVERY_S
from trn.records import ENDINGS, EVENT_KINDS, JsonError, json_line, read_lines, utc_now

__all__ = ["EventLog"]


class EventLog:
    """Appends events with a `seq` that continues where the last whole line ended. The holder of the lock writes.

    Endings are synced to disk, other events when `sync` is called. `clean` takes secrets out of what a trainer may
    have had a hand in. `guard` is asked before each event, and raises where the run is not ours any more; of the kind
    that may come with every step, as seldom as before a line of the metrics. Not thread-safe.
    """

    def __init__(
        self,
        path: Path,
        *,
        run_id: str,
        job_id: str,
        clean: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        guard: Callable[[], None] | None = None,
    ) -> None:
        self._log = AppendLog(path)
        self._run_id = run_id
        self._job_id = job_id
        self._clean = clean
        self._guard = guard
        self._guarded_s = 0.0
        self.seq = _last_seq(path)

    def emit(self, event: str, **fields: Any) -> None:
        """Append one event. Raises StorageError; ValueError for a kind that is not in EVENT_KINDS, or for NaN."""
        if event not in EVENT_KINDS:
            raise ValueError(f"unknown event kind {event!r}")
        if self._guard is not None:
            now_s = time()
            if event != "metric" or not 0.0 <= now_s - self._guarded_s < GUARD_EVERY_S:
                self._guarded_s = now_s
                self._guard()
        head = {
            "event": event,
            "run_id": self._run_id,
            "job_id": self._job_id,
            "seq": self.seq + 1,
            "ts": utc_now(),
        }
        told = fields if self._clean is None else self._clean(fields)
        self._log.append(json_line(head | told | head))
        self.seq += 1
        if event in ENDINGS:
            self.sync()

    def sync(self) -> None:
        self._log.sync()

    def close(self) -> None:
        self._log.close()


def _last_seq(path: Path) -> int:
    """The seq of the last line that is a whole event; lines before it are not looked at unless it is damaged."""
    last = 0
    lines = read_lines(path)
    while True:
        try:
            last = max(last, int(next(lines).get("seq", 0)))
        except StopIteration:
            return last
        except (JsonError, TypeError, ValueError):
            # a damaged line must not stop a run: count lines instead, which can only be higher than any seq
            return path.read_bytes().count(b"\n")
