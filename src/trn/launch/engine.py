"""The interface of engines: programs that queue a job and start it elsewhere, long after this process has gone.

    Request ──prepare──> Prepared (a script or a manifest, to be read) ──submit──> engine_id
    engine_id ──poll──> Seen      ──signal──> its process      ──cancel──> gone

What an engine starts is `trn run ... --auto-resume` or `trn resume`, whose door keeps the job as it does anywhere. It
knows by three variables what it is: VARIABLES. An engine id is all that is kept of a job, so it names the place, too,
where there can be several. Nothing here holds a secret: variables of the caller stay where the engine is asked.

What an exit code means to whoever may start the job again is said once, here: AGAIN and AGAIN_UNCOUNTED, FINAL.
"""

from __future__ import annotations

import re
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trn.errors import STATUS, EngineError, UsageError

__all__ = [
    "AGAIN",
    "AGAIN_UNCOUNTED",
    "COUNTED",
    "FINAL",
    "VARIABLES",
    "Engine",
    "Prepared",
    "Request",
    "Seen",
    "ask",
    "codes_of",
    "read_pairs",
]

VARIABLES = ("TRN_LAUNCHER", "TRN_ENGINE_ID", "TRN_JOB_ID")
"""By which the door that an engine starts knows the engine, its name there, and the job that was submitted."""


def codes_of(words: Iterable[str]) -> tuple[int, ...]:
    """The exit codes of these outcomes, each once, in order."""
    return tuple(sorted({STATUS[word].exit for word in words}))


AGAIN = codes_of(("crashed", "preempted", "rank_lost", "hang", "time_limit"))
"""The same command goes on where the run stood, and nobody has to mend anything before."""
AGAIN_UNCOUNTED = codes_of(("preempted", "time_limit"))
"""Of these: the job was made to give way, and is not to blame."""
COUNTED = codes_of(("crashed", "rank_lost", "hang", "io_error", "out_of_memory", "no_device"))
"""Worth another try on another machine, but not for ever."""
FINAL = tuple(sorted({one.exit for one in STATUS.values()} - {0, *AGAIN_UNCOUNTED, *COUNTED}))
"""The same command ends the same way, or is refused, or somebody has ended it on purpose."""

_ASKED_S = 30.0
_LOGGED = re.compile(r"[EFIW]\d{4} \d\d:\d\d:")


@dataclass(frozen=True)
class Request:
    """What an engine is to start."""

    job_id: str
    run_id: str
    arguments: Sequence[str]
    """Of `trn`, from the verb on; without what follows from the fields below."""
    cwd: str
    grace_s: float
    """How long the training may take to end."""
    max_restarts: int = 0
    nodes: int = 1
    nproc: int | None = None
    """Processes on each machine, where it was said."""
    cpus: int | None = None
    """Cores on each machine."""
    devices: int | None = None
    """Accelerators on each machine."""
    output: str = ""
    """A file for what the door says, where the engine can write one."""


@dataclass(frozen=True)
class Prepared:
    """A script or manifest; `name` is the job's in the engine."""

    name: str
    text: str


@dataclass(frozen=True)
class Seen:
    """What the engine says of a job. `gone`: it does not know it, or not any more."""

    state: Literal["queued", "running", "ended", "cancelled", "gone"]
    exit_code: int | None = None
    reason: str = ""

    @property
    def is_over(self) -> bool:
        return self.state not in ("queued", "running")


class Engine(ABC):
    """A way to have a job started elsewhere. All methods but `prepare` raise EngineError where it cannot be asked."""

    @abstractmethod
    def prepare(self, request: Request) -> Prepared:
        """What `submit` would hand over. Raises UsageError for what this engine cannot do."""

    @abstractmethod
    def submit(self, prepared: Prepared) -> str:
        """Hand it over; returns the engine id."""

    @abstractmethod
    def poll(self, engine_id: str) -> Seen:
        """What the engine says of the job now."""

    @abstractmethod
    def cancel(self, engine_id: str) -> None:
        """End the job in the engine's own way: a waiting one is not started, a running one gets a SIGTERM and little
        time. Nothing happens where it has ended."""

    @abstractmethod
    def signal(self, engine_id: str, number: int) -> None:
        """Send a signal to the job's door. Raises EngineError for one that the engine cannot pass on."""


def ask(
    command: Sequence[str], *, text: str | None = None, environ: Mapping[str, str] | None = None, within: str = ""
) -> str:
    """What a program of the engine answers on its standard output. `within` says whose it is.

    Raises EngineError where it is missing, silent, or fails: with the last lines that it said, as one.
    """
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASKED_S,
            check=False,
            env=None if environ is None else dict(environ),
        )
    except FileNotFoundError as error:
        raise EngineError(
            f"expected the program {command[0]} on PATH, found none.",
            where=within or command[0],
            hint="Ask from a machine that has it.",
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in an argument
        reason = error.strerror if isinstance(error, OSError) else error
        raise EngineError(f"cannot start {command[0]}: {reason}.", where=within or command[0]) from error
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"{command[0]} did not answer within {_ASKED_S:g} s.",
            where=within or command[0],
            hint="It may have done all the same what it was asked.",
        ) from error
    if done.returncode != 0:
        raise EngineError(f"{command[0]} refused: {_refusal(done)}", where=within or command[0])
    return done.stdout


def _refusal(done: subprocess.CompletedProcess[str]) -> str:
    """Two lines, since sbatch and kubectl say in the last one but one what was wrong; not kubectl's own log."""
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    lines = [line.strip() for line in said if line.strip() and not _LOGGED.match(line)]
    return "; ".join(lines[-2:])[-500:] or f"exit {done.returncode}"


def read_pairs(given: Sequence[str], where: str, known: Iterable[str] | None = None) -> dict[str, str]:
    """`KEY=VALUE` texts as a table, the last of a key holds. Raises UsageError for what is none, or not `known`."""
    pairs = {}
    allowed = None if known is None else set(known)
    for one in given:
        key, equals, value = one.partition("=")
        if not key or not equals or not value.isprintable():
            raise UsageError(f"expected KEY=VALUE in one line, found {one!r}.", where=where)
        if allowed is not None and key not in allowed:
            raise UsageError(f"{key!r} is not known.", where=where, hint=f"Known: {', '.join(sorted(allowed))}.")
        pairs[key] = value
    return pairs
