"""An answer that is read piece by piece."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http.client import HTTPException
from types import TracebackType
from typing import TYPE_CHECKING

from trn.transfer.answers import Refused

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

__all__ = ["Stream"]

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


class Stream:
    """The head of an answer, and its body as far as it was not read yet. For one thread."""

    def __init__(self, response: BaseHTTPResponse, timeout_s: float) -> None:
        self._response = response
        self._is_done = False
        self.timeout_s = timeout_s
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        """Names are found in any case."""

    @property
    def length(self) -> int | None:
        """Bytes of the body, where the server says."""
        text = self.headers.get("Content-Length", "")
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None

    @property
    def part(self) -> tuple[int, int | None] | None:
        """Of a 206, where it begins in the whole, and how long that is; None where neither is said."""
        found = _CONTENT_RANGE.fullmatch(self.headers.get("Content-Range", "").strip())
        if found is None:
            return None
        return int(found[1]), None if found[3] == "*" else int(found[3])

    def read(self, count: int) -> bytes:
        """Up to `count` bytes, as soon as there are some; empty at the end.

        Raises Unreachable where the end comes early, Refused where the body is encoded.
        """
        from urllib3.exceptions import HTTPError

        from trn.transfer.wire import failure_of

        if (encoding := self.headers.get("Content-Encoding", "identity").lower()) != "identity" and self.status < 300:
            raise Refused(self.status, f"it answers encoded as {encoding[:20]!a}, which was not asked for")
        try:
            piece = self._response.read1(count)
        except (HTTPError, HTTPException, OSError) as error:
            raise failure_of(error, self.timeout_s) from error
        self._is_done = not piece
        return piece

    def close(self) -> None:
        """Give the connection back, or drop it where something was left unread."""
        if self._is_done:
            self._response.release_conn()
        else:
            self._response.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
