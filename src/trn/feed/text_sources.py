"""Which text files a data set is made of, and on which side each of them is.

**Split rule**: a file belongs to validation when the first eight bytes of the sha256 of its content, read as one
big-endian integer, modulo 10,000 are below `val_percent` x 100. So the side of a file depends on its content alone,
and equal files are on the same side.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trn.errors import DataError, UsageError
from trn.feed.products import aside
from trn.records import sha256_json

__all__ = [
    "SIDES",
    "SPLIT_RULE",
    "Source",
    "TextSettings",
    "input_digest",
    "read_text",
    "scan",
    "side_of",
]

SIDES = ("train", "validation")
SPLIT_RULE = "validation if int(sha256(content)[:16 hex digits]) % 10000 < val_percent * 100, else train"
_FORMAT = 1
_SMALLEST_VOCAB = 257  # every byte and end-of-text


@dataclass(frozen=True)
class TextSettings:
    """What decides the content of the data set, beside the text itself."""

    pattern: str = "*.py"
    context: int = 256
    vocab: int = 4096
    val_percent: float = 2.0
    limit_bytes: int = 0
    """Take the first files, in the order of their paths, that together have at most so many bytes; 0 takes all."""
    row_group_rows: int = 256
    leave_out: tuple[str, ...] = ()
    """Names of folders that are not entered."""

    def check(self) -> None:
        """Raise UsageError for the first value that is out of range."""
        rules = (
            ("--context", self.context, self.context >= 1, "at least 1"),
            ("--vocab", self.vocab, self.vocab >= _SMALLEST_VOCAB, f"at least {_SMALLEST_VOCAB} (bytes, end of text)"),
            ("--val-percent", self.val_percent, 0 < self.val_percent < 100, "above 0 and below 100"),
            ("--limit-bytes", self.limit_bytes, self.limit_bytes >= 0, "0 (no limit) or a number of bytes"),
            ("--row-group-rows", self.row_group_rows, self.row_group_rows >= 1, "at least 1"),
        )
        for name, value, is_right, expected in rules:
            if not is_right:
                raise UsageError(f"{value} is out of range; expected {expected}.", where=name)


@dataclass(frozen=True)
class Source:
    """One file that was found: its side, or why it is left out."""

    path: Path
    name: str
    """Relative to the source folder, with forward slashes; bytes that are not UTF-8 are escaped."""
    size_bytes: int
    sha256: str | None
    side: str | None
    left_out: str | None = None

    def record(self) -> dict[str, Any]:
        """One line of sources.jsonl."""
        fate = {"left_out": self.left_out} if self.left_out else {"side": self.side}
        return {"path": self.name, "size_bytes": self.size_bytes, "sha256": self.sha256, **fate}


def side_of(sha256: str, val_percent: float) -> str:
    """The side of a file whose content has this hex digest; see the split rule above."""
    return SIDES[int(sha256[:16], 16) % 10_000 < round(val_percent * 100)]


def _walk(root: Path, settings: TextSettings, out: Path) -> Iterator[tuple[str, Path]]:
    """Every file that matches, in no promised order; not through links to folders, and nothing of `out` itself."""

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot list the folder: {error.strerror}.", where=str(error.filename)) from error

    def is_ours(path: Path) -> bool:
        ours = (str(aside(out, "lock")), str(aside(out, "tmp-")))
        return path == out or str(path).startswith(ours)

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if name not in settings.leave_out and not is_ours(Path(folder, name))]
        for path in (Path(folder, name) for name in fnmatch.filter(names, settings.pattern)):
            if not is_ours(path):
                relative = path.relative_to(root).as_posix()
                yield relative.encode("utf-8", "backslashreplace").decode(), path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the file: {error.strerror}.", where=str(path)) from error


def _scan_one(name: str, path: Path, val_percent: float) -> Source:
    if not path.is_file():
        return Source(path, name, 0, None, None, "not a regular file")
    data = _read(path)
    sha256 = _sha256(data)
    reason = None if data else "empty"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        reason = "not UTF-8"
    return Source(path, name, len(data), sha256, None if reason else side_of(sha256, val_percent), reason)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def scan(root: Path, settings: TextSettings, out: Path) -> list[Source]:
    """All files that were found, in the order of their names, each with its side or its reason."""
    if not root.is_dir():
        raise DataError("no such folder.", where=str(root), hint="Name an existing folder with --source.")
    found = [_scan_one(name, path, settings.val_percent) for name, path in sorted(_walk(root, settings, out))]
    if settings.limit_bytes:
        found = list(_limited(found, settings.limit_bytes))
    if not any(source.side for source in found):
        raise DataError(
            f"no text in files that match {settings.pattern!r}; {len(found)} matching files were left out.",
            where=str(root),
            hint="Check --source, --pattern and --limit-bytes.",
        )
    return found


def _limited(found: Iterable[Source], limit_bytes: int) -> Iterator[Source]:
    total = 0
    for source in found:
        if source.side:
            total += source.size_bytes
        is_over = source.side is not None and total > limit_bytes
        yield replace(source, side=None, left_out="beyond --limit-bytes") if is_over else source


def input_digest(found: Sequence[Source], settings: TextSettings) -> str:
    """Hex sha256 of all that decides the content of the data set: equal digests give equal files."""
    names = [[source.name, source.sha256, source.side or source.left_out] for source in found]
    return sha256_json({"format": _FORMAT, "settings": asdict(settings), "files": names})


def read_text(source: Source) -> str:
    """The text of a file as it was scanned. Raises DataError if it has changed since."""
    data = _read(source.path)
    if _sha256(data) != source.sha256:
        raise DataError("the file changed while the data set was built.", where=str(source.path), hint="Start again.")
    return data.decode("utf-8")
