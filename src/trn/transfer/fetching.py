"""One input, fetched: looked for in the cache, else read from its source until it is whole and what it must be.

    in the cache ── hashed ──> it
    else  take its lock ─> bytes so far (.part) ─> read on from there ─> whole? right? ─> its name in the cache
                               ^── no answer: wait, and again ──┘              └── wrong: once more from nothing

Two processes that want the same fetch it once: the second waits for the lock of the first, and finds it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from trn.errors import DataError, StorageError
from trn.files import Lock, new_sha256
from trn.transfer.arrival import Arrival, Tools
from trn.transfer.cache import Known, Part, Slot
from trn.transfer.meters import Patience
from trn.transfer.places import shown
from trn.transfer.wanted import Fetched, Wanted, local_path, other_digest, other_size

__all__ = ["fetch_one"]

_CHUNK_BYTES = 1 << 20
_LOOK_S = 0.2


def fetch_one(wanted: Wanted, tools: Tools) -> Fetched:
    """`wanted`, which was judged before. Raises DataError, Unauthorized, StorageError; Halted where it is told to."""
    path = local_path(wanted)
    if path is not None:
        return _local(wanted, path, tools)
    if found := _cached(wanted, tools):
        return found
    slot = tools.cache.slot(wanted.source, wanted.sha256)
    patience = Patience(tools.patience_s)
    with _turn(slot, patience, tools):
        if found := _cached(wanted, tools):
            return found
        known = _still_good(wanted, tools)
        with closing(Part(slot)) as part:
            return Arrival(wanted, part, known, patience, tools).run()


def _local(wanted: Wanted, path: Path, tools: Tools) -> Fetched:
    """It stays where it is. Hashed only where a digest was given, and never copied."""
    try:
        size_bytes = None if path.is_dir() else path.stat().st_size
    except OSError as error:
        raise DataError(f"it cannot be found: {error.strerror}.", where=wanted.where, hint="Check the path.") from error
    if size_bytes is None or not path.is_file():
        if wanted.sha256 is not None or wanted.size_bytes is not None or not path.is_dir():
            raise DataError("expected a file.", where=wanted.where, hint="A digest and a size are of one file.")
        tools.tell(0, 0)
        return Fetched(wanted.name, path, None, None, shown(wanted.source))
    if wanted.size_bytes not in (None, size_bytes):
        raise other_size(wanted, size_bytes)
    sha256 = None
    if wanted.sha256 is None:
        tools.tell(0, 0)
    else:
        try:
            sha256, size_bytes = _hashed(path, tools)
        except OSError as error:
            raise DataError(
                f"it cannot be read: {error.strerror}.", where=wanted.where, hint="Check its mode."
            ) from error
        if sha256 != wanted.sha256:
            raise other_digest(wanted, sha256)
    return Fetched(wanted.name, path, sha256, size_bytes, shown(wanted.source))


def _cached(wanted: Wanted, tools: Tools) -> Fetched | None:
    """What the cache has under its digest, hashed now; None without one, or where it is damaged."""
    if wanted.sha256 is None or not tools.cache.has(wanted.sha256):
        return None
    path = tools.cache.whole(wanted.sha256)
    try:
        sha256, size_bytes = _hashed(path, tools)
    except OSError:
        return None
    if sha256 != wanted.sha256:
        return None
    if wanted.size_bytes not in (None, size_bytes):
        raise other_size(wanted, size_bytes)
    return Fetched(wanted.name, path, sha256, size_bytes, shown(wanted.source))


def _still_good(wanted: Wanted, tools: Tools) -> Known | None:
    """What a source without a digest was last time, where that is here and undamaged."""
    known = tools.cache.known(wanted.source) if wanted.sha256 is None else None
    if known is None or not (known.etag or known.last_modified):
        return None
    try:
        is_good = _hashed(tools.cache.whole(known.sha256), tools) == (known.sha256, known.size_bytes)
    except OSError:
        is_good = False
    return known if is_good else None


def _hashed(path: Path, tools: Tools) -> tuple[str, int]:
    digest, size_bytes = new_sha256(), 0
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with open(fd, "rb", buffering=0) as stream:
        total = os.fstat(fd).st_size
        while piece := stream.read(_CHUNK_BYTES):
            tools.go_on()
            digest.update(piece)
            size_bytes += len(piece)
            tools.tell(size_bytes, total)
    return digest.hexdigest(), size_bytes


@contextmanager
def _turn(slot: Slot, patience: Patience, tools: Tools) -> Iterator[None]:
    """Hold the lock of `slot`. Whoever holds it is waited for as long as its part grows."""
    lock = Lock(slot.lock)
    while not lock.acquire(wait_s=_LOOK_S):
        tools.go_on()
        size_bytes = _size(slot.part)
        patience.reached(size_bytes)
        tools.tell(size_bytes, None)
        if patience.is_over:
            raise StorageError(
                f"another process has been fetching it without progress for {patience.limit_s:g} s.",
                where=str(slot.lock),
                hint="End that process, or give this one another cache.",
            )
    try:
        yield
    finally:
        lock.release()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
