"""`https://...`, and `http://` on this machine: batches of CloudEvents 1.0 by POST, signed, until they are taken.

    POST   Content-Type: application/cloudevents-batch+json     [{"specversion": "1.0", "source", "id", "data" ...} ...]
           webhook-id, Idempotency-Key    the same for the same batch, however often it is sent
           webhook-timestamp              seconds since 1970
           webhook-signature              v1,BASE64 of HMAC-SHA256 over `id.timestamp.body`; with secret_env= or _file=
           Authorization: Bearer          with token_env= or token_file=

The names of the three headers are those of Standard Webhooks, so that a receiver finds a library that checks them. A
redirection is not followed: a token goes to the host that it was given for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPMessage
from typing import IO, Any

from trn.sinks.secrets import secret_of
from trn.sinks.sink import EventSink, Json, Refused, RunFacts, Unreachable
from trn.sinks.targets import Target

__all__ = ["WebhookSink", "cloud_event", "open_webhook", "signature"]

_TIMEOUT_S = 10.0
_LATER = frozenset({408, 425, 429})
_OF_TARGET = frozenset({401, 402, 403, 404, 405, 407, 410, 415, 421, 426})
"""Answers that say something of the address or the token, and nothing of the batch."""
_TOO_LARGE = 413
_SECRET_PREFIX = "whsec_"


def cloud_event(event: Json) -> Json:
    """The event in its envelope. `source` and `id` together name it, in whichever batch it comes."""
    return {
        "specversion": "1.0",
        "id": str(event["seq"]),
        "source": f"/trn/runs/{event['run_id']}",
        "type": f"trn.{event['event']}",
        "subject": event["job_id"],
        "time": event["ts"],
        "datacontenttype": "application/json",
        "data": event,
    }


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`. A secret that begins with `whsec_` is base64, any other is taken as it is.

    Source: the specification of Standard Webhooks, 1.0.
    """
    key = secret.encode()
    if secret.startswith(_SECRET_PREFIX):
        try:
            key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
        except (binascii.Error, ValueError) as error:
            raise Refused("the secret begins with whsec_, and what follows is no base64", of_target=True) from error
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """None: the answer itself is what the caller sees."""


class WebhookSink(EventSink):
    """Sends to one address; what was sent and not answered is sent again, with the same key."""

    batch = 64

    def __init__(self, target: Target, run: RunFacts, *, clock: Callable[[], float] = time.time) -> None:
        self._target = target
        self._run = run
        self._clock = clock
        is_secure = target.url.startswith("https:")
        # a proxy gets a tunnel or nothing: what is not encrypted stays on this machine
        proxies = urllib.request.ProxyHandler(None if is_secure else {})
        self._opener = urllib.request.build_opener(_NoRedirect, proxies)

    def last_seq(self) -> None:
        """It cannot tell."""
        return None

    def send(self, events: Sequence[Json]) -> None:
        """A batch that is too large is halved, so that one event that is costs no other."""
        if self._post(events):
            return
        lost, reason = 0, ""
        half = len(events) // 2
        for part in (events[:half], events[half:]):
            try:
                self.send(part)
            except Refused as error:
                if error.of_target:
                    raise
                lost += len(part) if error.lost is None else error.lost
                reason = error.reason
        if lost:
            raise Refused(reason, lost=lost)

    def _post(self, events: Sequence[Json]) -> bool:
        """Whether it was taken, else it is too large. Raises Unreachable, Refused."""
        body = json.dumps([cloud_event(event) for event in events], ensure_ascii=False, allow_nan=False).encode()
        try:
            with self._opener.open(self._request(events, body), timeout=_TIMEOUT_S) as answer:
                answer.read(1)
        except urllib.error.HTTPError as error:
            with error:
                if error.code != _TOO_LARGE or len(events) == 1:
                    raise self._judged(error) from error
                return False
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise Refused(f"no secure connection: {error.reason}", of_target=True) from error
            raise Unreachable(str(error.reason)) from error
        except (OSError, HTTPException) as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from error
        return True

    def _request(self, events: Sequence[Json], body: bytes) -> urllib.request.Request:
        first, last = events[0], events[-1]
        named = f"{self._run.run_id}\0{first['seq']}\0{last['seq']}\0{first['ts']}"
        message_id = f"trn_{hashlib.sha256(named.encode()).hexdigest()[:32]}"
        headers = {
            "Content-Type": "application/cloudevents-batch+json; charset=UTF-8",
            "User-Agent": "trn",
            "Idempotency-Key": message_id,
            "webhook-id": message_id,
        }
        if secret := secret_of(self._target, self._run, "secret"):
            timestamp = int(self._clock())
            headers["webhook-timestamp"] = str(timestamp)
            headers["webhook-signature"] = signature(secret, message_id, timestamp, body)
        if token := secret_of(self._target, self._run, "token"):
            if not token.isprintable():
                raise Refused("the token has characters that no header may have", of_target=True)
            headers["Authorization"] = f"Bearer {token}"
        return urllib.request.Request(self._target.url, data=body, headers=headers, method="POST")

    def _judged(self, error: urllib.error.HTTPError) -> Unreachable | Refused:
        """What an answer means that is no 2xx."""
        told = f"it answered {error.code} {error.reason}"
        if error.code < 400:
            return Refused(f"{told}: it lies elsewhere now, and no redirection is followed", of_target=True)
        if error.code in _LATER or error.code >= 500:
            return Unreachable(told, self._wish_s(error.headers))
        return Refused(told, of_target=error.code in _OF_TARGET)

    def _wish_s(self, headers: Any) -> float | None:
        """Of `Retry-After`, which is a number of seconds or a date."""
        text = (headers.get("Retry-After") or "").strip()
        if text.isascii() and text.isdecimal():
            return float(text[:9])
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - self._clock())
        except (TypeError, ValueError, OverflowError):
            return None

    def close(self) -> None:
        """Nothing is held open."""


def open_webhook(target: Target, run: RunFacts) -> EventSink:
    return WebhookSink(target, run)
