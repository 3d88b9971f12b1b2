"""`python -m trn.launch.agent`: stands between a door and torchrun, so that no process outlives either.

    door ──starts──> agent ──starts──> torchrun ──starts──> ranks
                       │  <──adopts── what its parent left behind
                       ├──signals that ask to stop──> the ranks, each exactly once
                       └──SIGKILL──> who does not end

A signal goes to the ranks and not to torchrun, which would kill them after its own thirty seconds: a last checkpoint
may take longer, and each rank keeps its own time. When the door is gone, that is a SIGTERM, unless they are detached.
When torchrun is gone, the ranks are this process's children, and are asked to stop. A rank that is stopped (SIGSTOP)
hears nothing: while the others end it is killed. The agent ends when no child is left, with torchrun's exit status or
128 plus its signal.

Only Linux: it reads /proc, adopts orphans, and torchrun gets a SIGTERM from the kernel should this process be killed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import glob
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from trn.launch.torchrun import ATTEMPT, FOLDER, MEET_S
from trn.ranks import error_file

__all__ = ["main"]

_ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_LOOK_EVERY_S = 0.25
_STOPPED_S = 2.0
"""How long a stopped rank is left alone while the others end."""
_LEFT_S = 5.0
"""How long what is no rank may take to end."""
_PREFIX = "trn-ranks-"
_NEW_S = 60.0
_SET_PDEATHSIG = 1
_SET_CHILD_SUBREAPER = 36
_RESTARTED = frozenset({87, 88})  # rank_lost, hang


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    state: str
    """One letter of /proc/PID/stat: T is stopped, Z has ended."""

    @property
    def has_not_ended(self) -> bool:
        return self.state not in "ZX"


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parse(arguments)
    door = os.getppid() if args.door_pid is None else args.door_pid
    # one that the user had ignored (nohup) stays ignored: blocked, it would be heard
    listened = {number for number in _ASKING if signal.getsignal(number) is not signal.SIG_IGN} | {signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, listened)
    _prctl(_SET_CHILD_SUBREAPER, 1)
    restarts, began_s = 0, time.monotonic()
    while True:
        with _folder() as folder:
            filled = {FOLDER: folder, ATTEMPT: f"trn-{args.attempt + restarts}"}
            command = [filled.get(part, part) for part in args.command]
            agent = _Agent(command, nproc=args.nproc, grace_s=args.grace_s, door=None if args.detached else door)
            status = agent.run(listened)
            # torchrun fills its folder when it starts the ranks, whose life can be shorter than a look
            had_ranks = agent.had_ranks or bool(os.listdir(folder))
        if agent.is_asked or not (status > 128 or status in _RESTARTED):
            break
        if restarts and not had_ranks and time.monotonic() - began_s < MEET_S:
            # the first machine has not come so far, and its old store went away
            sys.stderr.write("trn: waiting for the machine with node rank 0 to start again\n")
            time.sleep(1)
            continue
        if restarts == args.max_restarts:
            break
        restarts, began_s = restarts + 1, time.monotonic()
        sys.stderr.write(f"trn: ended with {status}; restart {restarts} of {args.max_restarts}\n")
        sys.stderr.flush()
    if os.getppid() != door:
        # nobody reads any more how it ended
        with contextlib.suppress(KeyError, OSError):
            os.unlink(os.environ[error_file.VARIABLE])
    return status


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """A folder that is locked while it is in use; those of agents that were killed are removed first.

    The lock, and not a pid in the name: containers can share the folder for temporary files, and not their pids.
    """
    for name in glob.glob(os.path.join(glob.escape(tempfile.gettempdir()), f"{_PREFIX}*")):
        # a new one is not locked yet; what cannot be opened is somebody else's
        with contextlib.suppress(OSError), _opened(name) as fd:
            if time.time() - os.fstat(fd).st_mtime > _NEW_S:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(name, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as folder, _opened(folder) as fd:
        with contextlib.suppress(OSError):  # where nothing can be locked, no other agent removes it either
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder


@contextlib.contextmanager
def _opened(folder: str) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trn.launch.agent", description="Run torchrun, and end it.")
    parser.add_argument("--door-pid", type=int, help="end when this is no longer the parent; else: when it changes")
    parser.add_argument("--detached", action="store_true", help="go on without the door")
    parser.add_argument("--nproc", type=int, required=True, help="how many ranks torchrun starts here")
    parser.add_argument("--grace-s", type=float, default=30.0, help="how long ranks without torchrun may take to end")
    parser.add_argument("--attempt", type=int, default=0, help="how often the run was restarted before")
    parser.add_argument("--max-restarts", type=int, default=0)
    parser.add_argument("command", nargs="+", help="torchrun's command line, after --")
    return parser.parse_args(arguments)


class _Agent:
    """One torchrun and all that comes of it."""

    def __init__(self, command: Sequence[str], *, nproc: int, grace_s: float, door: int | None) -> None:
        self.is_asked = False
        """Whether somebody asked it to stop."""
        self._command, self._nproc, self._grace_s, self._door = command, nproc, grace_s, door
        self._torchrun = 0
        self._status: int | None = None
        """torchrun's, once it has ended."""
        self._ranks: set[int] = set()
        self._asked: list[int] = []
        self._since: dict[tuple[str, int], float] = {}

    @property
    def had_ranks(self) -> bool:
        return bool(self._ranks)

    def run(self, listened: set[signal.Signals]) -> int:
        """Until no child is left; `listened` are blocked. Returns torchrun's exit status."""
        self._torchrun = _start(self._command)
        while self._reap():
            heard = signal.sigtimedwait(listened, _LOOK_EVERY_S)
            if heard is not None and heard.si_signo != signal.SIGCHLD:
                self._ask(heard.si_signo)
            if not self.is_asked and self._door is not None and os.getppid() != self._door:
                self._ask(signal.SIGTERM)
            self._look()
        assert self._status is not None, "torchrun was a child, and none is left"
        return self._status

    def _reap(self) -> bool:
        """Take the exit statuses that are there; returns whether any child is left."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid == self._torchrun:
                    code = os.waitstatus_to_exitcode(status)
                    self._status = code if code >= 0 else 128 - code
        return False

    def _ask(self, number: int) -> None:
        """Pass on a signal: to the ranks, or to torchrun where it has started none yet."""
        self.is_asked = True
        self._asked.append(number)
        processes = _processes()
        self._find_ranks(processes)
        if ranks := self._alive(processes):
            _send(number, (one.pid for one in ranks))
        elif self._status is None:
            _send(signal.SIGTERM, [self._torchrun])

    def _look(self) -> None:
        """See to it that what has to end does."""
        if self._status is None and not self.is_asked and len(self._ranks) == self._nproc and self._all_run():
            return
        processes = _processes()
        new = self._find_ranks(processes)
        for number in self._asked:
            _send(number, new)
        self._kill_stopped(self._alive(processes))
        if self._status is not None:
            self._end(one.pid for one in processes if one.parent == os.getpid() and one.has_not_ended)
        elif self.is_asked and not self._ranks and self._lasts("unstarted", self._torchrun) > _LEFT_S:
            _send(signal.SIGKILL, [self._torchrun])

    def _all_run(self) -> bool:
        """Whether each rank is there and has not ended: a look at them alone, not at the whole machine."""
        return all((one := _process(pid)) is not None and one.has_not_ended for pid in self._ranks)

    def _find_ranks(self, processes: Sequence[_Process]) -> set[int]:
        """Take torchrun's children for ranks; returns those that are new."""
        found = set() if self._status is not None else {one.pid for one in processes if one.parent == self._torchrun}
        new = found - self._ranks
        self._ranks |= found
        return new

    def _alive(self, processes: Iterable[_Process]) -> list[_Process]:
        """The ranks that have not ended; a stranger can have got the pid of one that has."""
        parents = (self._torchrun, os.getpid())
        return [one for one in processes if one.pid in self._ranks and one.parent in parents and one.has_not_ended]

    def _kill_stopped(self, alive: Sequence[_Process]) -> None:
        """Kill the ranks that are stopped while the others end or have been asked to."""
        is_ending = self.is_asked or self._status is not None or len(alive) < self._nproc
        for one in alive:
            if not (is_ending and one.state == "T"):
                self._since.pop(("stopped", one.pid), None)
            elif self._lasts("stopped", one.pid) > _STOPPED_S:
                _send(signal.SIGKILL, [one.pid])

    def _end(self, left: Iterable[int]) -> None:
        """What torchrun has left behind is asked once, and killed when its time is over."""
        for pid in left:
            is_rank = pid in self._ranks
            if self._lasts("left", pid) == 0 and not (is_rank and self.is_asked):
                _send(signal.SIGTERM, [pid])
            elif self._lasts("left", pid) > (self._grace_s if is_rank else _LEFT_S):
                _send(signal.SIGKILL, [pid])

    def _lasts(self, what: str, pid: int) -> float:
        """For how many seconds this has been so; 0 the first time."""
        now_s = time.monotonic()
        return now_s - self._since.setdefault((what, pid), now_s)


def _start(command: Sequence[str]) -> int:
    """Start a child that gets a SIGTERM when this process is killed; returns its pid."""
    agent = os.getpid()
    child = os.fork()
    if child == 0:
        _become(command, agent)
    return child


def _become(command: Sequence[str], agent: int) -> NoReturn:
    try:
        _prctl(_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != agent:  # killed in between: nobody would tell us
            os._exit(128 + signal.SIGTERM)
        os.setsid()  # what a terminal sends comes to the agent alone
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execv(command[0], list(command))
    except OSError as error:
        os.write(2, f"trn: cannot start {command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _prctl(option: int, value: int) -> None:
    """Raises OSError."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _send(number: int, pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _processes() -> list[_Process]:
    return [one for name in os.listdir("/proc") if name.isdecimal() and (one := _process(int(name)))]


def _process(pid: int) -> _Process | None:
    """None where it has gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            # the name in brackets may hold anything, brackets too
            state, parent = stream.read().rpartition(b")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return _Process(pid, int(parent), state.decode())


if __name__ == "__main__":
    sys.exit(main())
