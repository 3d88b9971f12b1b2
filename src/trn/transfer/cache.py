"""The cache of inputs: bytes by their digest, whole or absent, shared by all runs that are given the same folder.

    CACHE/sha256/ab/abcd...           the bytes
    CACHE/sha256/ab/abcd....part      ... on their way, .note: of which version; .lock: who fetches
    CACHE/sources/<sha256 of URL>.*   the same of a source whose digest nobody told, and .json: what it was last time

Whoever uses a file of it has hashed it before, as a stranger's code is handed these paths. Nothing is ever removed here
but what is damaged: the folder is a cache, and may be deleted whole whenever nobody fetches. Of one beside the runs,
`trn gc` frees what none of them names.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from trn.errors import StorageError
from trn.files import make_folder, move, new_sha256, remove, write_atomic
from trn.files.system import fsync, open_file, storage_errors, write_all

__all__ = ["Cache", "Known", "Note", "Part", "Slot"]

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Known:
    """What a source without a digest was when it was last asked."""

    sha256: str
    size_bytes: int
    etag: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True)
class Note:
    """Which version of a source the bytes of a part are of, and since which start of the machine they lie there."""

    etag: str
    boot: str


@dataclass(frozen=True)
class Slot:
    """Where one input is on its way."""

    stem: Path

    @property
    def part(self) -> Path:
        return self.stem.with_name(f"{self.stem.name}.part")

    @property
    def note(self) -> Path:
        return self.stem.with_name(f"{self.stem.name}.note")

    @property
    def lock(self) -> Path:
        return self.stem.with_name(f"{self.stem.name}.lock")


class Cache:
    """The names in one cache folder; it is made when something is put into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def whole(self, sha256: str) -> Path:
        return self.folder / "sha256" / sha256[:2] / sha256

    def slot(self, source: str, sha256: str | None) -> Slot:
        """Its folder is there. Raises StorageError."""
        stem = self.whole(sha256) if sha256 else self._of_source(source)
        make_folder(stem.parent)
        return Slot(stem)

    def has(self, sha256: str) -> bool:
        """Whether there is a file of that name; what is in it, only a digest tells."""
        try:
            return stat.S_ISREG(self.whole(sha256).lstat().st_mode)
        except OSError:
            return False

    def known(self, source: str) -> Known | None:
        """What `source` was last time, if that can be read and its bytes are here."""
        try:
            found = json.loads(self._index(source).read_bytes())
            known = Known(**{name: found[name] for name in Known.__dataclass_fields__})
            is_readable = known.sha256.isalnum() and known.size_bytes >= 0
            is_readable = is_readable and _is_sendable(known.etag) and _is_sendable(known.last_modified)
            return known if is_readable and self.has(known.sha256) else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def remember(self, source: str, known: Known) -> None:
        write_atomic(self._index(source), json.dumps(asdict(known)).encode())

    def _index(self, source: str) -> Path:
        stem = self._of_source(source)
        return stem.with_name(f"{stem.name}.json")

    def _of_source(self, source: str) -> Path:
        return self.folder / "sources" / new_sha256(source.encode()).hexdigest()


def _is_sendable(version: object) -> bool:
    """Whether it may stand in a header: whatever trained on this machine could write here."""
    return version is None or (isinstance(version, str) and version.isascii() and version.isprintable())


class Part:
    """What came of an input so far: a file that grows, and its digest. Only for who holds the lock of its slot."""

    def __init__(self, slot: Slot) -> None:
        """What an earlier process left stays, and is hashed. Raises StorageError."""
        self._slot = slot
        self._hash = new_sha256()
        self.size_bytes = 0
        with storage_errors("open", slot.part):
            self._fd = open_file(slot.part, os.O_RDWR | os.O_CREAT)
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                os.close(self._fd)
                raise StorageError("expected a plain file.", where=str(slot.part), hint="Remove it.")
            while piece := os.read(self._fd, _CHUNK_BYTES):
                self._hash.update(piece)
                self.size_bytes += len(piece)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    @property
    def note(self) -> Note | None:
        """What an earlier process knew of it."""
        try:
            found = json.loads(self._slot.note.read_bytes())
            note = Note(etag=found["etag"], boot=str(found["boot"]))
            return note if note.etag and _is_sendable(note.etag) else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def append(self, data: bytes) -> None:
        with storage_errors("write", self._slot.part):
            write_all(self._fd, data, self._slot.part)
        self._hash.update(data)
        self.size_bytes += len(data)

    def restart(self, note: Note | None = None) -> None:
        """Empty, of the version that `note` tells."""
        with storage_errors("write", self._slot.part):
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = new_sha256()
        self.size_bytes = 0
        if note:
            write_atomic(self._slot.note, json.dumps(asdict(note)).encode())
        else:
            remove(self._slot.note)

    def keep(self, path: Path) -> None:
        """It is whole: durable, and `path` from now on."""
        with storage_errors("write", self._slot.part):
            fsync(self._fd, self._slot.part)
        make_folder(path.parent)
        move(self._slot.part, path)
        remove(self._slot.note)

    def close(self) -> None:
        os.close(self._fd)
