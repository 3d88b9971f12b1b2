"""A stranger's trainer in a process of its own: few variables, no secrets, limits on memory and time, its end named.

    variables    by allow-list; never the capability token                      allow_listed
    descriptors  those of the lease, and no others
    files        made for this user alone (umask 077); no core dumps
    memory       private memory of each process (RLIMIT_DATA): what is refused is a MemoryError there
    time         SIGTERM when it is over, SIGKILL after the grace; after a signal that was passed on, SIGKILL too
    its end      with it ends whatever it started in its process group

What this is not: a sandbox. The process has this user's rights, reads the files that this user reads, and has the
network. `keep_to_itself` at least closes the starter's own memory and environment to it. Only Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trn.devices import Lease
from trn.errors import exit_code
from trn.launch.launcher import Handle, Launcher
from trn.launch.local import start_process
from trn.launch.oom_kills import OomKills

__all__ = ["PASS", "ConfinedLauncher", "Confinement", "allow_listed", "keep_to_itself", "without_token"]

PASS = "TRAINER_PASS_ENV"
"""Names of further variables that the trainer gets, with commas between them."""
_ALLOWED = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LC_\w+|TZ|TMPDIR|PYTHON\w*|VIRTUAL_ENV|LD_LIBRARY_PATH"
    r"|(?:OMP|MKL|OPENBLAS|CUDA|CUBLAS|NVIDIA|HIP|ROCR|NCCL|GLOO|TORCH|TRN|XDG)_\w+|HF_HOME|HF_HUB_OFFLINE"
)
_TOKEN = "TRAINER_CAPABILITY_TOKEN"
_PRIVATE = 0o077
_KILLED_FIRST = 500
"""Of 1000: where memory runs out the kernel takes the trainer, and its starter lives to tell."""
_LOOK_EVERY_S = 0.02
_LAST_WORDS_BYTES = 4096
_REFUSED_MEMORY = re.compile(
    rb"MemoryError\b|std::bad_alloc|cannot map zero-fill pages|failed to map segment|Cannot allocate memory"
    rb"|Memory allocation still failed|can't start new thread"
)
"""How Python, C++, the dynamic loader, the C library and OpenBLAS tell it; the stack of a thread is memory too."""
_UNLIMITED = 1 << 62
_SET_DUMPABLE = 4


@dataclass(frozen=True)
class Confinement:
    """None: no limit."""

    memory_bytes: int | None = None
    """Private memory of each process; what is mapped from files, and an accelerator's own, does not count."""
    time_s: float | None = None
    """From its start to the SIGTERM. A run ends by itself at its own limit, which has to lie before this one."""
    grace_s: float = 30.0
    """From the SIGTERM to the SIGKILL."""
    stop_s: float | None = None
    """From the first signal that was passed on to the SIGKILL: for a step, a checkpoint, and the end."""


def allow_listed(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a stranger may see: those of the list, those that PASS names, and never the token."""
    named = {name.strip() for name in environ.get(PASS, "").split(",")}
    passed = {name: text for name, text in environ.items() if _ALLOWED.fullmatch(name) or name in named}
    return without_token(passed)


def without_token(environ: Mapping[str, str]) -> dict[str, str]:
    """All variables but the capability token, for a child of our own."""
    return {name: text for name, text in environ.items() if not name.startswith(_TOKEN)}


def keep_to_itself() -> None:
    """Let no other process of this user read this one's memory, variables or descriptors, as /proc would let it.

    Not promised against a process with CAP_SYS_PTRACE. The token is no longer where /proc shows variables, for anybody;
    os.environ still has it.
    """
    with contextlib.suppress(OSError, AttributeError):
        system = ctypes.CDLL(None, use_errno=True)
        system.prctl(_SET_DUMPABLE, 0, 0, 0, 0)
        # /proc shows the block that the system gave the process, whatever becomes of os.environ
        system.getenv.restype = ctypes.c_void_p
        if (place := system.getenv(_TOKEN.encode())) is not None:
            ctypes.memset(place, 0, len(ctypes.string_at(place)))


class ConfinedLauncher(Launcher):
    """Starts a child within `confinement`, with the `allow_listed` ones of `environ` and nothing of this process's own.

    The house's rule for what looks like a secret is the caller's to apply before.
    """

    def __init__(self, confinement: Confinement, environ: Mapping[str, str], *, lease: Lease | None = None) -> None:
        self._confinement = confinement
        self._environ = allow_listed(environ)
        self._lease = lease or Lease()

    def start(self, argv: Sequence[str], *, log: Path) -> Handle:
        process = start_process(argv, log=log, environ=self._environ, lease=self._lease, umask=_PRIVATE)
        # From here, and not between fork and exec, where Python may do nothing: an interpreter is milliseconds from its
        # first line, and what it had allocated by then counts all the same. What it starts inherits these.
        _limit(process.pid, self._confinement.memory_bytes)
        return _ConfinedHandle(process, self._confinement, log)


def _limit(pid: int, memory_bytes: int | None) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        if memory_bytes is not None:
            _, most = resource.prlimit(pid, resource.RLIMIT_DATA)  # which only root could raise
            least = min(memory_bytes, _UNLIMITED if most == resource.RLIM_INFINITY else most)
            resource.prlimit(pid, resource.RLIMIT_DATA, (least, least))
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(_KILLED_FIRST))


class _ConfinedHandle(Handle):
    """Reaps its child itself: as long as it has not, the child's pid, and its group's, are nobody else's."""

    def __init__(self, process: subprocess.Popen[bytes], confinement: Confinement, log: Path) -> None:
        self.pid = process.pid
        self._process, self._confinement, self._log = process, confinement, log
        self._kills = OomKills(self.pid)
        self._reaping = threading.Lock()
        self._has_ended = threading.Event()
        self._is_out_of_time = False
        self._asked: tuple[int, float] | None = None
        """The first signal that was passed on, and when."""
        self._has_overstayed = False
        if confinement.time_s is not None:
            threading.Thread(target=self._keep_time, args=(confinement.time_s,), name="trn-time", daemon=True).start()

    def poll(self) -> int | None:
        with self._reaping:
            if self._process.returncode is None and self._is_over():
                self._kill()
                self._process.wait()
                self._has_ended.set()
            elif self._process.returncode is None and self._is_overdue():
                self._has_overstayed = True
                self._kill()
            return self._process.returncode

    def wait(self, timeout_s: float) -> int | None:
        deadline_s = time.monotonic() + timeout_s
        while (status := self.poll()) is None and (left_s := deadline_s - time.monotonic()) > 0:
            time.sleep(min(_LOOK_EVERY_S, left_s))
        return status

    def signal(self, number: int) -> None:
        self._asked = self._asked or (number, time.monotonic())
        self._send(number)

    def _send(self, number: int) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def failure(self) -> tuple[int, str] | None:
        """Why it was ended, where that is known better than by its status: by its limits, or by the kernel."""
        status = self.poll()
        if not status:
            return None
        if self._is_out_of_time:
            limit = f"{self._confinement.time_s:g} s and {self._confinement.grace_s:g} s of grace"
            return exit_code("time_limit"), f"it did not end by itself, and was ended from outside: {limit} were over"
        if self._has_overstayed and self._asked is not None:
            word = "cancelled" if self._asked[0] == signal.SIGINT else "preempted"
            name, limit = signal.Signals(self._asked[0]).name, f"{self._confinement.stop_s:g} s"
            return exit_code(word), f"{name} was received, and it was killed {limit} later, since it had not ended"
        if status == -signal.SIGKILL and self._kills.have_risen():
            return exit_code(
                "out_of_memory"
            ), "the kernel killed it, since the machine or its container ran out of memory"
        if self._confinement.memory_bytes and self._has_been_refused_memory(status):
            how = ", and aborted" if status == -signal.SIGABRT else ""
            limit = f"{self._confinement.memory_bytes:,} bytes"
            return exit_code("out_of_memory"), f"it was refused memory{how}: its limit is {limit}"
        return None

    def _has_been_refused_memory(self, status: int) -> bool:
        """By its last words: C++ aborts; an interpreter that could not even load its libraries exits with 1."""
        words = self._last_words()
        if status == -signal.SIGABRT:
            return b"std::bad_alloc" in words
        return status == 1 and _REFUSED_MEMORY.search(words.rstrip().rpartition(b"\n")[2]) is not None

    def _is_over(self) -> bool:
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # nobody waits for children here: the system has taken its status
            return True

    def _is_overdue(self) -> bool:
        stop_s = self._confinement.stop_s
        return self._asked is not None and stop_s is not None and time.monotonic() > self._asked[1] + stop_s

    def _kill(self) -> None:
        """All of its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _keep_time(self, time_s: float) -> None:
        if self._ends_within(time_s):
            return
        self._is_out_of_time = True
        self._send(signal.SIGTERM)
        if not self._ends_within(self._confinement.grace_s):
            with self._reaping:
                if self._process.returncode is None:
                    self._kill()

    def _ends_within(self, seconds: float) -> bool:
        return self._has_ended.wait(min(seconds, threading.TIMEOUT_MAX)) or self.poll() is not None

    def _last_words(self) -> bytes:
        try:
            with open(self._log, "rb") as stream:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - _LAST_WORDS_BYTES))
                return stream.read()
        except OSError:
            return b""
