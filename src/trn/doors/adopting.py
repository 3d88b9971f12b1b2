"""Being the door that an engine has started: the job is there already, or about to be.

    TRN_LAUNCHER, TRN_ENGINE_ID, TRN_JOB_ID    set by the script or manifest, see trn.launch.engine

The row of that job is taken over if it still waits and is of this run and folder; whoever comes first adds it: this
door, or that which submitted it. An engine that starts the same job again gets a new row, of the same engine id.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from trn.doors.at_engine import ENGINES
from trn.errors import StorageError, TrnError
from trn.files import Lock
from trn.jobs import OPEN_STATES, Store, observe, open_store
from trn.jobs.attending import attend, attending
from trn.launch.engine import VARIABLES
from trn.records import RUN_ID_PATTERN, JobRow, utc_now

__all__ = ["adopting"]

_WAITING = ("submitted", "queued")


def _facts(environ: Mapping[str, str]) -> dict[str, str]:
    """What a job's row says of the engine that has started this door; nothing where none has."""
    launcher, engine_id = environ.get("TRN_LAUNCHER", ""), environ.get("TRN_ENGINE_ID", "")
    if launcher not in ENGINES or not engine_id.isprintable():
        return {}
    return {"launcher": launcher, **({"engine_id": engine_id} if engine_id else {})}


@contextlib.contextmanager
def adopting(row: JobRow, runs_dir: Path) -> Iterator[tuple[JobRow, Lock | None]]:
    """The job that this door keeps, and its launch lock if it is held: that which was submitted, else `row` itself.

    Where the engine starts the same job again, what the attempt before it could not tell any more is settled.
    """
    job_id = os.environ.get("TRN_JOB_ID", "")
    facts = _facts(os.environ)
    for name in VARIABLES:  # said to this door, and to none that its trainer may open
        os.environ.pop(name, None)
    if not facts or not RUN_ID_PATTERN.fullmatch(job_id):
        yield row, None
        return
    row = replace(row, **facts)  # type: ignore[arg-type]  # fields of a row, by their names
    with open_store(runs_dir) as store:
        _settle_before(store, row)
        taken = _submitted(store, replace(row, job_id=job_id, state="queued"))
        if taken is None:
            yield row, None
            return
        with attending(taken[1]):
            try:
                yield taken
            except TrnError as error:
                with contextlib.suppress(StorageError):
                    now = store.get(job_id)
                    if now is not None and now.state == "queued":
                        store.swap(now, "rejected", exit_code=error.exit_status, reason=str(error), ended_at=utc_now())
                raise


def _submitted(store: Store, row: JobRow) -> tuple[JobRow, Lock] | None:
    """The row that the submitting door has added, or is about to, and its launch lock; None for one that is over."""
    before = store.get(row.job_id)
    if before is not None and (before.run_id != row.run_id or before.state not in _WAITING):
        return None
    lock = attend(store.runs_dir, row.job_id)
    if lock is None:
        return None
    if before is None:
        with contextlib.suppress(StorageError):  # the submitting door was quicker
            store.add(row)
    found = store.get(row.job_id)
    if found is None or found.state not in _WAITING:
        lock.release()
        return None
    return found, lock


def _settle_before(store: Store, row: JobRow) -> None:
    """Let rows of the same job of the engine end, whose door is gone with its machine."""
    with contextlib.suppress(StorageError):
        for one in store.of_run(row.run_id):
            is_same = (one.launcher, one.engine_id) == (row.launcher, row.engine_id)
            if is_same and one.state in ("starting", "running"):
                # as if it were of this machine: its locks tell
                seen = observe(replace(one, launcher="local"), store.runs_dir)
                if seen.state not in OPEN_STATES:
                    ended_at = seen.ended_at or utc_now()
                    store.swap(one, seen.state, exit_code=seen.exit_code, reason=seen.reason, ended_at=ended_at)
