"""Where a URL leads, whether it may be asked at all, and whether a token may go there.

The parts that are judged here are the parts that are connected to: no other parser reads the URL again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from trn.addresses import is_loopback, names_user, secret_parameters

__all__ = ["Place", "may_have_token", "place_of", "shown"]

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_LONGEST_SHOWN = 200


@dataclass(frozen=True)
class Place:
    """One http or https URL in its parts. `target` is what the request line has: path and query."""

    scheme: str
    host: str
    """In lower case, without brackets or a last dot."""
    port: int
    target: str

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def is_safe(self) -> bool:
        """Whether nobody on the way can read or change what is sent."""
        return self.scheme == "https" or self.is_loopback

    @property
    def host_and_port(self) -> str:
        return f"{_bracketed(self.host)}:{self.port}"


def place_of(url: str, *, from_server: bool = False) -> Place:
    """The parts of `url`. Raises ValueError, whose text repeats nothing of the URL.

    One that a server sent (`from_server`) may be signed by its parameters, as redirections to a store are: it is used
    once and written down nowhere.
    """
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ValueError("it has characters that no URL has")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("its host or port cannot be read") from None
    scheme = parts.scheme.lower()
    if scheme not in _PORTS:
        raise ValueError("it is neither https:// nor http://")
    if names_user(scheme, parts.netloc):
        raise ValueError("a name or a password stands before its host")
    host = (parts.hostname or "").lower().rstrip(".")
    if not _HOST.fullmatch(host):
        raise ValueError("it names no host")
    if not from_server:
        _refuse_secrets(parts.query, parts.fragment)
    query = f"?{parts.query}" if parts.query else ""
    return Place(scheme, host, port or _PORTS[scheme], (parts.path or "/") + query)


def _refuse_secrets(query: str, fragment: str) -> None:
    if fragment:
        raise ValueError("what follows its # never reaches a server")
    if secret_parameters(query):
        raise ValueError("one of its parameters looks like a secret, and a URL is written down")


def may_have_token(place: Place, hosts: Iterable[str]) -> bool:
    """Whether `hosts` has this one, with its port or without any, and the way there is safe."""
    names = {place.host, place.host_and_port}
    return place.is_safe and any(_normal(one) in names for one in hosts)


def _normal(host: str) -> str:
    text = host.strip().lower()
    if text.startswith("[") and text.endswith("]"):
        return text[1:-1]
    return text.rstrip(".")


def shown(url: str) -> str:
    """As much of a URL or path as can be no secret: no user, no query, no fragment, and not endlessly long."""
    head = re.split(r"[?#]", url, maxsplit=1)[0]
    scheme, slashes, rest = head.partition("://")
    if "@" in rest:
        head = f"{scheme}{slashes}...@{rest.rpartition('@')[2]}"
    text = "".join(sign if sign.isprintable() else "?" for sign in head)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
