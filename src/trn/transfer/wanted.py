"""What is to be fetched, in words: judged before anything is asked for it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from trn.errors import DataError
from trn.transfer.places import place_of, shown
from trn.transfer.stores import store_url

__all__ = ["Fetched", "Wanted", "is_web", "judged", "local_path", "other_digest", "other_size"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WEB = ("https://", "http://")


@dataclass(frozen=True)
class Wanted:
    """One input: where it is, and what it must be if that is known."""

    name: str
    source: str
    """An absolute path, a file: URL, http(s), or any other URL that fsspec has a client for."""
    sha256: str | None = None
    size_bytes: int | None = None

    @property
    def where(self) -> str:
        """For a message: neither query nor secret."""
        return f"input {self.name} ({shown(self.source)})"


@dataclass(frozen=True)
class Fetched:
    """One input on this disk. What its name promises was checked: `sha256` is None only of a local path that came
    without a digest, `size_bytes` only of a folder."""

    name: str
    path: Path
    sha256: str | None
    size_bytes: int | None
    source: str
    """As it may be written down: without its query."""


def judged(wanted: Wanted) -> Wanted:
    """The same, its digest in lower case. Raises DataError: a source that is not taken, a digest that is none."""
    sha256 = wanted.sha256
    if sha256 is not None:
        sha256 = sha256.lower().removeprefix("sha256:")
        if not _SHA256.fullmatch(sha256):
            raise DataError(
                "its sha256 is none: expected 64 digits from 0 to f.", where=wanted.where, hint="Run sha256sum on it."
            )
    if wanted.size_bytes is not None and wanted.size_bytes < 0:
        raise DataError(
            f"expected a size in bytes, found {wanted.size_bytes}.",
            where=wanted.where,
            hint="Leave it out, or mend it.",
        )
    if local_path(wanted) is None:
        _judge_url(wanted)
    return replace(wanted, sha256=sha256)


def _judge_url(wanted: Wanted) -> None:
    try:
        if is_web(wanted.source):
            place_of(wanted.source)
        else:
            store_url(wanted.source)
    except ValueError as error:
        raise DataError(
            f"this URL is not taken: {error}.",
            where=wanted.where,
            hint="Secrets stand in no URL: a token goes by the environment, to the hosts that are named there.",
        ) from None


def is_web(source: str) -> bool:
    return source.lower().startswith(_WEB)


def local_path(wanted: Wanted) -> Path | None:
    """Where it is on this disk; None for a URL. Raises DataError for a path that is not absolute."""
    source = wanted.source
    if source.lower().startswith("file:"):
        parts = urlsplit(source)
        source = unquote(parts.path) if parts.netloc in ("", "localhost") else ""
    elif "://" in source:
        return None
    if not os.path.isabs(source) or "\0" in source:
        raise DataError(
            "expected an absolute path or a URL.", where=wanted.where, hint="Write /folder/file, or https://host/file."
        )
    return Path(source)


def other_size(wanted: Wanted, size_bytes: int | None) -> DataError:
    return DataError(
        f"expected {wanted.size_bytes} bytes, found {size_bytes}.",
        where=wanted.where,
        hint="Check the job's size_bytes, or the file at the source.",
    )


def other_digest(wanted: Wanted, sha256: str) -> DataError:
    return DataError(
        f"expected the sha256 {wanted.sha256}, found {sha256}.",
        where=wanted.where,
        hint="Check the job's digest, or the file at the source; nothing of it is used.",
    )
