"""`file:PATH`: a file of lines, exactly once, since its own last line says how far it is.

The lines are those of events.jsonl, byte for byte. Several runs may share a file, also at the same time: each batch is
appended under a lock on the file. A torn last line, of a writer that was killed or a disk that was full, is cut first:
so a file that begins with anything but such a line is left alone.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG

from trn.errors import StorageError
from trn.files import append_line, make_folder
from trn.records import JsonError, from_json, json_line
from trn.sinks.reader import find_event
from trn.sinks.sink import EventSink, Json, Refused, RunFacts, Unreachable
from trn.sinks.targets import Target

__all__ = ["FileSink", "open_file"]

_CHUNK_BYTES = 256 << 10
_LOCK_WAIT_S = 5.0


class FileSink(EventSink):
    """Appends to a file that is made where it is not there, with its folders."""

    def __init__(self, path: Path, run: RunFacts) -> None:
        self._path = path
        self._run = run
        self._last = 0

    def last_seq(self) -> int:
        with self._opened() as fd:
            last = _last_event(fd, self._run.run_id)
        seq = last["seq"] if last else 0
        if last and seq != self._last and find_event(self._run.reports / "events.jsonl", seq) != last:
            raise Refused("it holds events of another run with this name: remove it or name another", of_target=True)
        self._last = seq
        return seq

    def send(self, events: Sequence[Json]) -> None:
        with self._opened() as fd:
            last = _last_event(fd, self._run.run_id)
            if (last["seq"] if last else 0) != self._last:
                raise Unreachable("somebody else has changed it", retry_after_s=0.0)
            try:
                append_line(self._path, b"".join(map(json_line, events)))
            except StorageError as error:
                raise Unreachable(str(error)) from error
        self._last = events[-1]["seq"]

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The file, locked against other relays."""
        try:
            make_folder(self._path.parent)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        except (OSError, StorageError) as error:
            raise Refused(f"it cannot be opened: {error}", of_target=True) from error
        try:
            if not S_ISREG(os.fstat(fd).st_mode):
                raise Refused("it is no plain file", of_target=True)
            _lock(fd)
            if os.pread(fd, 1, 0) not in (b"", b"{"):
                raise Refused("it holds something else than events: name another file", of_target=True)
            yield fd
        finally:
            os.close(fd)

    def close(self) -> None:
        """Nothing is held open."""


def _lock(fd: int) -> None:
    """Wait for the others that are writing to it, who are soon done."""
    deadline_s = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline_s:
                raise Unreachable("another process is writing to it", retry_after_s=0.0) from error
            time.sleep(0.01)


def _last_event(fd: int, run_id: str) -> Json | None:
    """The run's last whole line; read from the end, over the lines of other runs and torn ones."""
    end = os.fstat(fd).st_size
    rest = b""
    is_tail = True
    while end > 0:
        start = max(0, end - _CHUNK_BYTES)
        lines = (os.pread(fd, end - start, start) + rest).split(b"\n")
        rest = lines[0]
        whole = lines[1:-1] if is_tail else lines[1:]
        if start == 0:
            whole = lines[:-1] if is_tail else lines
        for line in reversed(whole):
            if (event := _event_of(line, run_id)) is not None:
                return event
        end, is_tail = start, is_tail and len(lines) == 1
    return None


def _event_of(line: bytes, run_id: str) -> Json | None:
    try:
        event = from_json(line) if run_id.encode() in line else None
    except JsonError:
        return None
    if not isinstance(event, dict) or event.get("run_id") != run_id:
        return None
    seq = event.get("seq")
    return event if isinstance(seq, int) and not isinstance(seq, bool) else None


def open_file(target: Target, run: RunFacts) -> EventSink:
    """Raises Refused for a file among the reports of a run, which may be its journal, or in the job store's folder."""
    path = Path(os.path.abspath(target.path))
    place = path.resolve()
    if place.is_relative_to(run.reports.resolve()) or (place.parent / "resolved_config.json").exists():
        raise Refused("it lies among the reports of a run: name a file elsewhere", of_target=True)
    if place.is_relative_to((run.run_dir.parent / ".trn").resolve()):
        raise Refused("it lies in the folder of the job store: name a file elsewhere", of_target=True)
    return FileSink(path, run)
