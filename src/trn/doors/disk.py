"""What is in a folder and how much of a disk it takes: each file counted once, links not followed.

Sizes are those of the contents, so that they are the same on every file system; what vanishes meanwhile counts nothing.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["changed_at", "entries", "file_names", "folder_names", "freed_bytes", "occupied_bytes"]


def occupied_bytes(folder: Path) -> int:
    """Bytes of all files at or below `folder`, those with several names counted once."""
    sizes = {(found.st_dev, found.st_ino): found.st_size for found in _walk(folder)}
    return sum(sizes.values())


def changed_at(path: Path, left_out: Path | None = None) -> float:
    """When the newest file at or below `path`, but for `left_out`, was changed, in seconds of the epoch; 0 without."""
    return max((found.st_mtime for found in _walk(path, left_out)), default=0.0)


def freed_bytes(groups: Sequence[Sequence[Path]]) -> list[int]:
    """What the removal of each group of paths frees, the groups before it being gone: files without any other name."""
    names: Counter[tuple[int, int]] = Counter()
    freed = []
    for paths in groups:
        freed.append(0)
        for found in (found for path in paths for found in _walk(path)):
            key = (found.st_dev, found.st_ino)
            names[key] += 1
            freed[-1] += found.st_size if names[key] == found.st_nlink else 0
    return freed


def _walk(path: Path, left_out: Path | None = None) -> Iterator[os.stat_result]:
    """Every file and link at or below `path`."""
    try:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            yield found
            return
        names = os.listdir(path)
    except FileNotFoundError:
        return
    for name in names:
        if path / name != left_out:
            yield from _walk(path / name)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name; nothing where it is missing, or a link."""
    if folder.is_symlink():
        return []
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def file_names(folder: Path) -> list[str]:
    """Of plain files in it."""
    return [entry.name for entry in entries(folder) if entry.is_file(follow_symlinks=False)]


def folder_names(folder: Path) -> list[str]:
    """Of real folders in it."""
    return [entry.name for entry in entries(folder) if entry.is_dir(follow_symlinks=False)]
