"""Inputs, fetched: several at a time, each whole and checked, or an error that names it.

Paths on this disk stay where they are. What has a digest is looked for by it in the cache, and hashed before it is
given out; what has none is asked for anew each time, and not sent again where the source says that it is the same.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from trn.errors import DataError, Stopped
from trn.files import make_folder
from trn.transfer.arrival import Tools
from trn.transfer.cache import Cache
from trn.transfer.client import Client
from trn.transfer.fetching import fetch_one
from trn.transfer.meters import Meter, Room
from trn.transfer.wanted import Fetched, Wanted, judged, local_path

__all__ = ["Fetched", "Progress", "Wanted", "fetch"]

Progress = Callable[[int, int | None], None]
"""Bytes that are here of all, and how many that will be; None while a source has not said."""

_LOOK_S = 0.1
_TELL_EVERY_S = 0.5
_PATIENCE_S = 600.0
_SILENT_S = 120.0
"""Beyond its patience a fetch takes no longer than this to say so; but a store's own client may never come back."""
_LEAVE_S = 0.5
"""So long threads are waited for that were told to halt; one that a silent server holds ends by itself, later."""


def _never() -> bool:
    return False


def _nobody(line: str) -> None:
    return None


def fetch(
    wanted: Sequence[Wanted],
    cache_dir: Path,
    client: Client,
    *,
    parallel: int = 4,
    is_stopped: Callable[[], bool] = _never,
    progress: Progress | None = None,
    warn: Callable[[str], None] = _nobody,
    patience_s: float = _PATIENCE_S,
) -> list[Fetched]:
    """All of `wanted`, in its order; none where one of them cannot be had.

    A source that gives nothing for `patience_s` is given up. `is_stopped` and `progress` (at most twice a second, and
    at the end) are called on this thread; `warn` on any, once for each input whose source does not answer at first.
    Raises DataError and Unauthorized, which name the input; StorageError for the cache's disk; Stopped within a second
    of `is_stopped`. What had come by then is kept, and read on from the next time.
    """
    plan = [judged(one) for one in wanted]
    if any(local_path(one) is None for one in plan):
        make_folder(cache_dir)
    meter = Meter([one.size_bytes for one in plan])
    halt = threading.Event()
    room = Room(cache_dir)
    work = [
        (one, Tools(Cache(cache_dir), client, halt, room, patience_s, partial(meter.put, index), warn))
        for index, one in enumerate(plan)
    ]
    crew = _Crew(work, halt, meter, parallel)
    try:
        return crew.wait(is_stopped, progress, patience_s + _SILENT_S)
    finally:
        halt.set()
        crew.leave()


class _Crew:
    """Threads that each fetch one input after another; daemons, so that a silent server holds no process up."""

    def __init__(
        self, work: Sequence[tuple[Wanted, Tools]], halt: threading.Event, meter: Meter, parallel: int
    ) -> None:
        self._halt = halt
        self._meter = meter
        self._count = len(work)
        self._names = [wanted.where for wanted, _ in work]
        self._work: queue.SimpleQueue[tuple[int, tuple[Wanted, Tools]]] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[int, Fetched | BaseException]] = queue.SimpleQueue()
        for numbered in enumerate(work):
            self._work.put(numbered)
        self._threads = [
            threading.Thread(target=self._run, name=f"trn-fetch-{index}", daemon=True)
            for index in range(min(max(1, parallel), len(work)))
        ]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._halt.is_set():
            try:
                index, (wanted, tools) = self._work.get_nowait()
            except queue.Empty:
                return
            try:
                self._results.put((index, fetch_one(wanted, tools)))
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
                self._results.put((index, error))
                return

    def wait(self, is_stopped: Callable[[], bool], progress: Progress | None, silent_s: float) -> list[Fetched]:
        """All results in their order; raises the first error, and one of its own after `silent_s` without any news."""
        found: dict[int, Fetched] = {}
        told_at = time.monotonic()
        told: tuple[int, int | None] = (0, None)
        heard_at, heard = told_at, self._meter.read()
        while len(found) < self._count:
            if is_stopped():
                raise Stopped("cancelled", "stopped while the inputs were being fetched")
            try:
                index, result = self._results.get(timeout=_LOOK_S)
            except queue.Empty:
                pass
            else:
                if isinstance(result, BaseException):
                    raise result
                found[index] = result
                heard_at = time.monotonic()
            if (now := self._meter.read()) != heard:
                heard_at, heard = time.monotonic(), now
            if time.monotonic() - heard_at > silent_s:
                name = next(name for index, name in enumerate(self._names) if index not in found)
                raise DataError(f"nothing was heard of it for {silent_s:g} s.", where=name, hint="Check its store.")
            if progress and time.monotonic() - told_at >= _TELL_EVERY_S:
                told_at, told = time.monotonic(), self._meter.read()
                progress(*told)
        if progress and (last := self._meter.read()) != told and last[0]:
            progress(*last)
        return [found[index] for index in range(self._count)]

    def leave(self) -> None:
        deadline = time.monotonic() + _LEAVE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
