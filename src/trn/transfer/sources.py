"""One source, opened: over http by the client, from any other store by fsspec; both look alike to who reads them."""

from __future__ import annotations

from typing import Protocol

from trn.transfer.answers import Refused
from trn.transfer.cache import Known
from trn.transfer.client import Client
from trn.transfer.stores import open_stored
from trn.transfer.streams import Stream
from trn.transfer.wanted import is_web

__all__ = ["Body", "is_strong", "open_source"]


class Body(Protocol):
    """What a source sends. `etag` says which version it is of; `is_same` that it is the known one, and is not sent."""

    offset: int
    total: int | None
    etag: str | None
    last_modified: str | None
    is_same: bool
    is_bounded: bool
    """Whether an early end would be noticed without knowing the size."""

    def read(self, count: int) -> bytes: ...

    def close(self) -> None: ...


def open_source(source: str, client: Client, *, offset: int, etag: str | None, known: Known | None) -> Body:
    """What `source` sends from `offset` on, or from its beginning where it cannot, or has no longer the version `etag`.

    Not every source compares versions: whoever reads does. `known` is what is already here: with no offset, the
    source is asked whether it has anything else. Raises Unreachable, Refused.
    """
    if not is_web(source):
        return open_stored(source, offset, known.etag if known else None)
    headers: dict[str, str] = {}
    if offset and etag:
        headers["If-Range"] = etag
    if known and not offset:
        if known.etag:
            headers["If-None-Match"] = known.etag
        elif known.last_modified:
            headers["If-Modified-Since"] = known.last_modified
    stream = client.open(source, offset, headers=headers)
    try:
        return _WebBody(stream, offset, was_asked=bool(headers) and not offset)
    except Refused:
        stream.close()
        raise


def is_strong(etag: str | None) -> bool:
    """Whether this version is the same to the last byte."""
    return etag is not None and not etag.startswith("W/")


class _WebBody:
    def __init__(self, stream: Stream, offset: int, *, was_asked: bool) -> None:
        self._stream = stream
        self.offset = 0
        self.total = stream.length
        self.etag = stream.headers.get("ETag")
        self.last_modified = stream.headers.get("Last-Modified")
        self.is_same = stream.status == 304
        self.is_bounded = self.total is not None or "chunked" in stream.headers.get("Transfer-Encoding", "").lower()
        if self.is_same and not was_asked:
            raise Refused(304, "it answered 304 without having been asked for news")
        if stream.status == 206:
            part = stream.part
            if part is None or part[0] != offset or not offset:
                raise Refused(206, "it sends another part than the one that was asked for")
            self.offset, self.total = part
            self.is_bounded = self.total is not None

    def read(self, count: int) -> bytes:
        return self._stream.read(count)

    def close(self) -> None:
        self._stream.close()
