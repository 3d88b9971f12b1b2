"""step-XXXXXXXX.files/: what a trainer's own `save_checkpoint` wrote beside the `.pt`. Whole, or absent.

The hook fills a folder that is named as a temporary. What it left is looked through at once, between two steps;
hashing, syncing and the rename that publishes it go on beside the loop, before the meta that lists every file of it:

    .step-N.files.tmp-* ──look_through──> paths ──seal──> [{path, size_bytes, sha256}] ──publish──> step-N.files/

Only plain files in plain folders, each with one name. Empty folders are not kept. Nothing in a folder is ever executed
or followed. Not here: what is in the files, which only the trainer knows.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trn.errors import StorageError, TrainerError
from trn.files import (
    TEMP_MARK,
    make_folder,
    move,
    new_sha256,
    publish_folder,
    remove,
    remove_tree,
    sha256_file,
    sync_folder,
)
from trn.files.system import CHUNK_BYTES, FOLDER_MODE, fsync, open_file, storage_errors
from trn.records import Json

__all__ = [
    "FILES_NAME",
    "MOST_FILES",
    "Filled",
    "discard",
    "files_problem",
    "folder_name",
    "folder_problem",
    "is_staged",
    "look_through",
    "publish",
    "remove_folder",
    "seal",
    "stage",
]

FILES_NAME = re.compile(r"step-(\d{8,})\.files")
MOST_FILES = 10_000
_DEEPEST = 16
_LONGEST = 1024
_LONGEST_NAME = 200
"""Of 255 that file systems take: whoever copies a file has a temporary of a longer name beside it."""
_STAGED = re.compile(rf"\.step-\d{{8,}}\.files{re.escape(TEMP_MARK)}\d+-\d+")
_FILE_MODE = 0o600
_counter = itertools.count()


@dataclass(frozen=True)
class Filled:
    """A folder that the hook has filled, not published yet; `hook` is what it returned."""

    path: Path
    files: tuple[str, ...]
    hook: Json | None


def folder_name(step: int) -> str:
    return f"step-{step:08d}.files"


def is_staged(name: str) -> bool:
    """Whether this is the name of a folder that a hook was filling."""
    return bool(_STAGED.fullmatch(name))


def stage(checkpoints: Path, step: int) -> Path:
    """An empty folder for the hook, on the file system where it will stay. Raises StorageError."""
    return make_folder(checkpoints / f".{folder_name(step)}{TEMP_MARK}{os.getpid()}-{next(_counter)}")


def look_through(folder: Path, where: str) -> tuple[str, ...]:
    """The paths of all files in a folder that was filled, relative to it and sorted; empty folders are removed.

    Raises TrainerError for whatever does not belong there.
    """
    found = []
    if folder.is_symlink() or not folder.is_dir():
        raise TrainerError("save_checkpoint removed output_dir.", where=where)
    with storage_errors("look through", folder):
        for path, entry in _walk(folder):
            if problem := _problem(path, entry):
                raise TrainerError(f"save_checkpoint wrote {problem}.", where=where)
            if not entry.is_dir(follow_symlinks=False):
                found.append(path)
            if len(found) > MOST_FILES:
                raise TrainerError(f"save_checkpoint wrote more than {MOST_FILES:,} files.", where=where)
    if not found:
        raise TrainerError("save_checkpoint wrote no file into output_dir.", where=where)
    for here, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(here)
    return tuple(sorted(found))


def _problem(path: str, entry: os.DirEntry[str]) -> str | None:
    """What is wrong with an entry of a folder that a hook filled."""
    status = entry.stat(follow_symlinks=False)
    if not path.isprintable() or len(path) > _LONGEST or len(os.fsencode(entry.name)) > _LONGEST_NAME:
        is_long = f"at most {_LONGEST_NAME} bytes, in a path of at most {_LONGEST} characters"
        return f"a file whose name is no plain text of {is_long}: {path[:80]!a}"
    if path.count("/") >= _DEEPEST:
        return f"more than {_DEEPEST - 1} folders in each other: {path[:80]!r}"
    if stat.S_ISLNK(status.st_mode):
        return f"a symbolic link: {path!r}"
    if stat.S_ISREG(status.st_mode):
        return f"a file that has a second name elsewhere: {path!r}" if status.st_nlink > 1 else None
    return None if stat.S_ISDIR(status.st_mode) else f"something that is no file: {path!r}"


def _walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below `folder` with its path from there; of a folder, first itself. Links are not followed."""
    waiting = [""]
    while waiting:
        here = waiting.pop()
        with os.scandir(folder / here) as entries:
            for entry in entries:
                path = f"{here}/{entry.name}" if here else entry.name
                yield path, entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)


def seal(filled: Filled) -> list[Json]:
    """Make every file durable and private; returns what a meta says of each.

    Raises StorageError; TrainerError where something is still written there.
    """
    for here, _, _ in os.walk(filled.path):
        with storage_errors("make private", Path(here)):
            os.chmod(here, FOLDER_MODE)
    files = [_sealed(filled.path, path) for path in filled.files]
    name = filled.path.name.partition(TEMP_MARK)[0].removeprefix(".")
    with storage_errors("look through", filled.path):
        problem = _listing_problem(filled.path, name, {one["path"]: one["size_bytes"] for one in files})
    if problem:
        raise TrainerError(
            f"what save_checkpoint wrote changed after it returned: {problem}.",
            where=f"checkpoints/{name}",
            hint="Let the hook finish all that it writes before it returns.",
        )
    return files


def _sealed(folder: Path, path: str) -> Json:
    place = folder / path
    digest, size_bytes = new_sha256(), 0
    with storage_errors("keep", place):
        fd = open_file(place, os.O_RDONLY)
        try:
            os.fchmod(fd, _FILE_MODE)
            while chunk := os.read(fd, CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
            fsync(fd, place)
        finally:
            os.close(fd)
    return {"path": path, "size_bytes": size_bytes, "sha256": digest.hexdigest()}


def publish(filled: Filled, target: Path) -> None:
    """Give a sealed folder its name by one rename. Raises StorageError."""
    if target.exists():  # of a save of this step that was never committed
        trash = target.with_name(f".trash-{target.name}")
        remove_folder(trash)
        move(target, trash)
        remove_folder(trash)
    if not publish_folder(filled.path, target):
        raise StorageError("cannot publish: its name is taken.", where=str(target))
    sync_folder(target.parent)


def discard(filled: Filled | Path | None) -> None:
    """Remove a folder that nobody will publish; what cannot be removed is left to the next job."""
    path = filled.path if isinstance(filled, Filled) else filled
    if path is not None and os.path.lexists(path):
        with contextlib.suppress(StorageError):
            remove_folder(path)


def remove_folder(path: Path) -> None:
    """Remove a folder of a trainer's, also a read-only one; one that is gone is fine. Raises StorageError.

    What a hook put in its place, a link or a file, is removed and not followed.
    """
    if path.is_symlink() or not path.is_dir():
        remove(path)
        return
    for here, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            os.chmod(here, FOLDER_MODE)
    remove_tree(path)


# What a meta says of a folder, and whether the folder is still that


def files_problem(value: Any) -> str | None:
    """Why this is no list of files that a meta may have; None where it is. No path in it leads out of its folder."""
    if not isinstance(value, list) or not 0 < len(value) <= MOST_FILES:
        return "its files are no list of files"
    for one in value:
        if not isinstance(one, dict) or set(one) != {"path", "size_bytes", "sha256"}:
            return "one of its files is not described by path, size_bytes and sha256"
        if not all((type(one["path"]) is str, type(one["sha256"]) is str, type(one["size_bytes"]) is int)):
            return "one of its files is described by values of other types"
        parts = one["path"].split("/")
        if not one["path"].isprintable() or len(parts) > _DEEPEST or {"", ".", ".."} & set(parts):
            return f"{one['path'][:80]!r} is no path inside its folder"
    paths = [one["path"] for one in value]
    return None if paths == sorted(set(paths)) else "its files are not each named once, in order"


def folder_problem(folder: Path, files: list[Json]) -> str | None:
    """Why `folder` is not what a meta lists as `files`, None where it is: all sizes, all hashes, and nothing more.

    Raises OSError where it cannot be read.
    """
    if folder.is_symlink() or not folder.is_dir():
        return f"{folder.name} is gone"
    if problem := _listing_problem(folder, folder.name, {one["path"]: one["size_bytes"] for one in files}):
        return problem
    for one in files:
        if sha256_file(folder / one["path"]) != one["sha256"]:
            return f"the sha256 of {folder.name}/{one['path']} is not the one in its meta"
    return None


def _listing_problem(folder: Path, name: str, sizes: dict[str, int]) -> str | None:
    """How `folder`, called `name`, is not files of these sizes, their folders and no more; None where it is."""
    folders = {path[:at] for path in sizes for at, letter in enumerate(path) if letter == "/"}
    found = set()
    for path, entry in _walk(folder):
        is_file = entry.is_file(follow_symlinks=False)
        if not (path in sizes if is_file else path in folders and entry.is_dir(follow_symlinks=False)):
            return f"{name} has {path[:80]!r}, which its meta does not list"
        if is_file:
            found.add(path)
            size = entry.stat(follow_symlinks=False).st_size
            if size != sizes[path]:
                return f"{name}/{path} has {size} bytes, its meta says {sizes[path]}"
    if missing := sorted(set(sizes) - found):
        return f"{name}/{missing[0]} is gone"
    return None
