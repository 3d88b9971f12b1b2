"""One input on its way from its source into the cache: read on, judged at the end, kept or thrown away.

A request that gets no answer is sent again until there was no progress for too long. What has come is wrong where its
size or digest is not what was promised: it is fetched once more from nothing, and refused if it is wrong again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from trn.errors import DataError, TrnError, Unauthorized
from trn.files import boot_id
from trn.transfer.answers import Refused, Unreachable
from trn.transfer.cache import Cache, Known, Note, Part
from trn.transfer.client import Client
from trn.transfer.meters import Halted, Patience, Room
from trn.transfer.places import shown
from trn.transfer.sources import Body, is_strong, open_source
from trn.transfer.wanted import Fetched, Wanted, other_digest, other_size

__all__ = ["Arrival", "Tools"]

_CHUNK_BYTES = 1 << 20
_NOTE_FROM_BYTES = 1 << 22
"""What is smaller is begun anew by the next process, where nobody told its digest."""


@dataclass(frozen=True)
class Tools:
    """What a fetch works with; but for `tell`, the same for all of one call."""

    cache: Cache
    client: Client
    halt: threading.Event
    room: Room
    patience_s: float
    tell: Callable[[int, int | None], None]
    """How many bytes of it are here, and of how many."""
    warn: Callable[[str], None]
    """In a line, that a source has not answered and is asked again."""

    def go_on(self) -> None:
        """Raises Halted where it is told to."""
        if self.halt.is_set():
            raise Halted


class Arrival:
    """One input on its way; whoever makes it holds the lock of its slot."""

    def __init__(self, wanted: Wanted, part: Part, known: Known | None, patience: Patience, tools: Tools) -> None:
        self._wanted = wanted
        self._part = part
        self._known = known
        self._patience = patience
        self._tools = tools
        self._version: tuple[str | None, str | None] = (None, None)
        self._has_warned = False
        self._etag = self._noted()
        self._drop_unversioned()

    def run(self) -> Fetched:
        """Raises DataError, Unauthorized, StorageError, Halted."""
        self._patience.restart(self._part.size_bytes)
        if self._wanted.sha256 and self._problem() is None:
            return self._kept()
        problem = self._come()
        if problem:
            self._part.restart()
            self._patience.restart(0)
            problem = self._come()
        if problem:
            self._part.restart()
            raise problem
        return self._kept()

    def _noted(self) -> str | None:
        """The version of the bytes that an earlier process left; after a crash of the machine they may have holes."""
        note = self._part.note
        return note.etag if note and note.boot == boot_id() else None

    def _drop_unversioned(self) -> None:
        """Bytes of no known version are not read on, unless there is a digest to compare in the end."""
        if self._wanted.sha256 is None and self._etag is None and self._part.size_bytes:
            self._part.restart()

    def _come(self) -> DataError | None:
        """Read until all has come; returns what is wrong with it. Raises DataError, Unauthorized, Halted."""
        while True:
            try:
                if self._read_on():
                    return self._problem()
            except Unreachable as error:
                if self._patience.is_over:
                    raise DataError(
                        f"no progress for {self._patience.limit_s:g} s: {error.reason}.",
                        where=self._wanted.where,
                        hint="Check the URL and the network; what has come is kept.",
                    ) from error
                if not self._has_warned:
                    self._has_warned = True
                    self._tools.warn(f"{self._wanted.where}: {error.reason}; it is asked again")
                self._patience.wait(error.retry_after_s, self._tools.halt)
            except Refused as error:
                # 416, 206: what is asked for beyond the bytes that are here is not to be had
                if error.status not in (206, 416) or not self._part.size_bytes:
                    raise _told(self._wanted, error) from error
                self._part.restart()

    def _read_on(self) -> bool:
        """One request; False where it has to begin anew. Raises Unreachable, Refused."""
        self._tools.go_on()
        self._drop_unversioned()
        part, etag = self._part, self._etag
        body = open_source(
            self._wanted.source, self._tools.client, offset=part.size_bytes, etag=etag, known=self._known
        )
        with closing(body):
            if body.is_same:
                return True
            self._known = None
            if body.offset and etag is not None and body.etag != etag:
                part.restart()  # a source that does not know If-Range: these are bytes of something else
                return False
            if not body.offset:
                self._begin(body)
            if self._wanted.size_bytes is not None and body.total not in (None, self._wanted.size_bytes):
                raise other_size(self._wanted, body.total)
            if not (body.is_bounded or self._wanted.sha256 or self._wanted.size_bytes is not None):
                told = "it says neither how long it is nor where it ends, and no sha256 is given"
                raise Refused(206 if body.offset else 0, told)  # of a part: the whole may say it
            self._version = (body.etag, body.last_modified)
            self._drain(body)
        return True

    def _begin(self, body: Body) -> None:
        self._etag = body.etag if is_strong(body.etag) else None
        is_noted = body.total is None or body.total >= _NOTE_FROM_BYTES
        self._part.restart(Note(self._etag, boot_id()) if is_noted and self._etag else None)

    def _drain(self, body: Body) -> None:
        part, tools, limit = self._part, self._tools, self._wanted.size_bytes
        total = body.total if body.total is not None else limit
        with tools.room.taken(0 if total is None else max(0, total - part.size_bytes)) as wrote:
            tools.tell(part.size_bytes, total)
            while piece := body.read(_CHUNK_BYTES):
                tools.go_on()
                part.append(piece)
                wrote(len(piece))
                tools.tell(part.size_bytes, total)
                self._patience.reached(part.size_bytes)
                if limit is not None and part.size_bytes > limit:
                    return
        if body.total is not None and part.size_bytes < body.total:
            raise Unreachable(f"it ended {body.total - part.size_bytes} bytes too early")

    def _problem(self) -> DataError | None:
        if self._known:
            return None
        if self._wanted.size_bytes not in (None, self._part.size_bytes):
            return other_size(self._wanted, self._part.size_bytes)
        if self._wanted.sha256 not in (None, self._part.sha256):
            return other_digest(self._wanted, self._part.sha256)
        return None

    def _kept(self) -> Fetched:
        cache, wanted = self._tools.cache, self._wanted
        if self._known:
            sha256, size_bytes = self._known.sha256, self._known.size_bytes
            if wanted.size_bytes not in (None, size_bytes):
                raise other_size(wanted, size_bytes)
        else:
            sha256, size_bytes = self._part.sha256, self._part.size_bytes
            self._part.keep(cache.whole(sha256))
            if wanted.sha256 is None:
                cache.remember(wanted.source, Known(sha256, size_bytes, *self._version))
        return Fetched(wanted.name, cache.whole(sha256), sha256, size_bytes, shown(wanted.source))


def _told(wanted: Wanted, error: Refused) -> TrnError:
    if error.status in (401, 403):
        return Unauthorized(
            f"{error.reason}.",
            where=wanted.where,
            hint="Check that the source may be read with this token, and that its host is among TRAINER_TOKEN_HOSTS.",
        )
    return DataError(f"{error.reason}.", where=wanted.where, hint="Check the source in the job.")
