"""Stores of all other schemes, through fsspec: https, sftp, hf and whatever else is installed for it.

What a client of fsspec raises becomes an OSError here, so that the rest of the room meets one kind of failure.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import pyarrow as pa

from trn.errors import DataError
from trn.feed.stores import CONNECT_S, REQUEST_S, Listed, Url

__all__ = ["FsspecStore", "open_store"]

_Result = TypeVar("_Result")
_Turn = AbstractContextManager[object]
_HINT = "pip install 'trn-runtime[remote]'"


def open_store(url: Url) -> FsspecStore:
    """The store of `url`. Raises DataError: no fsspec, nothing installed for this scheme, a client that refuses."""
    try:
        import fsspec
    except ImportError as error:
        raise DataError(f"{url.scheme}:// URLs need fsspec, not installed.", hint=_HINT) from error
    try:
        kind = fsspec.get_filesystem_class(url.scheme)
        # nothing is remembered: a listing or a size from before would hide that a file has changed
        system = kind(skip_instance_cache=True, use_listings_cache=False, **(_host(kind, url) | _options(url)))
    except ImportError as error:
        raise DataError(f"{url.scheme}:// URLs need more than is installed: {_line(error)}.", hint=_HINT) from error
    except ValueError as error:
        raise DataError(f"this scheme is not known: {_line(error)}.") from error
    except Exception as error:
        raise DataError(f"this store cannot be opened: {_line(error)}.") from error
    return FsspecStore(system, url)


def _host(kind: Any, url: Url) -> dict[str, Any]:
    """What a client that stays with one server wants to know of the URL: its host and port."""
    return dict(kind._get_kwargs_from_urls(url.text))


def _options(url: Url) -> dict[str, Any]:
    if url.scheme not in ("http", "https"):
        return {}
    import aiohttp  # what fsspec reads http with; its own limit is five minutes for a whole request

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=REQUEST_S)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}


class FsspecStore:
    """A store that fsspec has a file system for; paths are given to it as whole URLs."""

    def __init__(self, system: Any, url: Url) -> None:
        self._system = system
        self._url = url
        # files are asked and read by several threads; a client that is not made for that (ftp) has one connection
        self._turn = nullcontext() if getattr(system, "async_impl", False) else threading.Lock()
        # names come as this client writes them: whole URLs, or paths with the bucket, or paths alone
        self._root = str(system._strip_protocol(f"{url.scheme}://{url.place}")).rstrip("/")

    def stat(self, path: str) -> Listed:
        if path.endswith("/"):
            return Listed(path, is_folder=True)
        return self._listed(_call(lambda: self._system.info(self._url.at(path)), self._turn))

    def list(self, folder: str, *, deep: bool) -> Iterable[Listed]:
        where = self._url.at(folder if folder.endswith("/") else f"{folder}/")
        depth = None if deep else 1
        found = _call(lambda: self._system.find(where, maxdepth=depth, withdirs=True, detail=True), self._turn)
        return [self._listed(info) for info in found.values()]

    def open(self, path: str) -> pa.NativeFile:
        file = _call(lambda: self._system.open(self._url.at(path), "rb"), self._turn)
        if not hasattr(file, "size") or file.size is None or not file.seekable():
            file.close()
            raise OSError("the server gives no size or no byte ranges, and a data file is read in pieces")
        return pa.PythonFile(_Guarded(file, self._turn), mode="r")

    def _listed(self, info: dict[str, Any]) -> Listed:
        path = "/" + str(info["name"]).partition("?")[0].removeprefix(self._root).lstrip("/")
        size = info.get("size")
        times = (info.get(key) for key in ("mtime", "LastModified", "last_modified", "Last-Modified", "updated"))
        return Listed(
            path,
            is_folder=info.get("type") == "directory",
            size_bytes=int(size) if isinstance(size, (int, float)) else None,
            mtime_ns=next((_nanoseconds(time) for time in times if time is not None), 0),
        )


def _nanoseconds(time: Any) -> int:
    """Of a time as clients give them: seconds, a datetime, or the text of a header or of JSON; 0 of anything else."""
    if isinstance(time, str):
        time = _parsed(time)
    if isinstance(time, datetime.datetime):
        time = time.timestamp()
    return int(time * 1e9) if isinstance(time, (int, float)) and time > 0 else 0


def _parsed(text: str) -> datetime.datetime | None:
    for parse in (parsedate_to_datetime, datetime.datetime.fromisoformat):
        with suppress(ValueError):
            return parse(text)
    return None


class _Guarded:
    """A file of fsspec, for Arrow, that raises nothing but OSError."""

    def __init__(self, file: Any, turn: _Turn) -> None:
        self._file, self._turn = file, turn

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def read(self, count: int = -1) -> bytes:
        return _call(lambda: bytes(self._file.read(count)), self._turn)

    def seek(self, offset: int, whence: int = 0) -> int:
        return _call(lambda: int(self._file.seek(offset, whence)), self._turn)

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()

    def flush(self) -> None:
        """Nothing is written."""

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return True


def _call(work: Callable[[], _Result], turn: _Turn) -> _Result:
    try:
        with turn:
            return work()
    except FileNotFoundError as error:
        # over http, fsspec calls every failure "not found"; what happened stands behind it
        cause = error.__cause__
        if (
            cause is None
            or isinstance(cause, LookupError | StopIteration)
            or getattr(cause, "status", None) in (404, 410)
        ):
            raise
        raise OSError(_line(cause) or type(cause).__name__) from error
    except OSError:
        raise
    except Exception as error:
        raise OSError(_line(error) or type(error).__name__) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")[:300]
