"""Where data files lie: the one place of this room that touches a file system, local here, of URLs in `remote`.

Files are opened for plain reads and never memory-mapped: a mapped file that is shortened by somebody else kills the
process with a signal, a plain read ends in an error that can name the file.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from trn.errors import DataError
from trn.feed.remote import expand_url, identity_of_url, open_url, stat_url
from trn.feed.stores import is_url

__all__ = ["READ_BYTES", "SourceStat", "expand", "identity", "of_each", "open_source", "stat_source"]

READ_BYTES = 4 << 20
"""Of a file that is read through, at a time: a store answers each read after a while."""
_SUFFIX = ".parquet"
_AT_ONCE = 16
Found = TypeVar("Found")


@dataclass(frozen=True)
class SourceStat:
    """What a file system says about a data file without reading it; `mtime_ns` is 0 where a store keeps no times."""

    size_bytes: int
    mtime_ns: int


def expand(paths: Sequence[str]) -> list[str]:
    """Absolute paths and URLs of the files that `paths` name, in the order given; globs and folders sorted by name.

    A folder stands for all `*.parquet` below it, without hidden ones. Raises DataError for a pattern without a match, a
    folder without such files, a missing file, a URL with a secret in it, and a file that is named twice.
    """
    if not paths:
        raise DataError("no data files are named.", hint="Name files, globs or folders.")
    found: list[str] = []
    first: dict[str, str] = {}
    for given in paths:
        for path in _expand_one(given):
            same = first.setdefault(identity(path), given)
            if len(first) == len(found):
                raise DataError(
                    f"this file is named twice: by {same!r} and by {given!r}.",
                    where=path,
                    hint="Name each file once.",
                )
            found.append(path if is_url(path) else os.path.abspath(path))
    return found


def identity(path: str) -> str:
    """A name that two spellings of the same file share."""
    return identity_of_url(path) if is_url(path) else os.path.realpath(path)


def _expand_one(given: str) -> list[str]:
    _refuse_unrecordable(given)
    if is_url(given):
        found = expand_url(given, _SUFFIX)
    elif os.path.isdir(given):
        found = sorted(str(path) for path in Path(given).rglob(f"*{_SUFFIX}") if _is_plain(path, Path(given)))
        if not found:
            raise DataError(f"the folder holds no *{_SUFFIX} file.", where=given)
    elif glob.has_magic(given) and not os.path.lexists(given):
        found = sorted(path for path in glob.glob(given, recursive=True) if not os.path.isdir(path))
        if not found:
            raise DataError("no file matches this pattern.", where=given)
    else:
        found = [given]
    for path in found:
        _refuse_unrecordable(path)
    return found


def _is_plain(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    return not hidden and not path.is_dir()


def _refuse_unrecordable(path: str) -> None:
    if "\0" in path or (not path.isascii() and path != path.encode(errors="replace").decode()):
        raise DataError("expected a name in UTF-8 without zero bytes, to be recorded as it is.", where=ascii(path))


def stat_source(path: str) -> SourceStat:
    """Size and modification time of a regular file. Raises DataError: missing, unreadable, not a regular file."""
    if is_url(path):
        listed = stat_url(path)
        return SourceStat(listed.size_bytes or 0, listed.mtime_ns)
    try:
        found = os.stat(path)
    except OSError as error:
        raise _cannot_open(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise DataError("not a regular file; a data file is one that can be read twice.", where=path)
    return SourceStat(found.st_size, found.st_mtime_ns)


def of_each(paths: Sequence[str], look: Callable[[str], Found]) -> list[Found]:
    """What `look` finds at each path, in their order; in a store at many at a time, since each waits for an answer."""
    if not any(map(is_url, paths)):
        return [look(path) for path in paths]
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="trn-sources") as pool:
        return list(pool.map(look, paths))


def open_source(path: str) -> pa.NativeFile:
    """The file, open for random reads; the caller closes it. Raises DataError."""
    if is_url(path):
        return open_url(path)
    stat_source(path)
    try:
        return pa.OSFile(path, "rb")
    except OSError as error:
        raise _cannot_open(path, error) from error


def _cannot_open(path: str, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError("the file does not exist.", where=path, hint="Check the path; globs need * or **.")
    return DataError(f"the file cannot be opened: {error.strerror or error}.", where=path)
