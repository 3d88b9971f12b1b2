"""logs/train.log: what was logged and printed in a run, in its own folder.

    logging, any logger ──record factory─┐
    warnings ──showwarning───────────────┤
    what the runner says ────────────────┼──> Mirror ──one write a line──> logs/train.log      rank 0 only
    stdout, stderr, where asked for ─────┘

Records are taken where they are made: a handler at the root would miss loggers that do not propagate, would silence
Python's handler of last resort, and would make a trainer's own `logging.basicConfig` do nothing. What is seen on
stderr stays as it is. The first error of the disk turns the mirror off, with one warning; the run goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trn.errors import StorageError
from trn.files import make_folder
from trn.files.system import open_file, storage_errors, write_all
from trn.provenance.process import process_redactor
from trn.records import utc_now
from trn.runner.console import is_own, listen, own_output, say
from trn.runner.output import copy_output
from trn.spec.plan_model import LogPlan

__all__ = ["Mirror", "mirroring"]

_MOST_KEPT = 10_000
_formatter = logging.Formatter()


class Mirror:
    """Lines appended to a file, from any thread. Until `admit` they are kept in memory; after an error there are none.

    A forked child writes nothing. Not promised: that a line survives the machine, it is never synced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a record may be made while one is written, by whatever the collector ends
        self._fd: int | None = None
        self._kept: list[bytes] = []
        self._is_off = False
        self._begun: dict[str, bytes] = {}
        """What was printed of a line that has not ended, by stream."""
        self._last_word = ""

    def admit(self) -> None:
        """The job goes on: open the file, and write what was kept."""
        with self._lock:
            try:
                make_folder(self.path.parent)
                with storage_errors("open", self.path):
                    self._fd = open_file(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
                    size = os.fstat(self._fd).st_size
                    if size and os.pread(self._fd, 1, size - 1) != b"\n":
                        self._kept.insert(0, b"\n")  # a job was killed within a line
            except (OSError, StorageError) as error:
                self._turn_off(error)
            kept, self._kept = self._kept, []
            for line in kept:
                self._put(line)
        self._warn()

    def close(self) -> None:
        """Write what has not ended, and let go of the file; what was never admitted is forgotten."""
        if os.getpid() != self._pid:
            return  # the lock may be held by a thread that is not here
        with self._lock:
            for stream, begun in self._begun.items():
                self._line(stream, begun)
            self._is_off = True
            self._close()

    def text(self, level: str, name: str, text: str) -> None:
        """A message, masked here."""
        if self._is_off or os.getpid() != self._pid:
            return
        masked = process_redactor().text(text.encode(errors="backslashreplace").decode())
        line = f"{utc_now()} {level:<8} {name}: {masked}\n".encode()
        with self._lock:
            self._put(line)
        self._warn()

    def printed(self, stream: str, data: bytes) -> None:
        """What was printed, masked already; of a line that is drawn over and over its last form is kept."""
        if self._is_off or os.getpid() != self._pid or is_own():
            return
        with self._lock:
            *ended, rest = (self._begun.pop(stream, b"") + data).split(b"\n")
            if rest:
                self._begun[stream] = rest.rpartition(b"\r")[2] or rest
            for line in ended:
                self._line(stream, line)
        self._warn()

    def _line(self, stream: str, line: bytes) -> None:
        last = line.rstrip(b"\r").rpartition(b"\r")[2]
        self._put(f"{utc_now()} {stream:<8} ".encode() + last + b"\n")

    def _put(self, line: bytes) -> None:
        if self._is_off:
            return
        if self._fd is None:
            if len(self._kept) < _MOST_KEPT:
                self._kept.append(line)
            return
        try:
            write_all(self._fd, line, self.path)
        except OSError as error:
            self._turn_off(error)

    def _turn_off(self, error: Exception) -> None:
        self._is_off = True
        self._close()
        why = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        if self.path.parent.parent.is_dir():  # else the run was taken back, and nobody misses its log
            self._last_word = f"warning: {self.path} is written no more, and the run goes on: {why}"

    def _warn(self) -> None:
        """Without the lock: whoever prints holds the stream's, and waits for ours."""
        last_word, self._last_word = self._last_word, ""
        if last_word:
            say(last_word)

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


@contextlib.contextmanager
def mirroring(log: LogPlan, run_dir: Path) -> Iterator[Mirror | None]:
    """Inside, what is logged and said goes into the mirror, once it is admitted; None where the plan wants none."""
    if not log.enabled:
        yield None
        return
    mirror = Mirror(run_dir / "logs" / log.filename)
    with contextlib.ExitStack() as taken:
        taken.callback(mirror.close)
        taken.enter_context(_records(mirror))
        taken.enter_context(_warnings(mirror))
        taken.enter_context(listen(lambda text: mirror.text("SAID", "trn", text)))
        for stream, is_asked in (("stdout", log.capture_stdout), ("stderr", log.capture_stderr)):
            if is_asked:
                taken.enter_context(_printed(mirror, stream))
        yield mirror


@contextlib.contextmanager
def _records(mirror: Mirror) -> Iterator[None]:
    """Every record that any logger makes, from INFO on unless a logger's own level says otherwise."""
    make, root = logging.getLogRecordFactory(), logging.getLogger()
    level = root.level

    def take(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        # one made from a dictionary has no name yet, and was taken where it came from; one without words is a
        # carrier of something else, as torch's traces are
        if record.name and (text := _text_of(record)):
            mirror.text(record.levelname, record.name, text)
        return record

    logging.setLogRecordFactory(take)
    root.setLevel(min(level, logging.INFO))
    try:
        yield
    finally:
        if logging.getLogRecordFactory() is take:
            logging.setLogRecordFactory(make)
        if root.level == min(level, logging.INFO):
            root.setLevel(level)


def _text_of(record: logging.LogRecord) -> str:
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 - arguments that do not fit, or a text that raises: logging itself reports it
        text = f"{record.msg!r}"
    if isinstance(record.exc_info, tuple) and record.exc_info[0] is not None:
        text = f"{text}\n{_formatter.formatException(record.exc_info)}"
    return text if record.stack_info is None else f"{text}\n{record.stack_info}"


@contextlib.contextmanager
def _warnings(mirror: Mirror) -> Iterator[None]:
    """Python's warnings: shown as ever, and taken."""
    show: Callable[..., None] = warnings.showwarning

    def take(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        with own_output():  # what is printed of it is not taken again
            show(message, category, filename, lineno, file, line)
        text = warnings.formatwarning(message, category, filename, lineno, line)
        mirror.text("WARNING", "py.warnings", text.rstrip())

    warnings.showwarning = take
    try:
        yield
    finally:
        if warnings.showwarning is take:
            warnings.showwarning = show


@contextlib.contextmanager
def _printed(mirror: Mirror, stream: str) -> Iterator[None]:
    def take(data: bytes) -> None:
        mirror.printed(stream, data)

    if not copy_output(stream, take):
        say(f"warning: log.capture_{stream}: what goes to a terminal is not captured")
    try:
        yield
    finally:
        copy_output(stream, None)
