"""The rows of a job store that is gone: from its index, or where that is gone too, from what runs and requests tell.

    jobs/index.jsonl                                         all jobs, as they stood
    <run_id>/reports/{events.jsonl,outcome.json,outcomes/}   the jobs that began
    .trn/queue/<job_id>.json                                 the jobs that wait

The first is whole. By the others a job that was refused is forgotten, and of the rest the process and the spec.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trn.errors import StorageError
from trn.jobs.folders import is_id, is_run, jobs_of_folder, names_of_runs
from trn.jobs.index import index_path, read_index
from trn.jobs.request import read_request
from trn.records import JobRow

__all__ = ["Rebuilt", "rebuild"]


@dataclass(frozen=True)
class Rebuilt:
    """Jobs, what they were read from, and what could not be read of it."""

    rows: tuple[JobRow, ...]
    source: str
    problems: tuple[str, ...] = ()


def rebuild(runs_dir: Path) -> Rebuilt:
    """The jobs of `runs_dir` without its store. Changes nothing. Raises OSError where the folder cannot be read."""
    rows, damaged = read_index(index_path(runs_dir))
    problems = (f"{index_path(runs_dir)}: {damaged} damaged lines were left out",) if damaged else ()
    if rows:
        return Rebuilt(tuple(rows), "its index", problems)
    found: dict[str, JobRow] = {}
    unread = 0
    for folder in (runs_dir / name for name in names_of_runs(runs_dir)):
        try:
            of_run = jobs_of_folder(folder) if is_run(folder) else []
        except OSError:
            unread += 1
            continue
        for row in of_run:
            found.setdefault(row.job_id, row)
    for row in _waiting(runs_dir):
        found.setdefault(row.job_id, row)
    if unread:
        problems = (*problems, f"{runs_dir}: {unread} folders of runs cannot be read, and were left out")
    return Rebuilt(tuple(found.values()), "the folders of its runs", problems)


def _waiting(runs_dir: Path) -> Iterator[JobRow]:
    """The jobs whose requests are there; one that nobody could start is none."""
    try:
        names = sorted(os.listdir(runs_dir / ".trn" / "queue"))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        job_id = name.removesuffix(".json")
        if job_id != name and is_id(job_id):
            try:
                request = read_request(runs_dir, job_id)
            except StorageError:
                continue
            if request.is_of_queue:
                yield request.new_row(runs_dir, "queued")
