"""What workers and job files left beside the runs and no run uses any more: more of what `trn gc` may free.

    .trn/uploads/RUN/*/, .trn/worker/RUN/   how far uploads are, and what a worker wrote, of a run that is gone
    .trn/inputs/sha256/xx/DIGEST*           an input that no run names, and what came of it so far
    .trn/inputs/sources/DIGEST*             what a source without a digest was, of such an input
    .trn/arrow/KEY.json, KEY.arrow          data that were decoded for no run that is there
    .trn/mock/DIGEST.parquet                batches out of a job file, likewise

A run names a file where its plan does, in any revision, or what its worker wrote for it. Nobody knows yet what a job
names that is being prepared: while there is one, all that may be shared stays.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from trn.doors.disk import entries, file_names, folder_names
from trn.doors.leftovers import LOCK_NAME, PLAN_NAME, Item
from trn.files import is_locked
from trn.jobs import OPEN_STATES, open_store
from trn.records import RUN_ID_PATTERN

__all__ = ["unused_in"]

_NAME = re.compile(rb"[0-9a-f]{32,64}")
_DIGEST = re.compile(r"([0-9a-f]{64})(?:\.(?:part|note|json|lock))?")
_DECODED = re.compile(r"([0-9a-f]{32})\.(?:json|arrow)")
_MOCK = re.compile(r"([0-9a-f]{64})\.parquet")
_SPOOL = re.compile(r"[0-9a-f]{16}")
_OF_UPLOADS = "lock"
_OF_DECODING = ".trn-cache.lock"
_WRITTEN = ("contract.json", "job_spec.json", "asked.json")


def unused_in(runs_dir: Path) -> Iterator[Item]:
    """Each thing that may go. Raises StorageError where the job store cannot be read."""
    own = runs_dir / ".trn"
    if own.is_symlink():
        return
    with open_store(runs_dir) as store:
        has_store = store.path.exists()
        at_work = {row.run_id for row in store.list(states=OPEN_STATES)} if has_store else set()
    workers = [folder for folder in _below(own / "worker") if RUN_ID_PATTERN.fullmatch(folder.name)]
    here = [folder for folder in workers if folder.name in at_work or os.path.lexists(runs_dir / folder.name)]
    yield from _spools(runs_dir, at_work)
    for folder in workers:
        is_ours = any((folder / name).is_file() for name in _WRITTEN)
        if folder not in here and is_ours and is_locked(folder / LOCK_NAME) is None:
            yield Item("worker", (folder,), folder / LOCK_NAME)
    if not has_store or any(not (runs_dir / run_id / PLAN_NAME).is_file() for run_id in at_work):
        return
    if not any(map(_is_preparing, workers)):
        yield from _caches(own, _names(runs_dir, here))


def _below(folder: Path) -> list[Path]:
    return [folder / name for name in folder_names(folder)]


def _is_preparing(folder: Path) -> bool:
    """Whether a worker is at work and has not written down yet what it has fetched."""
    lock = folder / LOCK_NAME
    if is_locked(lock) is None:
        return False
    try:
        return (folder / _WRITTEN[0]).stat().st_mtime_ns <= lock.stat().st_mtime_ns
    except FileNotFoundError:
        return True


def _spools(runs_dir: Path, at_work: set[str]) -> Iterator[Item]:
    for folder in _below(runs_dir / ".trn" / "uploads"):
        if folder.name in at_work or os.path.lexists(runs_dir / folder.name):
            continue
        if not RUN_ID_PATTERN.fullmatch(folder.name):
            continue
        spools = _below(folder)
        for spool in spools:
            if _SPOOL.fullmatch(spool.name) and is_locked(spool / _OF_UPLOADS) is None:
                yield Item("uploads", (spool,), spool / _OF_UPLOADS)
        if not entries(folder):
            yield Item("uploads", (folder,), None)


def _names(runs_dir: Path, workers: list[Path]) -> set[str]:
    """All digests and keys in what runs, waiting jobs and workers have written down."""
    places = [path for path in runs_dir.iterdir() if (path / PLAN_NAME).is_file()]  # also where it is a link
    written = [path / PLAN_NAME for path in places]
    written += [path / "reports" / "plans" / name for path in places for name in file_names(path / "reports" / "plans")]
    written += [folder / name for folder in workers for name in file_names(folder) if name.endswith(".json")]
    queue = runs_dir / ".trn" / "queue"
    written += [queue / name for name in file_names(queue)]
    return {found.decode() for path in written for found in _NAME.findall(_read(path))}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # it went while we looked, and with it what it named
        return b""


def _caches(own: Path, names: set[str]) -> Iterator[Item]:
    for folder in [*_below(own / "inputs" / "sha256"), own / "inputs" / "sources"]:
        yield from _inputs(folder, own / "inputs", names)
    for key, files in _by_name(own / "arrow", _DECODED).items():
        if key not in names:
            paths = sorted((own / "arrow" / name for name in files), reverse=True)  # .json, the mark, before .arrow
            yield Item("decoded", tuple(paths), own / "arrow" / _OF_DECODING)
    for digest, files in _by_name(own / "mock", _MOCK).items():
        if digest not in names:
            yield Item("input", tuple(own / "mock" / name for name in files), own / "mock" / LOCK_NAME)


def _inputs(folder: Path, cache: Path, names: set[str]) -> Iterator[Item]:
    """Of one folder of the cache; the lock goes last, while it is held."""
    for digest, files in _by_name(folder, _DIGEST).items():
        lock = folder / f"{digest}.lock"
        is_known = folder.name == "sources" and _is_named(folder / f"{digest}.json", names)
        if digest in names or is_known or is_locked(lock) is not None:
            continue
        yield Item("input", tuple(sorted((folder / name for name in files), key=lambda path: path == lock)), lock)


def _is_named(index: Path, names: set[str]) -> bool:
    """Whether what a source was last time is an input of a run."""
    return any(found.decode() in names for found in _NAME.findall(_read(index)))


def _by_name(folder: Path, pattern: re.Pattern[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in file_names(folder):
        if match := pattern.fullmatch(name):
            found.setdefault(match[1], []).append(name)
    return found
