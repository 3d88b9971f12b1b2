"""The child's program in this very process, so that a debugger can step through it.

The one declared exception of the process wall: the module is run by name with `runpy`, and nothing of it is imported
here. There is no second process, so nothing is captured, and signals go to the program's own handlers.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from trn.devices import Lease
from trn.launch.launcher import Handle, Launcher

__all__ = ["InlineLauncher"]


class InlineLauncher(Launcher):
    """Runs `[python, ..., "-m", MODULE, ...]` to its end before `start` returns. What it prints goes to stderr.

    With a `lease` this process sees its devices and runs on its cores, from then on.
    """

    def __init__(self, lease: Lease | None = None) -> None:
        self._lease = lease or Lease()

    def start(self, argv: Sequence[str], *, log: Path) -> Handle:
        module, *arguments = argv[list(argv).index("-m") + 1 :]
        os.environ.update(self._lease.environ())
        if self._lease.cpus and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self._lease.cpus)
        before = sys.argv
        sys.argv = [module, *arguments]
        try:
            with contextlib.redirect_stdout(sys.stderr):
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            return _Ended(0)
        except SystemExit as end:
            return _Ended(_status(end))
        finally:
            sys.argv = before


def _status(end: SystemExit) -> int:
    """The exit status of a `SystemExit`, as the interpreter would have it."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    sys.stderr.write(f"{end.code}\n")
    return 1


class _Ended(Handle):
    def __init__(self, returncode: int) -> None:
        self._returncode = returncode
        self.pid = os.getpid()

    def poll(self) -> int | None:
        return self._returncode

    def wait(self, timeout_s: float) -> int | None:
        return self._returncode

    def signal(self, number: int) -> None:
        """Nothing: the program had this process's signals to itself."""

    def failure(self) -> tuple[int, str] | None:
        """Nothing: the exit status is the program's own."""
        return None
