"""A job that an engine has: what the engine says of it, for `trn status`, and how it is ended, for `trn cancel`.

    row ──poll──> the engine ──> queued, running: shown        over: the row gets its end, if it still claims otherwise

The folder wins over the engine: where it has an outcome, or somebody holds the run, that is told. An engine that cannot
be asked is said to be so, and changes nothing. Not here: submitting (engines), and being the job's door (adopting).
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from trn.errors import EngineError, StorageError, exit_code
from trn.jobs import OPEN_STATES, Store, observe
from trn.records import JobRow, utc_now

if TYPE_CHECKING:
    from trn.launch.engine import Engine, Seen

__all__ = ["ENGINES", "AtEngine", "at_engine", "cancel_at_engine"]

ENGINES = ("slurm", "ray", "kubernetes")

_WAITING = ("submitted", "queued")
_MAY_GO_ON = frozenset({"preempted", "crashed", "rank_lost", "hang", "time_limit", "lost"})
"""Ends after which an engine may start the run again."""


class AtEngine(NamedTuple):
    """What the engine of a job says: a state of `Seen`, or None with the reason why it could not be asked."""

    launcher: str
    engine_id: str | None
    state: str | None
    exit_code: int | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        return self._asdict()

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.launcher} {self.engine_id}: {self.state or 'cannot be asked'}{reason}"


def at_engine(store: Store, row: JobRow) -> tuple[JobRow, AtEngine | None]:
    """The job as its engine has it, and what that says: None where no engine has a part in it any more.

    A row that claims that somebody is at work, where the engine says that it is over, gets its end. Raises nothing for
    an engine that cannot be asked, nor for a store that cannot be written.
    """
    try:
        return _asked(store, row)
    except EngineError as error:
        return row, AtEngine(row.launcher, row.engine_id, None, None, str(error))


def _asked(store: Store, row: JobRow) -> tuple[JobRow, AtEngine | None]:
    """As `at_engine`. Raises EngineError."""
    if row.launcher not in ENGINES or (row.state not in OPEN_STATES and row.state not in _MAY_GO_ON):
        return row, None
    engine, engine_id = _of(row)
    seen = engine.poll(engine_id)
    told = AtEngine(row.launcher, engine_id, seen.state, seen.exit_code, seen.reason)
    if seen.is_over and row.state in OPEN_STATES:
        with contextlib.suppress(StorageError):
            row = _ended(store, row, seen)
    return row, told


def _ended(store: Store, row: JobRow, seen: Seen) -> JobRow:
    """The row of a job of which the engine says that it is over. Raises StorageError."""
    row = store.get(row.job_id) or row
    if row.state not in OPEN_STATES:
        return row
    # asked as of this machine, where locks alone tell whether somebody is at work
    disk = observe(replace(row, state="starting", launcher="local"), store.runs_dir)
    if disk.state in ("starting", "running"):
        return replace(row, state=disk.state)
    if disk.state != "lost":
        changes = {"exit_code": disk.exit_code, "reason": disk.reason, "started_at": disk.started_at}
        return store.swap(row, disk.state, **changes, ended_at=disk.ended_at) or row
    state, code = "lost", seen.exit_code
    if row.state in _WAITING and seen.state == "cancelled":
        state, code = "cancelled", exit_code("cancelled")
    elif row.state in _WAITING and seen.state == "ended":
        state = "rejected"
    reason = f"{row.launcher} says: {seen.reason or seen.state}"
    return store.swap(row, state, exit_code=code, reason=reason, ended_at=utc_now()) or row


def cancel_at_engine(store: Store, row: JobRow, *, now: bool) -> tuple[JobRow, AtEngine | None]:
    """Have the engine end what the run's own door cannot: a job that waits, or waits again; with `now`, any.

    A job that runs is left to its door, which looks for requests to cancel; `now` is for one that does not hear.
    Returns the row as it is then. Raises EngineError.
    """
    row, told = _asked(store, row)
    if told is None or not (told.state == "queued" or (told.state == "running" and now)):
        return row, told
    engine, engine_id = _of(row)
    engine.cancel(engine_id)
    if told.state == "queued" and row.state in _WAITING:
        changes = {"exit_code": exit_code("cancelled"), "reason": f"cancelled while it waited in {row.launcher}"}
        row = store.swap(row, "cancelled", **changes, ended_at=utc_now()) or store.get(row.job_id) or row
    return row, told


def _of(row: JobRow) -> tuple[Engine, str]:
    """Whom to ask for this job, and by which name."""
    if row.engine_id is None or row.launcher not in ENGINES:
        raise EngineError("nobody knows what the engine calls it.", where=f"job {row.job_id}")
    if row.launcher == "slurm":
        from trn.launch.slurm import SlurmEngine

        return SlurmEngine(run_id=row.run_id), row.engine_id
    if row.launcher == "ray":
        from trn.launch.ray import RayEngine

        return RayEngine(), row.engine_id
    from trn.launch.kubernetes import KubernetesEngine

    return KubernetesEngine(), row.engine_id
