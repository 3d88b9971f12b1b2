"""Serving the queue: leases for the first job that waits, then for the next, and a keeper for each that gets one.

A later job passes an earlier one only where it wants nothing of the kind that the earlier one waits for, so no job
waits for ever behind smaller ones.

    look ──> for each row `queued`, the oldest first
               a door has it         it is being started: nothing to do
               no usable request     row `rejected`, with the reason
               kind is waited for    it waits behind that job
               lease is busy         it waits for what the holder holds
               lease is there        start(request, lease): a keeper, which moves the row itself

The rows and the leases are the state: a server that is killed leaves nothing to mend, and two of them start no job
twice, since the row moves once. Not here: processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping

from trn.devices import Busy, Lease, lease
from trn.errors import DeviceError, StorageError, TrnError
from trn.files import is_locked
from trn.jobs.attending import attend, attending
from trn.jobs.observe import launch_lock
from trn.jobs.queue import tell_waiting, waiting_rows
from trn.jobs.request import Request, read_request, remove_request
from trn.jobs.store import Store
from trn.records import JobRow, utc_now

__all__ = ["Queue"]

_STARTS = 3
"""How often a job's keeper is started, should it end without having taken the job."""


class Queue:
    """What a server of the queue does at each look; `start` starts the keeper of a job, and keeps its lease open.

    Nothing that is wrong with one job stops the others. Only for the holder of the queue's lock.
    """

    def __init__(self, store: Store, start: Callable[[Request, Lease], None], environ: Mapping[str, str]) -> None:
        self._store = store
        self._runs_dir = store.runs_dir
        self._start = start
        self._environ = environ
        self._starts: dict[str, int] = {}
        self._told: dict[str, str] | None = None

    def look(self, started: Collection[str] = ()) -> bool:
        """Start what may start; returns whether jobs are left. `started` are those whose keepers are alive.

        Raises StorageError where the store cannot be read.
        """
        waits_for: dict[str, str] = {}
        told: dict[str, str] = {}
        rows = waiting_rows(self._store)
        for row in rows:
            if row.job_id not in started and is_locked(launch_lock(self._runs_dir, row.job_id)) is None:
                try:
                    reason = self._take(row, waits_for)
                except TrnError as error:
                    reason = self._reject(row, error)
                if reason:
                    told[row.job_id] = reason
        self._tell(told)
        return bool(rows)

    def _take(self, row: JobRow, waits_for: dict[str, str]) -> str:
        """Start a job, or say why it waits. Raises TrnError where it never can."""
        request = read_request(self._runs_dir, row.job_id)
        if self._starts.get(row.job_id, 0) >= _STARTS:
            raise StorageError(f"its keeper was started {_STARTS} times, and did not take it.", where=request.python)
        for kind in sorted(request.want.kinds):
            if kind in waits_for:
                return f"behind {waits_for[kind]}, which waits for {kind}"
        environ = request.environ_of(self._environ)
        try:
            held = lease(request.want, note=f"job={row.job_id} run={row.run_id}", environ=environ)
        except Busy as error:
            waits_for.update(dict.fromkeys(request.want.kinds, row.run_id))
            return error.message.removeprefix("expected ").removesuffix(".")  # it is read after "waits for"
        except DeviceError:
            raise
        except TrnError as error:  # the folder of leases: no fault of the job
            waits_for.update(dict.fromkeys(request.want.kinds, row.run_id))
            return str(error)
        self._starts[row.job_id] = self._starts.get(row.job_id, 0) + 1
        with held:
            self._start(request, held)
        return ""

    def _reject(self, row: JobRow, error: TrnError) -> str:
        """Take a job that cannot be started out of the queue; "" once it is out."""
        try:
            lock = attend(self._runs_dir, row.job_id)
            if lock is None:
                return ""
            with attending(lock):
                ended = {"exit_code": error.exit_status, "reason": str(error), "ended_at": utc_now()}
                if self._store.swap(row, "rejected", **ended) is not None:
                    remove_request(self._runs_dir, row.job_id)
        except StorageError as problem:
            return str(problem)
        return ""

    def _tell(self, told: dict[str, str]) -> None:
        if told != self._told:
            with contextlib.suppress(StorageError):
                tell_waiting(self._runs_dir, told)
            self._told = told
