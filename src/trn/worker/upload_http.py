"""How what a run has made travels: tus 1.0 (core and creation) with a digest at its end, and JSON by POST.

    POST   URL         Upload-Length, Upload-Metadata, Idempotency-Key    201, Location: the same for the same key
    HEAD   Location                                                       Upload-Offset
    PATCH  Location    Upload-Offset, a piece of the file                 204, Upload-Offset; Repr-Digest once whole

A file is never whole in memory. Its last piece is held back until all of it is known to have the digest that was
announced, so that a damaged file never becomes whole at the other end. Not here: what is sent when, and what of it was
accepted (uploading, upload_spool).
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urljoin

from trn.errors import TrnError
from trn.records import canonical_json
from trn.transfer.answers import Answer, Refused, Unreachable
from trn.transfer.client import Client
from trn.transfer.places import place_of
from trn.worker.upload_artifacts import Artifact, Changed
from trn.worker.upload_source import Over, Source

__all__ = [
    "Denied",
    "Fenced",
    "Garbled",
    "Over",
    "Refused",
    "Sender",
    "Unreachable",
    "Upload",
    "creation",
    "says_otherwise",
]

_TUS = {"Tus-Resumable": "1.0.0"}
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/=]{1,100}):")
_LEASE = "lease-generation"
_MOST_MOVES = 8


class Denied(Exception):
    """The token was shown and is not taken: nothing that needs it will be."""


class Fenced(Exception):
    """Somebody else has the run: nothing of this worker's is taken any more."""


class Garbled(Exception):
    """An answer that the protocol does not have."""


class Sender:
    """Asks with the headers that every request has, until `is_over`."""

    def __init__(self, client: Client, headers: Callable[[], Mapping[str, str]], is_over: Callable[[], bool]) -> None:
        self._client, self._headers, self.is_over = client, headers, is_over

    def ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Answer:
        """Raises Unreachable, Refused, Denied, Fenced, Over."""
        if self.is_over():
            raise Over
        try:
            ours = self._headers()
        except TrnError as error:  # the lease knows by itself that it is lost
            raise Fenced(error.message) from error
        try:
            return self._client.request(
                method,
                url,
                body=None if body is None else _Body(body, self.is_over),
                length=None if body is None else len(body),
                headers={**headers, **ours},
            )
        except Refused as error:
            if error.status in (401, 403) and error.has_seen_token:
                raise Denied(error.reason) from error
            if error.status == 409 and _LEASE in map(str.lower, ours) and not _is_of_offset(error):
                raise Fenced(error.reason) from error
            raise

    def post(self, url: str, value: Mapping[str, Any], key: str) -> None:
        """Tell `value`. Raises as `ask`."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        self.ask("POST", url, headers, canonical_json(value))


def _is_of_offset(error: Refused) -> bool:
    """Of two meanings of 409 the one that tus has; such an answer says where the server is."""
    return error.answer is not None and error.answer.headers.get("Upload-Offset") is not None


class _Body(io.BytesIO):
    """What is being sent, as long as it may be."""

    def __init__(self, data: bytes, is_over: Callable[[], bool]) -> None:
        super().__init__(data)
        self._is_over = is_over

    def read(self, size: int | None = -1, /) -> bytes:
        if self._is_over():
            raise Over
        return super().read(size)


def creation(artifact: Artifact, names: Mapping[str, str], *, is_final: bool) -> dict[str, str]:
    """The headers that announce an artifact; `names` are those of run and job.

    A second announcement under the same key, which says that it is the final one, sends no byte again.
    """
    told = {
        **names,
        "kind": artifact.kind,
        "name": artifact.name,
        "step": str(artifact.step),
        "sha256": artifact.sha256,
        "final": "true" if is_final else "false",
    }
    return {
        **_TUS,
        "Upload-Length": str(artifact.size_bytes),
        "Upload-Metadata": ",".join(f"{name} {_base64(text)}" for name, text in told.items()),
        "Idempotency-Key": artifact.key(names["run_id"]),
    }


def says_otherwise(answer: Answer, artifact: Artifact) -> bool:
    """Whether an answer to an announcement says that the server has less than the whole artifact, or something else.

    One that says nothing of it does not.
    """
    offset = answer.headers.get("Upload-Offset") or ""
    if offset.isascii() and offset.isdecimal() and len(offset) < 19 and int(offset) != artifact.size_bytes:
        return True
    told = answer.headers.get("Repr-Digest")
    return told is not None and _digest_of(told) not in (None, artifact.sha256)


class Upload:
    """One artifact on its way, a request at a time, so that something else may be sent in between."""

    def __init__(self, sender: Sender, url: str, artifact: Artifact, source: Source, names: Mapping[str, str]) -> None:
        self._sender, self._url, self._artifact, self._source, self._names = sender, url, artifact, source, names
        self._location: str | None = None
        self._answer: Answer | None = None
        """The last that said how far the server is; None where it has to be asked."""
        self.ref: str | None = None
        """The server's own name for it, where it says one."""
        self._moves = 0
        """How often the server was somewhere else, since it last took a piece."""
        self.offset = 0
        """How far the server was when it last said so."""

    def step(self) -> bool:
        """One request; returns whether the server has it whole, with its digest. May be called again after any error.

        Raises Unreachable, Refused, Denied, Fenced, Over; Garbled, after which it begins anew; Changed where the file
        is not what was announced.
        """
        answer, self._answer = self._answer, None
        try:
            if self._location is None:
                return self._begin()
            self._answer = self._look(self._location) if answer is None else self._send(self._location)
            return self._is_whole(self._answer, was_asked=answer is None)
        except Garbled:
            self._location = self._answer = None
            raise

    def _is_whole(self, answer: Answer, *, was_asked: bool) -> bool:
        if self.offset < self._artifact.size_bytes:
            return False
        if answer.headers.get("Repr-Digest") is None and not was_asked:
            self._answer = None  # the next request asks for it
            return False
        self._require_digest(answer)
        return True

    def _begin(self) -> bool:
        """Announce it. A server that says at once how far it is need not be asked."""
        answer = self._sender.ask("POST", self._url, creation(self._artifact, self._names, is_final=False))
        self._take_ref(answer)
        location = answer.headers.get("Location")
        if not location:
            raise Garbled(f"it answered {answer.status} without a Location")
        self._location = self._absolute(location)
        if answer.headers.get("Upload-Offset") is None:
            return False
        self._take(answer)
        self._answer = answer
        return self._is_whole(answer, was_asked=False)

    def _absolute(self, location: str) -> str:
        try:
            url = urljoin(self._url, location)
            ours, theirs = place_of(self._url), place_of(url)
        except ValueError:
            raise Garbled("its Location is not taken: it is no http or https URL, or has a secret in it") from None
        if (ours.scheme, ours.host, ours.port) != (theirs.scheme, theirs.host, theirs.port):
            raise Garbled("its Location is of another host")
        return url

    def _look(self, location: str) -> Answer:
        """Ask how far the server is."""
        try:
            answer = self._sender.ask("HEAD", location, _TUS)
        except Refused as error:
            if error.status in (404, 410):
                raise Garbled(f"{error.reason} for the upload that it had begun") from error
            raise
        self._take(answer)
        return answer

    def _send(self, location: str) -> Answer:
        """Send one piece."""
        offset = self.offset
        piece = self._source.piece(offset)
        end = offset + len(piece)
        if not piece:
            raise Changed(f"it ends at {offset} of {self._artifact.size_bytes} bytes")
        if end == self._artifact.size_bytes and self._source.sha256() != self._artifact.sha256:
            raise Changed("its bytes have not the sha256 that was written down for them")
        headers = {**_TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": str(offset)}
        try:
            answer = self._sender.ask("PATCH", location, headers, piece)
        except (Refused, Fenced) as error:
            if isinstance(error, Refused) and error.status not in (404, 409, 410):
                raise
            answer = self._look(location)  # of a worker that is fenced, this is refused too
            self._moves += 1
            if self.offset == offset or self._moves > _MOST_MOVES:
                raise Garbled(f"{error} to a piece from where it is") from error
            return answer
        self._moves = 0
        self._take(answer)
        if self.offset != end:
            raise Garbled(f"it says it has {self.offset} bytes after those up to {end}")
        return answer

    def _take(self, answer: Answer) -> None:
        self._take_ref(answer)
        text = answer.headers.get("Upload-Offset") or ""
        if not (text.isascii() and text.isdecimal() and len(text) < 19):
            raise Garbled(f"it answered {answer.status} without an Upload-Offset")
        if int(text) > self._artifact.size_bytes:
            raise Garbled(f"it says it has {int(text)} of {self._artifact.size_bytes} bytes")
        self.offset = int(text)

    def _take_ref(self, answer: Answer) -> None:
        if ref := answer.headers.get("Upload-Ref"):
            self.ref = ref[:1000]

    def _require_digest(self, answer: Answer) -> None:
        digest = _digest_of(answer.headers.get("Repr-Digest") or "")
        if digest is None:
            raise Garbled("it does not say the sha256 of what it has (Repr-Digest)")
        if digest != self._artifact.sha256:
            raise Garbled(f"the sha256 of what it has is not that of the file ({self._artifact.sha256[:12]}...)")


def _digest_of(told: str) -> str | None:
    """The sha256 in a Repr-Digest, in hex; "" for one that is none, None where there is none."""
    found = _DIGEST.search(told)
    if found is None:
        return None
    try:
        return base64.b64decode(found[1], validate=True).hex()
    except (binascii.Error, ValueError):
        return ""


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
