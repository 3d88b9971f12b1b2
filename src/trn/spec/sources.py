"""The files that a spec is made of: found, opened and read with limits, and kept verbatim for the run's records."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from trn.errors import Problem
from trn.spec.documents import READERS, Document, read_document
from trn.spec.nodes import Refusal, Room
from trn.spec.words import one_of

__all__ = ["MAX_BYTES", "MAX_FILES", "Reader", "Source"]

MAX_BYTES = 256 << 10
"""Of a spec and all that it extends. ruamel.yaml takes about 1.3 s of CPU a MiB, hostile or not."""
MAX_FILES = 32


@dataclass(frozen=True)
class Source:
    """A file that a spec was made of: its absolute path and its bytes, verbatim."""

    path: Path
    data: bytes


@dataclass
class Reader:
    """Reads documents, and remembers each as a source in the order of reading."""

    sources: list[Source] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    """What the files are called in problems, in the order in which they were asked for."""
    _bytes: int = 0
    _room: Room = field(default_factory=Room)

    def read(self, path: Path, shown: str) -> Document:
        """The document in the file `path`, called `shown` in problems. Raises Refusal."""
        self.shown.append(shown)
        suffix = path.suffix.lower()
        if suffix not in READERS:
            raise _refusal(f"expected a file that ends in {one_of(tuple(READERS))}", shown)
        if len(self.sources) == MAX_FILES:
            raise _refusal(f"more than {MAX_FILES} files in one spec", shown)
        data = _read_bytes(path, shown)
        self._bytes += len(data)
        if self._bytes > MAX_BYTES:
            raise _refusal(f"a spec and all that it extends may have {MAX_BYTES >> 10} KiB, here it has more", shown)
        text = _decode(data, shown)
        self.sources.append(Source(Path(os.path.abspath(path)), data))
        return read_document(text, suffix, shown, self._room)

    def take(self, source: Source, shown: str) -> None:
        """Remember what was not read from a file. Raises Refusal where it is too large."""
        self.shown.append(shown)
        self._bytes += len(source.data)
        if self._bytes > MAX_BYTES:
            raise _refusal(f"a spec and all that it extends may have {MAX_BYTES >> 10} KiB, here it has more", shown)
        self.sources.append(source)


def _read_bytes(path: Path, shown: str) -> bytes:
    """At most one byte more than MAX_BYTES. A pipe or device is refused without waiting for it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _refusal(_reason(error), shown) from error
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise _refusal("expected a file, found a folder", shown)
        if not stat.S_ISREG(mode):
            raise _refusal("expected a regular file, found a pipe, socket or device", shown)
        with open(fd, "rb", closefd=False) as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refusal(_reason(error), shown) from error
    finally:
        os.close(fd)


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.errno in (errno.ENXIO, errno.ENODEV):
        return "expected a regular file, found a pipe, socket or device"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"cannot be read: {error}"


def _decode(data: bytes, shown: str) -> str:
    if data.startswith(b"\xef\xbb\xbf"):
        raise _refusal("starts with a byte order mark; save it as UTF-8 without one", shown)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"expected UTF-8, found the byte {data[error.start]:#04x}"
        raise Refusal(Problem("", message, shown, line)) from error
    if not text.strip():
        raise _refusal("the file is empty", shown)
    return text


def _refusal(message: str, shown: str) -> Refusal:
    return Refusal(Problem("", message, shown))
