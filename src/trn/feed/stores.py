"""Stores behind URLs: how a URL is read, which store answers for it, and what a store is asked.

    s3://bucket/key   gs://bucket/key   abfs://...   hdfs://...     pyarrow's own file systems (`ArrowStore`)
    any other scheme                                                fsspec, the extra `remote` (`stores_fsspec`)

A key stands in the URL as the store has it: nothing is percent-decoded. What follows a `?` are options of the store's
client (`region`, `endpoint_override`, `scheme`, `anonymous`), for https the query itself. Credentials never stand in a
URL, since a URL is recorded: each client finds them as the store's own tools do, in the environment or its own files.

Waiting is bounded: a store that does not answer is an error after two minutes at most, not a hang.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Protocol
from urllib.parse import parse_qsl, unquote

import pyarrow as pa
import pyarrow.fs as pafs

from trn.addresses import names_user
from trn.errors import DataError

__all__ = ["Listed", "Store", "Url", "is_url", "parse_url", "store_of"]

CONNECT_S = 10
REQUEST_S = 30
_TRIES = 3
_SAME = {"gcs": "gs", "s3a": "s3", "s3n": "s3"}
_ARROW = frozenset({"s3", "gs", "abfs", "abfss", "hdfs", "viewfs"})
_BUCKETS = frozenset({"s3", "gs"})  # no bucket has a port
_WEB = frozenset({"http", "https"})
_ON_DISK = frozenset({"file", "local"})
_OPTIONS = frozenset({"region", "endpoint_override", "scheme", "anonymous"})
_SECRET = re.compile(r"sig|secret|token|passw|credential|auth|key|code", re.IGNORECASE)
_PORT = re.compile(r"[^:]*:\d*|\[[0-9a-f:.]*\](:\d*)?", re.IGNORECASE)
_USER = re.compile(r"//[^/]*@")
_SHAPE = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#]*)([^?]*)(?:\?(.*))?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Url:
    """A URL in its parts; `path` begins with a slash or is empty."""

    scheme: str
    place: str
    """Bucket or host."""
    path: str
    query: str

    def at(self, path: str) -> str:
        """The text of a URL in the same place; `path` begins with a slash or is empty."""
        return f"{self.scheme}://{self.place}{path}" + (f"?{self.query}" if self.query else "")

    @property
    def text(self) -> str:
        return self.at(self.path)


@dataclass(frozen=True)
class Listed:
    """What a store says of a name. `mtime_ns` is 0 where it keeps no times; `size_bytes` is None where it is silent."""

    path: str
    """As `Url.path`."""
    is_folder: bool
    size_bytes: int | None = None
    mtime_ns: int = 0


class Store(Protocol):
    """One bucket or host. Methods raise FileNotFoundError, PermissionError and other OSErrors, as a disk would."""

    def stat(self, path: str) -> Listed: ...

    def list(self, folder: str, *, deep: bool) -> Iterable[Listed]:
        """What lies in a folder, with `deep` all that lies below it; in no promised order."""
        ...

    def open(self, path: str) -> pa.NativeFile:
        """For random reads."""
        ...


def is_url(text: str) -> bool:
    return "://" in text


def parse_url(text: str) -> Url:
    """The parts of a URL. Raises DataError for what is no URL, and for one that holds a secret, without showing it."""
    found = _SHAPE.fullmatch(text)
    if found is None:
        raise DataError("expected a URL such as s3://bucket/folder/*.parquet.", where=ascii(_without_secrets(text)))
    scheme, place, path, query = found[1].lower(), found[2], found[3], found[4] or ""
    names = [name for name, _ in parse_qsl(query.replace(";", "&"), keep_blank_values=True)]
    scheme = _SAME.get(scheme, scheme)
    if _names_somebody(scheme, place, query) or any(_SECRET.search(name) for name in names):
        raise DataError(
            "a URL with a name, a password or a key in it is not taken, since it would be recorded.",
            where=_without_secrets(text),
            hint="Leave the secret out: credentials are read from the environment, as the store's own tools do.",
        )
    if scheme in _WEB and "#" in text:
        raise DataError(
            'what follows a "#" never reaches the server, and is not taken.',
            where=_without_secrets(text),
            hint='Leave it out; a "#" in a name is written %23.',
        )
    if scheme in _ON_DISK:
        raise DataError(f"a {scheme}:// URL is not taken.", where=text, hint="Write it as a path.")
    if scheme in _ARROW and (unknown := [name for name in names if name not in _OPTIONS]):
        raise DataError(
            f"unknown option {unknown[0]!r}, expected one of {', '.join(sorted(_OPTIONS))}.",
            where=text,
            hint='A "?" in a key cannot be written here.',
        )
    if not place and scheme not in ("hdfs", "viewfs", "memory"):
        raise DataError("it names no bucket or host.", where=text)
    return Url(scheme, place, path, query)


def _names_somebody(scheme: str, place: str, query: str) -> bool:
    """Whether a name or a password stands in the place, or in the place of a URL among the options.

    A slash in a password ends the place before its "@": what follows a colon must then be a port.
    """
    if names_user(scheme, place):
        return True
    account = place.rpartition("@")[2]
    if ":" in account and (scheme in _BUCKETS or not _PORT.fullmatch(account)):
        return True
    return bool(_USER.search(unquote(query))) if scheme in _WEB else "@" in unquote(query)


def _without_secrets(text: str) -> str:
    """The URL up to its options; nothing but the scheme where a secret may stand before them."""
    scheme, _, rest = text.partition("://")
    shown = re.split(r"[?#]", rest, maxsplit=1)[0]
    return f"{scheme}://..." if "@" in rest or ":" in shown.partition("/")[0] else f"{scheme}://{shown}"


def store_of(url: Url) -> Store:
    """The store that answers for `url`; the same one for the same place.

    Raises DataError where none can be made here, OSError where the store itself refuses.
    """
    try:
        # the process is part of the key: clients have threads, and those do not live on in a forked child
        return _store(url.scheme, url.place, url.query, os.getpid())
    except DataError as error:
        raise DataError(error.message, where=url.text, hint=error.hint) from error
    except (ValueError, pa.ArrowException) as error:
        raise OSError(str(error)) from error


@lru_cache(maxsize=64)
def _store(scheme: str, place: str, query: str, pid: int) -> Store:
    url = Url(scheme, place, "", query)
    if scheme in _ARROW:
        return ArrowStore(*_arrow_system(url))
    from trn.feed.stores_fsspec import open_store  # an extra: only for whoever has such URLs

    return open_store(url)


def _arrow_system(url: Url) -> tuple[pafs.FileSystem, str]:
    """The file system, and what stands there before the path of a URL without its first slash."""
    options = dict(parse_qsl(url.query))
    anonymous = options.pop("anonymous", "false").lower() in ("true", "1", "yes")
    if url.scheme == "s3":
        return _s3(url.place, options, anonymous=anonymous), f"{url.place}/"
    if url.scheme == "gs":
        limit = timedelta(seconds=REQUEST_S)
        options.pop("region", None)
        return pafs.GcsFileSystem(anonymous=anonymous, retry_time_limit=limit, **options), f"{url.place}/"
    system, path = pafs.FileSystem.from_uri(f"{url.scheme}://{url.place}/x")
    return system, path.removesuffix("x")


def _s3(bucket: str, options: dict[str, str], *, anonymous: bool) -> pafs.S3FileSystem:
    # AWS's own tools read these two; Arrow does not (26.0)
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if "endpoint_override" not in options and os.environ.get(name):
            options["endpoint_override"] = os.environ[name]
    has_region = "region" in options or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not has_region and "endpoint_override" not in options:
        options["region"] = pafs.resolve_s3_region(bucket)
    return pafs.S3FileSystem(
        anonymous=anonymous,
        connect_timeout=CONNECT_S,
        request_timeout=REQUEST_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_TRIES),
        **options,
    )


class ArrowStore:
    """A store that pyarrow has a file system for."""

    def __init__(self, system: pafs.FileSystem, root: str) -> None:
        self._system = system
        self._root = root

    def stat(self, path: str) -> Listed:
        info = self._system.get_file_info(self._at(path).rstrip("/"))
        if info.type == pafs.FileType.NotFound:
            raise FileNotFoundError(path)
        return self._listed(info)

    def list(self, folder: str, *, deep: bool) -> Iterable[Listed]:
        found = self._system.get_file_info(pafs.FileSelector(self._at(folder).rstrip("/"), recursive=deep))
        return [self._listed(info) for info in found]

    def open(self, path: str) -> pa.NativeFile:
        return self._system.open_input_file(self._at(path))

    def _at(self, path: str) -> str:
        return self._root + path.removeprefix("/")

    def _listed(self, info: pafs.FileInfo) -> Listed:
        is_folder = info.type == pafs.FileType.Directory
        path = f"/{info.path.removeprefix(self._root)}"
        return Listed(path, is_folder, None if is_folder else info.size, info.mtime_ns or 0)
