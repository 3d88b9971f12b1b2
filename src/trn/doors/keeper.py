"""`python -m trn.doors.keeper`: the door of a job that nobody stays with, started apart from any terminal.

    request ──> launch lock ──> row: added (--detach), or `queued` -> `starting` ──> runner ──> ending ──> request gone

It does what the foreground door does, and shows nothing: until the job has begun, what there is to tell goes to
standard error, where the door that submitted it listens; then that is closed. The runner does not depend on it: when
the keeper is killed, the run goes on, and its own outcome tells how it ended. A job that another keeper has, or that
was cancelled, is left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from trn.devices import Lease, adopt_lease
from trn.doors.apart import module, serve_if_needed, start_apart
from trn.doors.forwarding import held_back
from trn.doors.processes import Processes
from trn.doors.progress import Display
from trn.doors.standing import Standing
from trn.doors.staying import Start, Taken, devices_of, keep
from trn.errors import StorageError, TrnError, exit_code
from trn.files import make_folder
from trn.jobs import Store, job_log, open_store
from trn.jobs.attending import attend, attending
from trn.jobs.request import Request, drop_request, read_request
from trn.launch import Layout
from trn.ranks import World
from trn.records import JobRow, utc_now

__all__ = ["main", "start_keeper"]

_LOCK_WAIT_S = 5.0
"""For how long the door that put the job into the queue may still hold it."""


def start_keeper(
    runs_dir: Path, request: Request, held: Lease, starter: Mapping[str, str], stderr: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start the keeper of a job, with the devices that were leased for it. Raises StorageError."""
    argv = [*_keeper(request.python), "--runs-dir", str(runs_dir), "--job-id", request.job_id]
    environ = {**request.environ_of(starter), **held.environ()}
    try:
        with held_back():
            return start_apart(argv, cwd=Path(request.cwd), environ=environ, pass_fds=held.fds, stderr=stderr)
    except OSError as error:
        where = error.filename or request.python
        raise StorageError(f"its keeper cannot be started: {error.strerror}.", where=str(where)) from error


def _keeper(python: str) -> list[str]:
    return module("trn.doors.keeper", python)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trn.doors.keeper", description="Keep a job that was submitted.")
    parser.add_argument("--runs-dir", type=Path, required=True)
    parser.add_argument("--job-id", required=True)
    args = parser.parse_args(arguments)
    # the terminal's hang-up is for those that stay with it
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    held = adopt_lease(os.environ)
    try:
        return _keep_job(args.runs_dir, args.job_id, held)
    except (TrnError, OSError) as error:
        status, text = _word(error)
        _leave_word(args.runs_dir, args.job_id, text)
        return status
    except Exception:  # noqa: BLE001 - the end of this process: nobody else could tell what it was
        _leave_word(args.runs_dir, args.job_id, traceback.format_exc())
        return exit_code("crashed")


def _keep_job(runs_dir: Path, job_id: str, held: Lease | None) -> int:
    """Returns the exit status of the job, 0 where it is not this keeper's."""
    request = read_request(runs_dir, job_id)
    with open_store(runs_dir) as store:
        lock = attend(runs_dir, job_id, wait_s=_LOCK_WAIT_S)
        if lock is None:
            return 0
        try:
            with attending(lock):
                row = _taken_row(store, request, held)
                if row is None:
                    return 0
                ending, _ = keep(_start_of(runs_dir, request), store, _Telling, held=held, taken=Taken(row, lock))
        except (TrnError, OSError) as error:
            status, text = _word(error)
            with contextlib.suppress(StorageError):  # no such row, or one that had begun
                store.advance(job_id, "rejected", exit_code=status, reason=text, ended_at=utc_now())
            raise
        finally:
            with contextlib.suppress(StorageError):
                drop_request(store, job_id)
    if held is not None:
        held.release()
    serve_if_needed(runs_dir)
    return ending.exit_code


def _word(error: TrnError | OSError) -> tuple[int, str]:
    """The exit status and the line of an error."""
    if isinstance(error, TrnError):
        return error.exit_status, str(error)
    return exit_code("io_error"), f"storage error [io_error]: {error}."


def _taken_row(store: Store, request: Request, held: Lease | None) -> JobRow | None:
    """The job's row as this keeper's own; None where it is another's, or nobody's any more. Raises StorageError."""
    row = store.get(request.job_id)
    if row is None:
        return request.new_row(store.runs_dir, "submitted", devices_of(held))
    # killed in the 0.6 ms from here until the child is started, the job is lost, and does not wait again: whether a
    # child is on its way nobody could tell until it holds the run, seconds later, and it might be started twice
    return store.swap(row, "starting", devices=devices_of(held)) if row.state == "queued" else None


def _start_of(runs_dir: Path, request: Request) -> Start:
    return Start(
        runs_dir=runs_dir,
        run_id=request.run_id,
        arguments=request.arguments,
        processes=Processes(Layout(request.nproc), World(), request.max_restarts),
        config=request.config_path,
        grace_s=request.grace_s,
        allow_change=request.allow_change,
        argv=request.argv,
        is_detached=True,
    )


class _Telling(Display):
    """Tells the submitting door what there is to tell until the job has begun."""

    def line(self, text: str) -> None:
        try:
            os.write(2, f"{text}\n".encode(errors="replace"))
        except OSError:
            _fall_silent()

    def update(self, standing: Standing, events: Sequence[Mapping[str, Any]]) -> None:
        _fall_silent()

    def close(self) -> None:
        """The job may have been refused: there is more to tell."""


def _fall_silent() -> None:
    """Let go of the pipe, at whose end the door knows that the job has begun."""
    if not os.path.sameopenfile(2, _nowhere()):
        os.dup2(_nowhere(), 2)


@cache
def _nowhere() -> int:
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def _leave_word(runs_dir: Path, job_id: str, text: str) -> None:
    """For the door that listens; and in the job's log, since there may be none."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text.rstrip()}\n".encode(errors="replace"))
    with contextlib.suppress(TrnError, OSError), open_store(runs_dir) as store:
        if row := store.get(job_id):
            log = job_log(runs_dir, row)
            make_folder(log.parent)
            with open(log, "a", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
                out.write(f"{text.rstrip()}\n")


if __name__ == "__main__":
    sys.exit(main())
