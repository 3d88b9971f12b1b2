"""train_heartbeat.rankR.jsonl: signs of life of one rank, written by a thread that needs nothing of the main one.

    main thread ──mark──> queue ──> thread ──one write a line──> file
                                      └─ each interval ── read() ── "periodic"

A mark costs its caller a place in a queue, and never waits for a disk. Not here: what a periodic beat says (runner).
Not promised: that a mark is in the file when its process dies in the same instant.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trn.errors import StorageError
from trn.files import AppendLog
from trn.records import Json, json_line, utc_now

__all__ = ["HeartbeatLog"]

_ADMIT, _DROP, _END = "admit", "drop", "end"
_LONGEST_STOP_S = 2.0


class HeartbeatLog:
    """Appends lines until `stop`; the first error is told with `warn`, and nothing is written from then on.

    Until `admit` lines are kept in memory, for a job that may still be refused and must then leave nothing. `read`
    gives what a periodic beat says, and is called from the thread. A forked child writes nothing.
    """

    def __init__(
        self,
        path: Path,
        *,
        job_id: str,
        interval_s: float,
        read: Callable[[], Json],
        warn: Callable[[str], None],
    ) -> None:
        self.path = path
        self._job_id, self._interval_s = job_id, interval_s
        self._read, self._warn = read, warn
        self._pid = os.getpid()
        self._queue: queue.SimpleQueue[Json | str] = queue.SimpleQueue()
        self._log: AppendLog | None = None
        self._kept: list[bytes] = []
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="trn-heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def mark(self, event: str, **fields: Any) -> None:
        """A line of this moment. Plain JSON values only."""
        self._tell({"ts": utc_now(), "event": event, "job_id": self._job_id, **fields})

    def admit(self) -> None:
        """The job goes on: write what was kept, and from now on everything."""
        self._tell(_ADMIT)

    def drop(self) -> None:
        """The job was refused: forget what was kept, and write nothing."""
        self._tell(_DROP)

    def stop(self) -> None:
        """Write what was marked, and end; a disk that hangs is left behind after two seconds."""
        self._tell(_END)
        if os.getpid() == self._pid and self._thread.is_alive():
            self._thread.join(_LONGEST_STOP_S)

    def _tell(self, what: Json | str) -> None:
        if os.getpid() == self._pid:  # a fork has no thread to write it, and perhaps a lock that nobody lets go
            self._queue.put(what)

    def _run(self) -> None:
        due_s = time.monotonic() + self._interval_s
        while not self._is_over:
            try:
                what = self._queue.get(timeout=max(0.0, due_s - time.monotonic()))
            except queue.Empty:
                due_s = time.monotonic() + self._interval_s
                self._beat()
                continue
            if isinstance(what, str):
                self._obey(what)
            else:
                self._write(what)
        if self._log is not None:
            self._log.close()

    def _beat(self) -> None:
        head = {"ts": utc_now(), "event": "periodic", "job_id": self._job_id}
        try:
            line = head | self._read()
        except Exception as error:  # noqa: BLE001 - a reading of this machine may fail in any way, the run goes on
            self._give_up(f"{type(error).__name__}: {error}")
            return
        self._write(line)

    def _obey(self, what: str) -> None:
        if what != _ADMIT:
            self._is_over = True
            return
        try:
            self._log = AppendLog(self.path)
        except StorageError as error:
            self._give_up(str(error))
            return
        kept, self._kept = self._kept, []
        for line in kept:
            self._append(line)

    def _write(self, line: Json) -> None:
        try:
            data = json_line(line)
        except (TypeError, ValueError) as error:
            self._give_up(f"{line['event']}: {error}")
            return
        if self._log is None:
            self._kept.append(data)
        else:
            self._append(data)

    def _append(self, line: bytes) -> None:
        if self._is_over or self._log is None:
            return
        try:
            self._log.append(line)
        except StorageError as error:
            self._give_up(str(error))

    def _give_up(self, why: str) -> None:
        self._is_over = True
        if self.path.parent.is_dir():  # else the run was taken back, and nobody misses its heartbeat
            self._warn(f"warning: no more heartbeats, and the run goes on: {why}")
