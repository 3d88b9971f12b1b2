"""Folders: made private, published by one rename, moved, removed, swept of what crashed writers left."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from trn.files.faults import trip
from trn.files.system import FOLDER_MODE, rename, storage_errors
from trn.files.whole import TEMP_MARK, sync_folder

__all__ = ["free_bytes", "make_folder", "move", "publish_folder", "remove", "remove_tree", "sweep"]


def make_folder(path: Path) -> Path:
    """Create `path` and its parents, 0700; an existing folder is fine. Raises StorageError."""
    with storage_errors("create the folder", path):
        for folder in [*reversed(path.parents), path]:
            if not folder.is_dir():
                trip("mkdir", str(folder))
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, FOLDER_MODE)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    return path


def publish_folder(staged: Path, target: Path) -> bool:
    """Make the folder `staged` visible as `target` by one rename; False if `target` is already there and not empty.

    The files in it are synced first, so that what is visible is also durable. Raises StorageError.
    """
    with storage_errors("publish", target):
        for folder, _, _ in os.walk(staged):
            sync_folder(Path(folder))
        try:
            rename(staged, target)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                return False
            raise
        sync_folder(target.parent)
    return True


def move(source: Path, target: Path) -> None:
    """Rename `source` to `target` on the same file system and make it durable. Raises StorageError."""
    with storage_errors("move", source):
        rename(source, target)
        sync_folder(target.parent)
        if source.parent != target.parent:
            sync_folder(source.parent)


def remove(path: Path) -> None:
    """Remove a file; one that is already gone is fine. Raises StorageError."""
    with storage_errors("remove", path), contextlib.suppress(FileNotFoundError):
        trip("unlink", str(path))
        os.unlink(path)


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it; symbolic links are removed, never followed. Raises StorageError."""
    import shutil  # brings three compression libraries: not for those who only read

    with storage_errors("remove", path), contextlib.suppress(FileNotFoundError):
        trip("unlink", str(path))
        shutil.rmtree(path)


def sweep(folder: Path) -> list[str]:
    """Remove what crashed writers left in `folder` (not below it); returns the names. The caller holds its lock."""
    if not folder.is_dir():
        return []
    left = [name for name in sorted(os.listdir(folder)) if name.startswith(".") and TEMP_MARK in name]
    for name in left:
        remove(folder / name)
    return left


def free_bytes(folder: Path) -> int:
    """Bytes that an unprivileged writer may still use on the file system of `folder`."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize
