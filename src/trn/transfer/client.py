"""One client for all that a worker asks of others: a token goes only where it may, and an answer means one thing.

    2xx                          an Answer
    none, 5xx, 408, 425, 429     Unreachable: the same again, later
    all others                   Refused: redirections too, and answers that make no sense

A token is sent to the hosts that were named, by https or to this machine. It is asked for anew with each request, so
that a file that holds it may be replaced; it follows no redirection, and stands in no message. Nothing is sent twice
by the client itself: whoever asks knows whether that is safe. Made to be shared by threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from http.client import responses
from typing import BinaryIO
from urllib.parse import urljoin

from trn.errors import StorageError, UsageError
from trn.transfer.answers import Answer, Refused, Unreachable
from trn.transfer.places import Place, may_have_token, place_of
from trn.transfer.streams import Stream

__all__ = ["Answer", "Client", "Refused", "Stream", "Unreachable"]

_LATER = frozenset({408, 425, 429})
_REDIRECTIONS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTIONS = 5
_ANSWER_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 18


class Client:
    """Asks servers. `hosts` are those that may see the token, each `host` (any port) or `host:port`."""

    def __init__(
        self, token: Callable[[], str | None] | None, hosts: frozenset[str], *, timeout_s: float = 30.0
    ) -> None:
        """Raises UsageError where urllib3, of the extra `worker`, is not installed."""
        try:
            from trn.transfer.wire import Wire  # an extra: only for whoever asks a server
        except ImportError as error:
            raise UsageError(
                "to ask a server takes urllib3, not installed.", hint="pip install 'trn-runtime[worker]'"
            ) from error
        self._wire = Wire(timeout_s)
        self._token = token
        self._hosts = hosts
        self._timeout_s = timeout_s

    def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes | BinaryIO | None = None,
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ) -> Answer:
        """Ask once, and read the answer, of at most 1 MiB. Raises Unreachable, Refused.

        Of a file as `body`, exactly `length` bytes are sent from where it stands; StorageError where it has fewer.
        """
        place = _place(url)
        sent = {"User-Agent": "trn", "Accept-Encoding": "identity", **(headers or {})}
        if body is not None and not isinstance(body, bytes):
            assert length is not None, "the length of a file that is sent must be said"
            sent["Content-Length"] = str(length)
            data: bytes | Iterator[bytes] | None = _pieces(body, length)
        else:
            data = body
        withheld = self._authorize(place, sent)
        stream = Stream(self._wire.send(method, place, data, sent), self._timeout_s)
        with stream:
            if 200 <= stream.status < 300:
                return Answer(stream.status, stream.headers, _whole(stream))
            raise _judged(stream, withheld, _start(stream), has_seen_token="Authorization" in sent)

    def open(self, url: str, offset: int = 0, *, headers: Mapping[str, str] | None = None) -> Stream:
        """The answer to a GET, to be read piece by piece, from `offset` where the server can.

        What it is, `status` says: 200 is the whole, 206 a part, 304 nothing new. Where no token goes, redirections to
        https are followed, and from this machine to this machine; no token goes there either. Raises Unreachable,
        Refused.
        """
        place = _place(url)
        sent = {"User-Agent": "trn", "Accept-Encoding": "identity", **(headers or {})}
        if offset:
            sent["Range"] = f"bytes={offset}-"
        withheld = self._authorize(place, sent)
        for _ in range(_MOST_REDIRECTIONS + 1):
            stream = Stream(self._wire.send("GET", place, None, sent), self._timeout_s)
            if stream.status in (200, 206, 304):
                return stream
            with stream:
                if stream.status not in _REDIRECTIONS or "Authorization" in sent:
                    raise _judged(stream, withheld, _start(stream), has_seen_token="Authorization" in sent)
                url = urljoin(url, stream.headers.get("Location", ""))
                place = _next_place(place, url, stream.status)
        raise Refused(stream.status, f"it redirects more than {_MOST_REDIRECTIONS} times")

    def _authorize(self, place: Place, headers: dict[str, str]) -> str:
        """Add the token where it may go; returns why there is none, in words for whoever is refused then."""
        if not may_have_token(place, self._hosts):
            return "no token was sent there" if self._token else ""
        token = self._token() if self._token else None
        if not token:
            return "there is no token to send"
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise Refused(0, "the token has characters that no header may have")
        headers["Authorization"] = f"Bearer {token}"
        return ""

    def with_timeout(self, timeout_s: float) -> Client:
        """One for the same hosts with the same token, over connections of its own, that waits so long."""
        return Client(self._token, self._hosts, timeout_s=timeout_s)

    def close(self) -> None:
        """Drop the connections that nobody is using; the client stays of use."""
        self._wire.close()


def _place(url: str) -> Place:
    try:
        return place_of(url)
    except ValueError as error:
        raise Refused(0, f"this URL is not taken: {error}") from None


def _next_place(before: Place, url: str, status: int) -> Place:
    try:
        place = place_of(url, from_server=True)
    except ValueError as error:
        raise Refused(status, f"it redirects to a URL that is not taken: {error}") from None
    if place.scheme != "https" and not (before.is_loopback and place.is_loopback and before.scheme == "http"):
        raise Refused(status, "it redirects to what is not https")
    return place


def _pieces(body: BinaryIO, length: int) -> Iterator[bytes]:
    """Exactly `length` bytes; what else would be sent is another request to the server."""
    left = length
    while left:
        try:
            piece = body.read(min(left, _CHUNK_BYTES))
        except OSError as error:  # which would be taken for one of the connection
            raise StorageError(f"cannot read what is being sent: {error.strerror or error}.") from error
        if not piece:
            raise StorageError(f"what is being sent ended {left} bytes too early.", hint="Somebody changed the file.")
        left -= len(piece)
        yield piece


def _whole(stream: Stream) -> bytes:
    body = bytearray()
    deadline = time.monotonic() + 2 * stream.timeout_s
    while piece := stream.read(_CHUNK_BYTES):
        body += piece
        if len(body) > _ANSWER_BYTES:
            raise Refused(stream.status, f"its answer is larger than {_ANSWER_BYTES} bytes")
        if time.monotonic() > deadline:
            raise Unreachable(f"its answer took longer than {2 * stream.timeout_s:g} s")
    return bytes(body)


def _start(stream: Stream) -> bytes:
    """As much of a refusal's text as there is; how it ends does not matter."""
    try:
        return _whole(stream)
    except (Unreachable, Refused):
        return b""


def _judged(stream: Stream, withheld: str, body: bytes, *, has_seen_token: bool) -> Unreachable | Refused:
    """What an answer means that is no 2xx."""
    status = stream.status
    told = f"it answered {status} {responses.get(status, '')}".rstrip()
    wish_s = retry_after_s(stream.headers.get("Retry-After", ""))
    if status in _LATER or 500 <= status < 600:
        return Unreachable(told, wish_s, status=status)
    if status in _REDIRECTIONS:
        told += ", and no redirection is followed"
    if status in (401, 403) and withheld:
        told += f"; {withheld}"
    answer = Answer(status, stream.headers, body)
    return Refused(status, told, answer=answer, retry_after_s=wish_s, has_seen_token=has_seen_token)


def retry_after_s(text: str, now: float | None = None) -> float | None:
    """Of `Retry-After`, which is a number of seconds or a date."""
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now))
    except (TypeError, ValueError, OverflowError):
        return None
