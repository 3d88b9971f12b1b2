"""What the storage of a folder of runs really does: tried in a folder of its own, which is gone afterwards.

Each trial is what a run relies on: locks say who is at work, renames publish, syncs make a checkpoint outlast a power
cut, SQLite holds the job store. Hard links only save space.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trn.errors import StorageError
from trn.files import Lock, is_locked, link_atomic, make_folder, publish_folder, remove_tree, write_atomic
from trn.jobs import open_store
from trn.records import JobRow, new_job_id, utc_now

__all__ = ["TRIAL_NAME", "Trial", "in_the_way", "nearest_existing", "space", "try_storage"]

TRIAL_NAME = ".trn-doctor.tmp-"
"""How the folder of the trials begins."""

_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs"})
_VOLATILE = frozenset({"tmpfs", "ramfs"})


@dataclass(frozen=True)
class Trial:
    """One thing that was tried; `works` is None where it could not be tried. `remedy` is for when it does not work."""

    name: str
    works: bool | None
    reason: str | None
    is_needed: bool
    remedy: str


def nearest_existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def in_the_way(path: Path) -> Path | None:
    """What is there where a folder on the way to `path` should be, None where nothing is."""
    nearest = nearest_existing(path)
    below = path.relative_to(nearest).parts
    return nearest / below[0] if below and os.path.lexists(nearest / below[0]) else None


def space(folder: Path) -> dict[str, Any]:
    """`{free_bytes, total_bytes, file_system, note}` of an existing folder; null where the system does not say."""
    stat = os.statvfs(folder)
    kind = _file_system(folder)
    note = None
    if kind in _VOLATILE:
        note = "it is memory: the runs are gone after a restart"
    elif kind is not None and (kind in _NETWORK or kind.startswith("fuse.")):
        note = "over a network, locks and syncs may hold for this machine only: run a training on one machine at a time"
    return {
        "free_bytes": stat.f_bavail * stat.f_frsize,
        "total_bytes": stat.f_blocks * stat.f_frsize,
        "file_system": kind,
        "note": note,
    }


def _file_system(folder: Path) -> str | None:
    try:
        import psutil  # type: ignore[import-untyped]  # psutil ships no types; a doctor also looks at broken installs
    except ImportError:
        return None
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    real = folder.resolve()
    return next((mounts[str(one)] for one in (real, *real.parents) if str(one) in mounts), None)


def try_storage(folder: Path) -> list[Trial]:
    """Try all that a run needs of the file system of the existing `folder`; leaves nothing behind."""
    try:
        with _trial_folder(folder) as own:
            return [Trial("write", True, None, True, _WRITE_REMEDY), *(_tried(*trial, own) for trial in _TRIALS)]
    except (StorageError, OSError) as error:
        refused = Trial("write", False, _reason(error), True, _WRITE_REMEDY)
        return [refused, *(Trial(name, None, "not tried", needed, remedy) for name, needed, remedy, _ in _TRIALS)]


@contextmanager
def _trial_folder(folder: Path) -> Iterator[Path]:
    own = make_folder(folder / f"{TRIAL_NAME}{os.getpid()}-{os.urandom(3).hex()}")
    lock = Lock(own / ".lock")
    try:
        # where locks do not work, the trial of them says so
        lock.acquire(note=f"pid={os.getpid()} trn doctor")
        yield own
    finally:
        remove_tree(own)
        lock.release()


def _tried(name: str, is_needed: bool, remedy: str, trial: Callable[[Path], str | None], own: Path) -> Trial:
    try:
        reason = trial(make_folder(own / name))
    except (StorageError, OSError) as error:
        reason = _reason(error)
    return Trial(name, reason is None, reason, is_needed, remedy)


def _reason(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    return str(getattr(cause, "strerror", None) or error)


def _try_fsync(folder: Path) -> str | None:
    """A file, and then another in its place: written, synced and renamed as every file of a run."""
    path = folder / "file"
    for content in (b"first", b"second"):
        write_atomic(path, content)
        if path.read_bytes() != content:
            return "what was written is not what is read"
    return None


def _try_flock(folder: Path) -> str | None:
    lock = Lock(folder / "lock")
    if not lock.acquire(note="doctor", wait_s=1.0):
        return "a free lock cannot be taken"
    try:
        if is_locked(lock.path) is None:
            return "a lock that is held looks free"
    finally:
        lock.release()
    return None if is_locked(lock.path) is None else "a lock that was let go looks held"


def _try_hard_links(folder: Path) -> str | None:
    write_atomic(folder / "file", b"content")
    link_atomic(folder / "file", folder / "link")
    return None if (folder / "file").samefile(folder / "link") else "a link became a copy"


def _try_rename_folder(folder: Path) -> str | None:
    """A folder with a held lock in it, as a run is published."""
    staged = make_folder(folder / "staged")
    lock = Lock(staged / ".lock")
    lock.acquire()
    try:
        if not publish_folder(staged, folder / "published") or staged.exists():
            return "the folder is where it was"
        return None if is_locked(folder / "published" / ".lock") is not None else "a lock did not move with its folder"
    finally:
        lock.release()


def _try_sqlite(folder: Path) -> str | None:
    row = JobRow(new_job_id(), "trial", str(folder / "trial"), "submitted", "", utc_now())
    with open_store(folder) as store:
        store.add(row)
        moved = store.advance(row.job_id, "completed", exit_code=0)
    with open_store(folder) as store:
        return None if store.get(row.job_id) == moved else "what was stored is not what is read"


_WRITE_REMEDY = "Choose a folder that can be written to, with --runs-dir or TRN_RUNS_DIR."
_OTHER_DISK = "Put the runs on a local disk, with --runs-dir or TRN_RUNS_DIR."
_TRIALS: tuple[tuple[str, bool, str, Callable[[Path], str | None]], ...] = (
    ("fsync", True, "Free some space, or put the runs on another disk.", _try_fsync),
    ("flock", True, _OTHER_DISK, _try_flock),
    ("hard_links", False, "Nothing needs to be done: last.pt and best.pt are copies then.", _try_hard_links),
    ("rename_folder", True, _OTHER_DISK, _try_rename_folder),
    ("sqlite", True, _OTHER_DISK, _try_sqlite),
)
