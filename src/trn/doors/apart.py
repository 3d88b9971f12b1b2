"""Programs of the house started apart from this one: they outlive it, and no terminal of its own reaches them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from trn.devices import cores_before_lease
from trn.errors import StorageError
from trn.jobs import open_store
from trn.jobs.queue import is_served, waiting_rows
from trn.launch.local import running_on

__all__ = ["module", "plain", "serve_if_needed", "start_apart"]


def module(name: str, python: str = sys.executable) -> list[str]:
    """The command line of a module that is a program."""
    # -u: what the trainer prints is seen when it is printed, and is not lost with a process that is killed
    # -P: a file in the current folder must not stand in for a module of the same name
    return [python, "-u", "-P", "-m", name]


def start_apart(
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    environ: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    stderr: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start it in a session of its own, with nothing on its standard streams. Raises OSError."""
    # not on the cores of the job that this process is of: they are another's once that has ended
    with running_on(cores_before_lease(os.environ)):
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
            cwd=cwd,
            env=None if environ is None else dict(environ),
            pass_fds=tuple(pass_fds),
        )


def serve_if_needed(runs_dir: Path) -> None:
    """See to it that somebody serves the queue, where jobs wait in it.

    Nothing is raised: whoever submits or ends the next job tries again, and `trn queue` says that nobody serves.
    """
    with contextlib.suppress(StorageError, OSError), open_store(runs_dir) as store:
        if waiting_rows(store) and is_served(runs_dir) is None:
            start_apart(_server(runs_dir), cwd=runs_dir, environ=plain(os.environ))


def _server(runs_dir: Path) -> list[str]:
    return [*module("trn.doors.queue_server"), "--runs-dir", str(runs_dir), "--until-empty"]


_OF_A_JOB = ("TRN_LEASE_FDS", "TRN_LEASE_DEVICES", "TRN_LEASE_CORES", "TRN_JOB_ID", "TRN_LAUNCHER", "TRN_ENGINE_ID")


def plain(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables without those of one job, which are not for the next."""
    return {name: value for name, value in environ.items() if name not in _OF_A_JOB}
