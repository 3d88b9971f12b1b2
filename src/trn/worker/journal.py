"""TRAINER_EVENTS_PATH: what a platform reads while the worker lives, ended by exactly one terminal event a job.

    the run's reports/events.jsonl ──follow──> the same events, but for the run's own endings
    the worker                     ──tell────> what happens before and beside the run
    the worker's end               ──end─────> completed | preempted | cancelled | failed, `outcome`, `exit_code`

The run's ending is left out since it is not the worker's: a training that is complete, and whose uploads failed, has
failed for the platform. Each line has a `seq` of this file; one that was relayed has the run's as `run_seq`, so that
nothing is relayed twice, however often the worker is killed.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from trn.errors import StorageError
from trn.files import AppendLog, Lock, make_folder
from trn.records import ENDINGS, JsonError, ending_of, from_json, json_line, utc_now
from trn.sinks.reader import EventReader
from trn.worker.refusal import StartupRefused

__all__ = ["SCHEMA", "WorkerJournal"]

Json = dict[str, Any]

SCHEMA = "trainer_event.v1"
_LOOK_EVERY_S = 0.25
_AT_ONCE = 1000


class WorkerJournal:
    """Appends to the file at `path`; without one, nothing is written. One worker at a time: the file is locked.

    Raises StorageError where the file cannot be opened; StartupRefused where another worker writes it.
    """

    def __init__(self, path: Path | None, *, run_id: str = "", job_id: str = "") -> None:
        self.run_id, self.job_id = run_id, job_id
        self._log: AppendLog | None = None
        self._lock: Lock | None = None
        self._mutex = threading.Lock()
        self._seq = 0
        self._relayed: dict[str, int] = {}
        """Of each run, the newest event that is in the file."""
        self._began: dict[str, str] = {}
        """Of each run, when its first event was, by which one is known that was removed and begun anew."""
        self._reader: EventReader | None = None
        self._thread: threading.Thread | None = None
        self._is_over = threading.Event()
        self._has_failed = False
        self._followed = run_id
        if path is not None:
            self._open(path)

    def _open(self, path: Path) -> None:
        if path.is_dir():
            raise StartupRefused(
                "invalid_artifact_paths", f"{path} is a folder.", where="TRAINER_EVENTS_PATH", hint="Name a file."
            )
        make_folder(path.parent)
        lock = Lock(path.with_name(f".{path.name}.lock"))
        if not lock.acquire(note=f"job={self.job_id}", wait_s=1.0):
            raise StartupRefused("invalid_artifact_paths", "another worker writes this file.", where=str(path))
        self._lock = lock
        self._log = AppendLog(path)
        with open(path, "rb") as lines:
            for line in lines:
                self._take(line)

    def _take(self, line: bytes) -> None:
        """A line that an earlier worker wrote, or somebody else."""
        try:
            known = from_json(line)
            self._seq = max(self._seq, int(known.get("seq") or 0))
            if (seq := known.get("run_seq")) is not None:
                run_id = str(known.get("run_id"))
                if int(seq) == 1:
                    self._relayed[run_id], self._began[run_id] = 0, str(known.get("ts"))
                self._relayed[run_id] = max(self._relayed.get(run_id, 0), int(seq))
        except (JsonError, AttributeError, TypeError, ValueError):
            self._seq += 1  # no seq is given twice

    def tell(self, event: str, **fields: Any) -> None:
        """A line of the worker's own."""
        self._append({"event": event, **fields})

    def follow(self, run_dir: Path, run_id: str) -> None:
        """Relay what the run tells from now on, from a thread, and what an earlier worker had not relayed yet."""
        if self._log is None:
            return
        self._followed = run_id
        path = run_dir / "reports" / "events.jsonl"
        if not self._is_known(path):
            self._relayed[run_id] = 0
        self._reader = EventReader(path)
        self._reader.seek(self._relayed.get(run_id, 0))
        self._thread = threading.Thread(target=self._run, name="trn-worker-journal", daemon=True)
        self._thread.start()

    def _is_known(self, path: Path) -> bool:
        """Whether the run whose events are there is the one that was relayed before."""
        try:
            first = EventReader(path).read(1)
        except OSError:
            return True  # read again later, and told then
        return bool(first) and first[0].get("ts") == self._began.get(self._followed)

    def catch_up(self) -> None:
        """Relay all there is, and no more after it. Raises StorageError where a line could not be written."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()
        if self._reader is None:
            return
        try:
            if self._has_failed:  # what was read then and not written is read once more
                self._reader.seek(self._relayed.get(self._followed, 0))
            self._relay(self._reader)
        except OSError as error:
            raise StorageError(f"cannot read the run's events: {error.strerror}.", where=error.filename) from error

    def end(self, status: str, *, exit_code: int, step: int, reason: str, **fields: Any) -> None:
        """The job's one terminal event. Raises StorageError."""
        self.tell(ending_of(status), outcome=status, exit_code=exit_code, step=step, reason=reason, **fields)
        if self._log is not None:
            self._log.sync()

    def close(self) -> None:
        self._is_over.set()
        if self._log is not None:
            self._log.close()
        if self._lock is not None:
            self._lock.release()

    def _run(self) -> None:
        assert self._reader is not None, "set before the thread starts"
        try:
            while not self._is_over.wait(_LOOK_EVERY_S):
                self._relay(self._reader)
        except (StorageError, OSError):
            self._has_failed = True  # the run goes on; tried once more at its end, and told then

    def _relay(self, reader: EventReader) -> None:
        while events := reader.read(_AT_ONCE):
            for event in events:
                if event.get("event") not in ENDINGS:
                    self._append({**event, "run_seq": event.get("seq")}, ts=event.get("ts"))
                    self._relayed[self._followed] = int(event["seq"])

    def _append(self, event: Json, ts: Any = None) -> None:
        if self._log is None:
            return
        with self._mutex:
            head = {"schema_version": SCHEMA, "event": event["event"]}
            ids = {"run_id": event.get("run_id") or self.run_id, "job_id": event.get("job_id") or self.job_id}
            line = head | ids | {"seq": self._seq + 1, "ts": ts or utc_now()}
            self._log.append(json_line(line | {name: value for name, value in event.items() if name not in line}))
            self._seq += 1
