"""The connections themselves, by urllib3: pooled, verified, never retried or redirected behind anybody's back.

Every failure comes out in our own words: what urllib3 says of one has the URL in it.
"""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import Iterable, Mapping
from functools import cached_property
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    SSLError,
    TimeoutError,
)

from trn.errors import UsageError
from trn.transfer.answers import Refused, Unreachable
from trn.transfer.places import Place

__all__ = ["Wire", "failure_of"]

_CONNECT_S = 10.0
_CONNECTIONS_PER_HOST = 16


class Wire:
    """Connections to any host, shared by threads."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._direct = urllib3.PoolManager(maxsize=_CONNECTIONS_PER_HOST)
        self._through = self._proxy()

    def send(
        self, method: str, place: Place, body: bytes | Iterable[bytes] | None, headers: Mapping[str, str]
    ) -> BaseHTTPResponse:
        """The answer, of which only the head was read. Raises Unreachable, Refused."""
        pools = self._direct
        secured = {"ssl_context": self._context} if place.scheme == "https" else None
        is_near = place.is_loopback or urllib.request.proxy_bypass(place.host)
        if self._through and place.scheme == "https" and not is_near:
            pools = self._through
        try:
            return pools.connection_from_host(place.host, place.port, place.scheme, secured).urlopen(
                method,
                place.target,
                body=body,
                headers=headers,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=min(_CONNECT_S, self._timeout_s), read=self._timeout_s),
            )
        except (HTTPError, OSError, UnicodeError) as error:
            raise failure_of(error, self._timeout_s) from error

    @cached_property
    def _context(self) -> ssl.SSLContext:
        """Made when it is first needed: to read the system's certificates takes 30 ms."""
        return ssl.create_default_context()

    def _proxy(self) -> urllib3.ProxyManager | None:
        """The proxy of the environment, as a tunnel for https: what is not encrypted goes past it or nowhere."""
        found = urllib.request.getproxies().get("https")
        if not found:
            return None
        parts = urlsplit(found if "://" in found else f"http://{found}")
        user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}" if "@" in parts.netloc else None
        headers = urllib3.make_headers(proxy_basic_auth=user) if user else None
        try:
            return urllib3.ProxyManager(
                f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}",
                maxsize=_CONNECTIONS_PER_HOST,
                proxy_headers=headers,
            )
        except HTTPError as error:
            raise UsageError(
                "expected the address of a proxy, as http://HOST:PORT.",
                where="HTTPS_PROXY",
                hint="Mend it or unset it.",
            ) from error

    def close(self) -> None:
        """Drop the connections that nobody is using."""
        self._direct.clear()
        if self._through:
            self._through.clear()


def failure_of(error: BaseException, timeout_s: float) -> Unreachable | Refused:
    """What a failure of the connection is to us, without a word of the URL."""
    if isinstance(error, ProxyError):
        return Unreachable("the proxy gives no way there")
    if isinstance(error, SSLError):
        cause = error.args[0] if error.args else None
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Refused(0, f"its certificate is not trusted: {cause.verify_message}")
        return Unreachable("the secure connection failed")
    if isinstance(error, NameResolutionError):
        return Unreachable("its name is not known")
    if isinstance(error, NewConnectionError):
        return Unreachable(_because("no connection", error))
    if isinstance(error, ConnectTimeoutError):
        return Unreachable(f"no connection within {min(_CONNECT_S, timeout_s):g} s")
    if isinstance(error, TimeoutError):
        return Unreachable(f"no answer within {timeout_s:g} s")
    if isinstance(error, UnicodeError):
        return Refused(0, "it names no host")
    return Unreachable("the connection broke")


def _because(what: str, error: BaseException) -> str:
    cause = error.__cause__
    text = cause.strerror if isinstance(cause, OSError) else None
    return f"{what}: {text.lower()}" if text else what
