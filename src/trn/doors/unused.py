"""What workers and job files left beside the runs and no run uses any more: more of what `trn gc` may free.

    .trn/uploads/RUN/*/                     how far uploads are, of a run that is gone
    .trn/worker/RUN/                        what a worker wrote for one, unless a fork of it names a file there
    .trn/inputs/sha256/xx/DIGEST*           an input that no run names, and what came of it so far
    .trn/inputs/sources/DIGEST*             what a source without a digest was, of such an input
    .trn/arrow/KEY.json, KEY.arrow          data that were decoded for no run that is there
    .trn/mock/DIGEST.parquet                batches out of a job file, likewise

A run names a file where its plan does, in any revision, or what its worker wrote for it; decoded data, where it names
the data that they were decoded from. Nobody knows yet what a job names that is being prepared: while there is one, all
that may be shared stays, and from the moment that another is begun nothing of all this goes any more.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from trn.doors.disk import entries, file_names, folder_names
from trn.doors.leftovers import LOCK_NAME, PLAN_NAME, Item
from trn.files import is_locked
from trn.jobs import OPEN_STATES, open_store
from trn.records import RUN_ID_PATTERN

__all__ = ["unused_in"]

_WORKER = ".trn/worker"
_NAME = re.compile(rb"[0-9a-f]{32,64}|\.trn/worker/[A-Za-z0-9._-]+")
_DIGEST = re.compile(r"([0-9a-f]{64})(?:\.(?:part|note|json|lock))?")
_DECODED = re.compile(r"([0-9a-f]{32})\.(?:json|arrow)")
_MOCK = re.compile(r"([0-9a-f]{64})\.parquet")
_SPOOL = re.compile(r"[0-9a-f]{16}")
_OF_UPLOADS = "lock"
_OF_DECODING = ".trn-cache.lock"
_CONTRACT = "contract.json"
_WRITTEN = (LOCK_NAME, _CONTRACT, "job_spec.json", "asked.json")


def unused_in(runs_dir: Path) -> Iterator[Item]:
    """Each thing that may go. Raises StorageError where the job store cannot be read."""
    own = runs_dir / ".trn"
    if own.is_symlink() or not own.is_dir():
        return
    began, wrote = _newest_job(runs_dir), _written(runs_dir)
    with open_store(runs_dir) as store:
        has_store = store.path.exists()
        at_work = {row.run_id for row in store.list(states=OPEN_STATES)}

    def has_no_job_begun() -> bool:
        return _newest_job(runs_dir) == began

    def has_nobody_begun() -> bool:
        """One who has may have found what is needed in a cache, and says so nowhere yet."""
        is_preparing = any(map(_is_preparing, _workers(runs_dir)))
        return has_no_job_begun() and not is_preparing and wrote.items() >= _written(runs_dir).items()

    for item in _found(runs_dir, at_work, has_store=has_store):
        is_of_run = item.kind in ("uploads", "worker")  # whose lock is held by now
        yield replace(item, may_still_go=has_no_job_begun if is_of_run else has_nobody_begun)


def _newest_job(runs_dir: Path) -> list[str]:
    with open_store(runs_dir) as store:
        return [row.job_id for row in store.list(1)]


def _written(runs_dir: Path) -> dict[str, int]:
    """When each worker wrote down what it uses."""
    return {folder.name: _changed_ns(folder / _CONTRACT) for folder in _workers(runs_dir)}


def _workers(runs_dir: Path) -> list[Path]:
    return [folder for folder in _below(runs_dir / _WORKER) if RUN_ID_PATTERN.fullmatch(folder.name)]


def _changed_ns(path: Path) -> int:
    """0 where it is not there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _found(runs_dir: Path, at_work: set[str], *, has_store: bool) -> Iterator[Item]:
    own = runs_dir / ".trn"
    workers = _workers(runs_dir)
    here = [folder for folder in workers if folder.name in at_work or os.path.lexists(runs_dir / folder.name)]
    names = _names(runs_dir, here)
    yield from _spools(runs_dir, at_work)
    for folder in workers:
        is_ours = any((folder / name).is_file() for name in _WRITTEN)
        is_used = folder in here or f"{_WORKER}/{folder.name}" in names
        if is_ours and not is_used and is_locked(folder / LOCK_NAME) is None:
            yield Item("worker", (folder,), folder / LOCK_NAME)
    if not has_store or any(not (runs_dir / run_id / PLAN_NAME).is_file() for run_id in at_work):
        return
    if not any(map(_is_preparing, workers)):
        yield from _caches(own, names)


def _below(folder: Path) -> list[Path]:
    return [folder / name for name in folder_names(folder)]


def _is_preparing(folder: Path) -> bool:
    """Whether a worker is at work and has not written down yet what it has fetched."""
    lock = folder / LOCK_NAME
    return is_locked(lock) is not None and _changed_ns(folder / _CONTRACT) <= _changed_ns(lock)


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
    """All digests, keys and folders of workers in what runs, waiting jobs and workers have written down."""
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
        if key not in names and not _is_named(own / "arrow" / f"{key}.json", names):
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


def _is_named(note: Path, names: set[str]) -> bool:
    """Whether a run names what a note does: the input that a source was last time, or the data that were decoded."""
    return any(found.decode() in names for found in _NAME.findall(_read(note)))


def _by_name(folder: Path, pattern: re.Pattern[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in file_names(folder):
        if match := pattern.fullmatch(name):
            found.setdefault(match[1], []).append(name)
    return found
