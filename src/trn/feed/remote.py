"""What a URL in a list of data files names: one object, all that match a pattern, or all below a folder.

The same rules as on a disk: `*` and `[...]` do not cross a slash, `**` does; a folder stands for the `*.parquet` below
it; hidden names (`.x`, `_x` in a folder) are left out. A URL that ends in a slash is a folder; else the store is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa

from trn.errors import DataError
from trn.feed.stores import Listed, Url, parse_url, store_of

__all__ = ["expand_url", "identity_of_url", "open_url", "stat_url"]

_Result = TypeVar("_Result")
_MAGIC = re.compile(r"[*\[]")
_TOKEN = re.compile(r"\*+|\[!?\]?[^\]]*\]|.", re.DOTALL)


def identity_of_url(text: str) -> str:
    """The URL without the options of its client, which do not say which object it is."""
    url = parse_url(text)
    is_option = url.scheme not in ("http", "https")
    return Url(url.scheme, url.place.lower(), url.path, "" if is_option else url.query).text


def stat_url(text: str) -> Listed:
    """What the store says of one object. Raises DataError: gone, not readable, no file."""
    url = parse_url(text)
    found = _ask(url, lambda: store_of(url).stat(url.path))
    if found.is_folder:
        raise DataError("a folder, expected one file.", where=url.text)
    return found


def open_url(text: str) -> pa.NativeFile:
    """The object, open for random reads. Raises DataError."""
    url = parse_url(text)
    return _ask(url, lambda: store_of(url).open(url.path))


def expand_url(given: str, suffix: str) -> list[str]:
    """The URLs of the files that `given` names, sorted. Raises DataError where there is none."""
    url = parse_url(given)
    if url.path.endswith("/") or not url.path:
        return _below(url, suffix)
    if _MAGIC.search(url.path) and not _exists(url):
        return _matching(url)
    if _ask(url, lambda: store_of(url).stat(url.path)).is_folder:
        return _below(url, suffix)
    return [url.text]


def _exists(url: Url) -> bool:
    """Whether a name that looks like a pattern is a name; a store that does not tell lets it be a pattern."""
    try:
        return not store_of(url).stat(url.path).is_folder
    except OSError:
        return False


def _below(url: Url, suffix: str) -> list[str]:
    folder = url.path.rstrip("/") + "/"
    found = _list(url, folder, deep=True)
    names = [one.path for one in found if one.path.endswith(suffix) and not _is_hidden(one.path.removeprefix(folder))]
    if not names:
        raise DataError(f"the folder holds no *{suffix} file, or is not there.", where=url.text)
    return [url.at(name) for name in sorted(names)]


def _is_hidden(relative: str) -> bool:
    return any(part.startswith((".", "_")) for part in relative.split("/"))


def _matching(url: Url) -> list[str]:
    parts = url.path.split("/")
    fixed = next(index for index, part in enumerate(parts) if _MAGIC.search(part))
    is_deep = fixed < len(parts) - 1 or "**" in parts[fixed]
    try:
        pattern = re.compile(_regex(parts))
    except re.error as error:
        raise DataError(f"no pattern: {error}.", where=url.text, hint="Ranges in brackets go upwards.") from error
    found = _list(url, "/".join(parts[:fixed]) + "/", deep=is_deep)
    names = [one.path for one in found if pattern.fullmatch(one.path)]
    if not names:
        raise DataError("no object matches this pattern.", where=url.text)
    return [url.at(name) for name in sorted(names)]


def _regex(parts: list[str]) -> str:
    """A pattern as a regular expression: `**` is any number of folders, hidden names only where they are written."""
    pieces = []
    for index, part in enumerate(parts):
        is_last = index == len(parts) - 1
        slash = "" if is_last else "/"
        if part == "**":
            pieces.append(r"(?:[^/.][^/]*/)*" + (r"[^/.][^/]*" if is_last else ""))
        elif _MAGIC.search(part):
            hidden = "" if part.startswith(".") else r"(?!\.)"
            pieces.append(f"{hidden}{_TOKEN.sub(_token, part)}{slash}")
        else:
            pieces.append(re.escape(part) + slash)
    return "".join(pieces)


def _token(found: re.Match[str]) -> str:
    text = found[0]
    if text.startswith("*"):
        return "[^/]*"
    if len(text) == 1:
        return re.escape(text)
    # as on a disk only "!" turns a set around, and "&&", "~~", "||" are characters like others
    is_not = text.startswith("[!")
    inside = re.sub(r"([\\\[&~|^])", r"\\\1", text[2 if is_not else 1 : -1])
    return f"[^{inside}]" if is_not else f"[{inside}]"


def _list(url: Url, folder: str, *, deep: bool) -> list[Listed]:
    try:
        return [one for one in _ask(url, lambda: store_of(url).list(folder, deep=deep)) if not one.is_folder]
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return []
        raise


def _ask(url: Url, work: Callable[[], _Result]) -> _Result:
    """What the store answers; DataError, naming the URL, for what it refuses."""
    try:
        return work()
    except FileNotFoundError as error:
        raise DataError(
            "there is no such object, or no such bucket.", where=url.text, hint="Check the URL; patterns need * or **."
        ) from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"the store does not give it: {_said(error)}.",
            where=url.text,
            hint="Check the URL, the network, and the credentials in the environment.",
        ) from error


def _said(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
