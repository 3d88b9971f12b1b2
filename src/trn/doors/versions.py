"""Versions of a named run: `exp01-v0-20261122-093000`, `exp01-v1-...`, each a run of its own beside the others.

A version is part of the id and no folder within a folder: so every verb takes it as it takes any id, a path never
becomes an id, and what publishes the run is the one rename. Numbers are given out under a lock, and never twice: a job
that was refused keeps its number, as `trn list` shows.
"""

from __future__ import annotations

import os
from pathlib import Path

from trn.doors.targets import check_run_id
from trn.files import Lock, make_folder, write_atomic
from trn.records import JsonError, pretty_json, read_json, version_name, version_of

__all__ = ["choose_version", "claim_version"]

_PLAN = Path("reports") / "resolved_config.json"


def choose_version(runs_dir: Path, run_id: str, *, continues: bool) -> tuple[str, bool]:
    """The id that is meant where versions of `run_id` are asked for, and whether it is one that is yet to be begun.

    What `continues` goes on with the run of exactly this id where there is one, else with its newest version. A new
    id is not given out here, see `claim_version`. Raises UsageError for a name that is too long.
    """
    if continues:
        if (runs_dir / run_id / _PLAN).is_file():
            return run_id, False
        found = [(number, name) for number, name in _versions(runs_dir, run_id) if (runs_dir / name / _PLAN).is_file()]
        if found:
            return max(found)[1], False
    return check_run_id(version_name(run_id, _next(runs_dir, run_id, {}))), True


def claim_version(runs_dir: Path, run_id: str) -> str:
    """The id of the next version of `run_id`, which nobody else is given. Raises UsageError, StorageError."""
    folder = make_folder(runs_dir / ".trn")
    with Lock(folder / "versions.lock"):
        given = _given(folder / "versions.json")
        number = _next(runs_dir, run_id, given)
        name = check_run_id(version_name(run_id, number))
        write_atomic(folder / "versions.json", pretty_json({**given, run_id: number + 1}))
    return name


def _versions(runs_dir: Path, run_id: str) -> list[tuple[int, str]]:
    try:
        names = os.listdir(runs_dir)
    except (FileNotFoundError, NotADirectoryError):
        return []
    numbers = ((version_of(name, run_id), name) for name in names)
    return [(number, name) for number, name in numbers if number is not None]


def _next(runs_dir: Path, run_id: str, given: dict[str, object]) -> int:
    told = given.get(run_id, 0)
    there = max((number for number, _ in _versions(runs_dir, run_id)), default=-1) + 1
    return max(there, told) if isinstance(told, int) else there


def _given(path: Path) -> dict[str, object]:
    """What was given out; a file that is lost or damaged costs nothing but numbers of refused jobs."""
    try:
        return read_json(path)
    except (FileNotFoundError, JsonError):
        return {}
