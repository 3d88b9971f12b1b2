"""From a folder aside to exports/, by renames alone: all that can fail has happened before.

    exports/.export.tmp-PID-N/   filled, synced
        -> old sidecar removed -> files renamed -> report renamed -> new sidecar renamed

A sidecar is the commit mark, as a checkpoint's meta is: between the first rename and the last there is no export, and
before and after it there is a whole one. What did not pass its comparison goes to exports/rejected/, as a whole.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from trn.errors import ResumeRefused, StorageError
from trn.files import TEMP_MARK, Lock, make_folder, move, publish_folder, remove, remove_tree, sync_folder
from trn.records import JsonError, read_json

__all__ = ["REJECTED", "forget_rejected", "publish", "reject", "staging"]

REJECTED = "rejected"
_FILE_MODE = 0o600
_counter = itertools.count()


@contextlib.contextmanager
def staging(exports: Path, wait_s: float) -> Iterator[Path]:
    """A folder to fill, alone: no other export of the run goes on meanwhile; gone when the block ends.

    Raises ResumeRefused where another one does, or where exports/ is a link, StorageError where the disk refuses, here
    as in the block.
    """
    if exports.is_symlink():
        hint = "A run is made of plain files and folders only."
        raise ResumeRefused("exports is a symbolic link.", where=str(exports.parent), hint=hint)
    lock = Lock(make_folder(exports) / ".lock")
    if not lock.acquire(f"pid {os.getpid()}", wait_s=wait_s):
        raise ResumeRefused("another export of this run is going on.", where=str(exports), hint="Wait for its end.")
    try:
        for name in os.listdir(exports):
            if name.startswith(".") and TEMP_MARK in name:
                _remove_any(exports / name)  # left by a crash
        aside = make_folder(exports / f".export{TEMP_MARK}{os.getpid()}-{next(_counter)}")
        try:
            yield aside
        except OSError as error:
            raise StorageError(f"cannot write the export: {error.strerror or error}.", where=str(exports)) from error
        finally:
            if aside.exists():
                remove_tree(aside)
    finally:
        lock.release()


def publish(aside: Path, exports: Path, sidecar: str, report: Path | None = None) -> None:
    """Put what lies in `aside` in the place of the export of the same sidecar. Raises StorageError.

    `report` is where the file of its name in `aside` belongs.
    """
    _sync(aside)
    before = _entries_of(exports / sidecar)
    remove(exports / sidecar)
    moved = sorted(set(os.listdir(aside)) - {sidecar, report.name if report else sidecar})
    for name in sorted(before - set(moved)):
        _remove_any(exports / name)
    for name in moved:
        if (exports / name).is_dir():
            _remove_any(exports / name)
        move(aside / name, exports / name)
    if report is not None:
        move(aside / report.name, report)
    move(aside / sidecar, exports / sidecar)


def reject(aside: Path, exports: Path, report: Path) -> None:
    """Keep what lies in `aside` for a look, as exports/rejected/, and its report. Raises StorageError."""
    _sync(aside)
    forget_rejected(exports)
    move(aside / report.name, report)
    publish_folder(aside, exports / REJECTED)


def forget_rejected(exports: Path) -> None:
    """Remove what did not pass the last time. Raises StorageError."""
    if os.path.lexists(exports / REJECTED):
        _remove_any(exports / REJECTED)


def _entries_of(sidecar: Path) -> set[str]:
    """The files and folders of the export before, as far as its sidecar can be read."""
    try:
        names = [str(one["name"]) for one in read_json(sidecar)["files"]]
    except (JsonError, OSError, KeyError, TypeError):
        return set()
    return {name.split("/")[0] for name in names} & set(os.listdir(sidecar.parent)) - {".lock"}


def _remove_any(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        remove(path)


def _sync(aside: Path) -> None:
    """Make what other libraries wrote private and durable."""
    for folder, _, names in os.walk(aside):
        for name in names:
            fd = os.open(Path(folder, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.fchmod(fd, _FILE_MODE)
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(Path(folder))
