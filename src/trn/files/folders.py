"""Folders: made private, published by one rename, moved, removed, swept of what crashed writers left."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from trn.files.faults import trip
from trn.files.guards import ask_guards
from trn.files.system import FOLDER_MODE, rename, storage_errors
from trn.files.whole import TEMP_MARK, sync_folder

__all__ = ["foreign", "free_bytes", "make_folder", "move", "publish_folder", "remove", "remove_tree", "sweep"]


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
        ask_guards(path)
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
    left = [name for name in sorted(os.listdir(folder)) if _is_left(name)]
    for name in left:
        remove(folder / name)
    return left


def _is_left(name: str) -> bool:
    return name.startswith(".") and TEMP_MARK in name


def foreign(folder: Path) -> str | None:
    """What in a folder of ours was not made by us, in words: a link, a pipe, a device; None when all is plain.

    A journal or lock with a second name is foreign too: to write to it would be to write somewhere else. What is in a
    folder that a crashed writer was filling does not matter: it is swept, and read by nobody.
    """
    if folder.is_symlink():
        return f"{folder.name} is a symbolic link."
    for here, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(here, name)
            try:
                status = path.lstat()
            except FileNotFoundError:  # of a writer who is at work
                continue
            relative = path.relative_to(folder)
            if stat.S_ISLNK(status.st_mode):
                return f"{relative} is a symbolic link."
            if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
                return f"{relative} is no plain file."
            if status.st_nlink > 1 and (name == ".lock" or name.endswith(".jsonl")) and stat.S_ISREG(status.st_mode):
                return f"{relative} has a second name elsewhere."
        folders[:] = [name for name in folders if not _is_left(name)]
    return None


def free_bytes(folder: Path) -> int:
    """Bytes that an unprivileged writer may still use on the file system of `folder`."""
    system = os.statvfs(folder)
    return system.f_bavail * system.f_frsize
