"""`python -m trn.doors.queue_server`: serves the queue of a folder of runs, alone, until it is empty or for ever.

It is started apart by whoever submits or ends a job while jobs wait and nobody serves; `trn queue serve` is the same
loop in a terminal or under a service manager. Killed at any time it leaves nothing to mend: its keepers and their jobs
go on, and the next server goes on with the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from trn.devices import Lease
from trn.doors.keeper import start_keeper
from trn.errors import StorageError, TrnError, exit_code
from trn.files import Lock, make_folder
from trn.jobs import open_store, record_lost
from trn.jobs.queue import queue_lock, waiting_rows
from trn.jobs.request import Request, sweep_requests
from trn.jobs.serving import Queue

__all__ = ["main", "serve"]

_LOOK_EVERY_S = 0.5
_SWEEP_EVERY = 120
"""Looks between two at what killed doors have left: about a minute."""
_FAILURES = 120
"""How many looks in a row may fail before a server that nobody watches gives up."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trn.doors.queue_server", description="Serve the queue.")
    parser.add_argument("--runs-dir", type=Path, required=True)
    parser.add_argument("--until-empty", action="store_true", help="end when no job waits any more")
    args = parser.parse_args(arguments)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        serve(args.runs_dir, until_empty=args.until_empty, is_over=threading.Event())
    except (TrnError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status if isinstance(error, TrnError) else exit_code("io_error")
    return 0


def serve(
    runs_dir: Path, *, until_empty: bool, is_over: threading.Event, say: Callable[[str], None] = lambda text: None
) -> None:
    """Serve until the queue is empty, or `is_over` is set.

    Where somebody else serves: with `until_empty` there is nothing to do, else their end is waited for. Raises
    StorageError where the queue cannot be locked.
    """
    lock = Lock(queue_lock(runs_dir))
    make_folder(lock.path.parent)
    while not is_over.is_set():
        if not lock.acquire(note=f"pid={os.getpid()}"):
            if until_empty:
                return
            is_over.wait(_LOOK_EVERY_S)
            continue
        try:
            say(f"trn: serving the queue of {runs_dir}")
            _Server(runs_dir, say).run(until_empty=until_empty, is_over=is_over)
        finally:
            lock.release()
        # who submits looks at the lock after the row is there: whatever came before it was let go is seen here
        with open_store(runs_dir) as store:
            if until_empty and not waiting_rows(store):
                return


class _Server:
    """The holder of the queue's lock, and the keepers that it has started."""

    def __init__(self, runs_dir: Path, say: Callable[[str], None]) -> None:
        self._runs_dir = runs_dir
        self._say = say
        self._keepers: dict[str, subprocess.Popen[bytes]] = {}
        self._problem = ""

    def run(self, *, until_empty: bool, is_over: threading.Event) -> None:
        """Look, again and again; a store that fails is told of once, and looked at again.

        With `until_empty` that has an end, and StorageError or OSError is raised.
        """
        looks = failures = 0
        with open_store(self._runs_dir) as store:
            queue = Queue(store, self._start, os.environ)
            while not is_over.is_set():
                self._keepers = {job_id: one for job_id, one in self._keepers.items() if one.poll() is None}
                try:
                    if looks % _SWEEP_EVERY == 0:
                        record_lost(store)
                        sweep_requests(store)
                    is_left = queue.look(self._keepers)
                    self._problem, failures = "", 0
                except (StorageError, OSError) as error:
                    is_left, failures = True, failures + 1
                    if until_empty and failures == _FAILURES:
                        raise
                    self._tell(str(error))
                if until_empty and not is_left:
                    return
                looks += 1
                is_over.wait(_LOOK_EVERY_S)

    def _start(self, request: Request, held: Lease) -> None:
        """Raises StorageError."""
        self._keepers[request.job_id] = start_keeper(self._runs_dir, request, held, os.environ)
        self._say(f"trn: started {request.job_id} of {request.run_id}{_with(held)}")

    def _tell(self, problem: str) -> None:
        if problem != self._problem:
            with contextlib.suppress(OSError):
                self._say(problem)
        self._problem = problem


def _with(held: Lease) -> str:
    return f" with {', '.join(held.devices)}" if held.devices else ""


if __name__ == "__main__":
    sys.exit(main())
