"""What a run has made that is sent as bytes: checkpoints with all that belongs to them, and samples.

    checkpoints/step-N.pt          kind checkpoint       the digest is that of its meta
    checkpoints/step-N.files/*     kind folder-file      likewise
    checkpoints/step-N.meta.json   kind meta             the last of the three: who has it, has the whole checkpoint
    samples/*                      kind sample           the digest is taken when it is sent

What is sent is opened first, so that a checkpoint that is pruned meanwhile is sent all the same. Not here: which of
them the other side has (upload_spool).
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from trn.checkpoint.meta import CheckpointMeta, meta_name
from trn.files import new_sha256
from trn.records import JsonError
from trn.worker.upload_source import Pace, Source, sha256_of

__all__ = [
    "Artifact",
    "Changed",
    "Checkpoint",
    "Gone",
    "Opened",
    "Sample",
    "open_checkpoint",
    "open_sample",
    "read_meta",
]

_HELD_OPEN = 200
"""Files of a trainer's own folder that are all opened before the first is sent; of more, each when it is its turn."""


_NOT_ITS_FAULT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EIO, errno.ESTALE})
"""What keeps a file from being opened at one time, and not at another."""


class Gone(Exception):
    """It is not there any more, or another is in its place."""


class Changed(Exception):
    """The file is not what was written down of it."""


@dataclass(frozen=True)
class Artifact:
    """One file, as the other side is told of it."""

    kind: str
    name: str
    step: int
    size_bytes: int
    sha256: str

    @property
    def identity(self) -> tuple[str, str, str]:
        return self.kind, self.name, self.sha256

    def key(self, run_id: str) -> str:
        """The same for the same bytes under the same name, whoever sends them and how often."""
        return new_sha256("\0".join((run_id, *self.identity)).encode()).hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A committed one: its `.pt` and its meta, whose own bytes count too."""

    step: int
    name: str
    sha256: str
    meta: Artifact


@dataclass(frozen=True)
class Sample:
    step: int
    name: str
    seq: int = 0
    """Of its event: one of the same name that is made later is another."""


class Opened:
    """The files of a checkpoint, or of a sample, in the order in which they are sent; open, but for too many."""

    def __init__(self, folder: Path, artifacts: list[Artifact], pace: Pace) -> None:
        """Raises Gone; Changed where one has another size than its meta says."""
        self.artifacts = artifacts
        self._folder, self._pace = folder, pace
        self._sources: dict[str, Source] = {}
        try:
            for one in (artifacts[-1], *artifacts[: _HELD_OPEN + 1]):
                self.source(one)
        except BaseException:
            self.close()
            raise

    def source(self, artifact: Artifact) -> Source:
        """The bytes of one of the files. Raises as the constructor."""
        if (found := self._sources.get(artifact.name)) is not None:
            return found
        try:
            fd = _open(self._folder / artifact.name)
        except Gone:
            if artifact != self.artifacts[-1] and (self._folder / self.artifacts[-1].name).exists():
                raise Changed(f"{artifact.name} is missing, and the meta is there") from None
            raise  # a meta is the first to be pruned
        self._sources[artifact.name] = source = Source(fd, artifact.size_bytes, self._pace)
        if (size := os.fstat(fd).st_size) != artifact.size_bytes:
            raise Changed(f"{artifact.name} has {size} bytes, its meta says {artifact.size_bytes}")
        return source

    def let_go(self, artifact: Artifact) -> None:
        """It was sent."""
        if (found := self._sources.pop(artifact.name, None)) is not None:
            found.close()

    def close(self) -> None:
        while self._sources:
            self._sources.popitem()[1].close()


def read_meta(folder: Path, step: int) -> tuple[Checkpoint, CheckpointMeta]:
    """The checkpoint of a step, as its meta says now. Raises Gone; Changed where the meta cannot be believed."""
    path = folder / meta_name(step)
    try:
        before = path.stat()
        meta = CheckpointMeta.read(path)
        data = path.read_bytes()
        after = path.stat()
    except FileNotFoundError as error:
        raise Gone from error
    except OSError as error:
        raise Changed(f"its meta cannot be read: {error.strerror or type(error).__name__}") from error
    except JsonError as error:
        raise Changed(f"its meta cannot be read: {error}") from error
    if (before.st_ino, before.st_mtime_ns) != (after.st_ino, after.st_mtime_ns):
        raise Gone
    artifact = Artifact("meta", path.name, step, len(data), new_sha256(data).hexdigest())
    return Checkpoint(step, meta.file, meta.sha256, artifact), meta


def open_checkpoint(folder: Path, wanted: Checkpoint, pace: Pace) -> Opened:
    """All files of a checkpoint; the meta is the last. Raises Gone, Changed, OSError."""
    found, meta = read_meta(folder, wanted.step)
    if found != wanted:
        raise Gone
    artifacts = [Artifact("checkpoint", meta.file, meta.step, meta.size_bytes, meta.sha256)]
    for one in meta.files or ():
        name = f"{meta.folder}/{one['path']}"
        artifacts.append(Artifact("folder-file", name, meta.step, one["size_bytes"], one["sha256"]))
    return Opened(folder, [*artifacts, wanted.meta], pace)


def open_sample(folder: Path, wanted: Sample, pace: Pace) -> Opened:
    """A sample as it is now. Raises Gone, Changed, OSError."""
    fd = _open(folder / wanted.name)
    try:
        size_bytes = os.fstat(fd).st_size
        artifact = Artifact("sample", wanted.name, wanted.step, size_bytes, sha256_of(fd, size_bytes, pace))
    finally:
        os.close(fd)
    return Opened(folder, [artifact], pace)


def _open(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Gone from error
    except OSError as error:
        if error.errno in _NOT_ITS_FAULT:
            raise
        raise Changed(f"{path.name} cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Changed(f"{path.name} is no plain file")
    return fd
