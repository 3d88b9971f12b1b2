"""Stores of all schemes but http, through fsspec (the extra `remote`): one object, read from an offset on.

What a client of fsspec raises becomes Unreachable or Refused here. Its words are not repeated: they may have a signed
URL in them. Credentials are found as the store's own tools find them.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from trn.addresses import names_user, secret_parameters
from trn.transfer.answers import Refused, Unreachable

__all__ = ["StoredBody", "open_stored", "store_url"]

_SHAPE = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?", re.IGNORECASE)
_HINT = "pip install 'trn-runtime[remote]'"


def store_url(url: str) -> str:
    """The scheme of `url`. Raises ValueError, whose text repeats nothing of it."""
    found = _SHAPE.fullmatch(url)
    if found is None or not url.isprintable():
        raise ValueError("expected SCHEME://PLACE/NAME")
    scheme, place, _, query = found[1].lower(), found[2], found[3], found[4] or ""
    if scheme in ("local", "file"):
        raise ValueError("write what is on this disk as a path")
    if names_user(scheme, place):
        raise ValueError("a name or a password stands before its host")
    if secret_parameters(query):
        raise ValueError("one of its parameters looks like a secret, and a URL is written down")
    return scheme


class StoredBody:
    """One object of a store, open at `offset`."""

    def __init__(self, file: Any, offset: int, total: int | None, etag: str | None, *, is_same: bool = False) -> None:
        self._file = file
        self.offset = offset
        self.total = total
        self.etag = etag
        self.last_modified: str | None = None
        self.is_same = is_same
        self.is_bounded = total is not None

    def read(self, count: int) -> bytes:
        try:
            return bytes(self._file.read(count))
        except Exception as error:
            raise _told(error) from error

    def close(self) -> None:
        if self._file is not None:
            with suppress(Exception):  # it was only read
                self._file.close()


def open_stored(url: str, offset: int, known_etag: str | None) -> StoredBody:
    """The object from `offset` on, from its beginning where it is shorter; which version it is of, its `etag` says.

    Nothing is opened where it is still the one of `known_etag`. Raises Unreachable, Refused.
    """
    try:
        system = _system(url)
        info = system.info(url)
        size = info.get("size")
        total = int(size) if isinstance(size, int | float) else None
        if info.get("type") == "directory":
            raise Refused(0, "it is a folder, expected one file")
        found = _version(info)
        if found is not None and found == known_etag and not offset:
            return StoredBody(None, 0, total, found, is_same=True)
        start = offset if total is None or offset <= total else 0
        file = system.open(url, "rb")
        if start:
            file.seek(start)
        return StoredBody(file, start, total, found)
    except (Refused, Unreachable):
        raise
    except Exception as error:
        raise _told(error) from error


def _system(url: str) -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise Refused(0, f"its scheme needs fsspec, not installed ({_HINT})") from error
    scheme = store_url(url)
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise Refused(0, f"{scheme}:// needs more than is installed: {error}") from error
    except ValueError as error:
        raise Refused(0, f"{scheme}:// is not known") from error
    # nothing is remembered: a size from before would hide that the object has changed
    return kind(skip_instance_cache=True, use_listings_cache=False, **kind._get_kwargs_from_urls(url))


def _version(info: dict[str, Any]) -> str | None:
    """What says that an object is the same as before: its tag, or else its time and size; None without either."""
    for name in ("ETag", "etag", "md5Hash", "generation", "checksum"):
        if info.get(name):
            return f"{name}={info[name]}"
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        if info.get(name):
            return f"{name}={info[name]} size={info.get('size')}"
    return None


def _told(error: Exception) -> Unreachable | Refused:
    if isinstance(error, FileNotFoundError):
        return Refused(404, "there is no such object")
    if isinstance(error, PermissionError):
        return Refused(403, "the store does not allow it")
    if isinstance(error, OSError):
        return Unreachable(f"the store does not give it ({type(error).__name__})")
    return Refused(0, f"the client of this store fails with {type(error).__name__}")
