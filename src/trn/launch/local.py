"""A child process on this machine, in a session of its own, with its output in a file.

Its own session: the terminal's Ctrl-C and hang-up reach the door only, which passes them on once. A file, never a
pipe: when the door is killed the child can go on printing, and what it printed is there to be read.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from trn.devices import Lease
from trn.errors import StorageError
from trn.files import make_folder
from trn.launch.launcher import Handle, Launcher

__all__ = ["LocalLauncher", "become", "running_on", "start_process"]


# A set of strings is walked in the same order in each process, so that a trainer's own code resumes as it began; and
# what is printed is in the log at once, also when the process is killed.
_CHILD_DEFAULTS = {"PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"}


class LocalLauncher(Launcher):
    """Starts children with `subprocess`: nothing on their standard input, both outputs appended to the log.

    They inherit this process's variables, with those of `environ` in addition; with a `lease` also its descriptors, and
    they run on its cores.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, *, lease: Lease | None = None) -> None:
        self._environ = dict(environ or {})
        self._lease = lease or Lease()

    def start(self, argv: Sequence[str], *, log: Path) -> Handle:
        return _LocalHandle(start_process(argv, log=log, environ=os.environ | self._environ, lease=self._lease))


def start_process(
    argv: Sequence[str], *, log: Path, environ: Mapping[str, str], lease: Lease, umask: int = -1
) -> subprocess.Popen[bytes]:
    """Start `argv` as a launcher of this machine does, with these variables and those of the lease; umask -1: as here.

    Raises StorageError where the log cannot be written, OSError where the program cannot be started.
    """
    make_folder(log.parent)
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"cannot open the job's log: {error.strerror}.", where=str(log)) from error
    try:
        with running_on(lease.cpus):
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=lease.fds,
                umask=umask,
                env=_CHILD_DEFAULTS | dict(environ) | lease.environ(),
            )
    finally:
        os.close(output)


@contextlib.contextmanager
def running_on(cores: Sequence[int]) -> Iterator[None]:
    """This thread, and what it starts inside, on these cores only; on all as before where there are none to say."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores)  # before the child is there: libraries count their cores when they are loaded
        yield
    finally:
        with contextlib.suppress(OSError):  # taken from this machine meanwhile: the child is there all the same
            os.sched_setaffinity(0, before)


class _LocalHandle(Handle):
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self, timeout_s: float) -> int | None:
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def failure(self) -> tuple[int, str] | None:
        """Nothing: the exit status is the program's own."""
        return None


def become(argv: Sequence[str], environ: Mapping[str, str] | None = None, *, lease: Lease | None = None) -> NoReturn:
    """Replace this process by `argv`: same terminal, same signals, its exit status is ours. Never returns.

    For verbs that are nothing but another program's; what was written to the standard streams is flushed first. With
    an `environ` it gets the variables that `LocalLauncher(environ)` gives a child; with a `lease` it holds that on.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if environ is not None:
        os.environ.update(_CHILD_DEFAULTS | os.environ | dict(environ))
    if lease is not None:
        os.environ.update(lease.environ())
        for fd in lease.fds:
            os.set_inheritable(fd, True)
        if lease.cpus and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, lease.cpus)
    os.execv(argv[0], list(argv))
