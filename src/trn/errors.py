"""The one tree of errors: what went wrong, its code, its exit status and its HTTP status.

    TrnError
    ├── UsageError            the command line or the spec is wrong
    │   └── SpecError         ... all problems of a spec at once
    ├── PlanRefused           the spec is well formed, but cannot be run like this
    ├── ResumeRefused         the run on disk and what is asked of it do not fit
    │   └── NoGoodCheckpoint  checkpoints were committed, and none is whole any more
    ├── DataError             a data file is missing, changed or not what the spec says
    │   └── DataExhausted     the data ended before the budget
    ├── TrainerError          the trainer's own code raised
    ├── NumericalInstability  a loss, norm or learning rate is not finite
    ├── StorageError          a file cannot be written or read: disk full, I/O error
    ├── VerificationFailed    a run's folder is not what its records say
    ├── DeviceError           a device is unknown or busy
    │   └── EngineError       ... Slurm, Ray or Kubernetes cannot be asked, or refuses
    ├── Unauthorized          a token is missing, wrong, or not enough for what was asked
    ├── RankLost              a process of the run is gone
    ├── Hang                  no step ended for too long
    ├── PeerFailed            another process of the run failed first
    └── Stopped               asked to stop: by a signal, a user or a vanished door

Everything a user can meet ends in one of these. `STATUS` below is the only place that maps a code (which is also
the word in an outcome) to an exit status and an HTTP status. A message says where, what was expected, what was
found and what to do next, in one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "STATUS",
    "DataError",
    "DataExhausted",
    "DeviceError",
    "EngineError",
    "Hang",
    "NoGoodCheckpoint",
    "NumericalInstability",
    "PeerFailed",
    "PlanRefused",
    "Problem",
    "RankLost",
    "ResumeRefused",
    "SpecError",
    "Status",
    "Stopped",
    "StorageError",
    "TrainerError",
    "TrnError",
    "Unauthorized",
    "UsageError",
    "VerificationFailed",
    "exit_code",
]


@dataclass(frozen=True)
class Status:
    """How a code is reported: the process's exit status and the HTTP status of the same answer."""

    exit: int
    http: int


STATUS: dict[str, Status] = {
    "completed": Status(0, 200),
    "target_reached": Status(0, 200),
    "early_stopped": Status(0, 200),
    "usage": Status(2, 400),
    "spec_refused": Status(2, 422),
    "data_error": Status(65, 422),
    "data_exhausted": Status(65, 422),
    "trainer_raised": Status(70, 500),
    "crashed": Status(71, 500),
    "io_error": Status(74, 507),
    "preempted": Status(75, 503),
    "unauthorized": Status(77, 401),
    "plan_refused": Status(78, 409),
    "resume_refused": Status(78, 409),
    "numerical_instability": Status(80, 500),
    "divergence": Status(81, 500),
    "divergence_at_first_validation": Status(82, 500),
    "telemetry_out_of_range": Status(83, 500),
    "target_missed": Status(84, 500),
    "parity_failed": Status(85, 500),
    "verification_failed": Status(86, 422),
    "rank_lost": Status(87, 500),
    "hang": Status(88, 500),
    "out_of_memory": Status(89, 507),
    "no_device": Status(90, 503),
    "no_good_checkpoint": Status(91, 409),
    "cancelled": Status(92, 409),
    "time_limit": Status(93, 503),
    "upload_failed": Status(94, 502),
}


def exit_code(code: str) -> int:
    """The exit status that every door uses for `code`; KeyError for a word that is not in `STATUS`."""
    return STATUS[code].exit


class TrnError(Exception):
    """Something a user should be told in one line; `code` is stable and names a row of `STATUS`.

    `where` is a place the reader can open: a file, a dotted path of the spec, a step. `hint` says what to do next.
    """

    code: ClassVar[str]
    kind: ClassVar[str]

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    @property
    def exit_status(self) -> int:
        return STATUS[self.code].exit

    @property
    def http_status(self) -> int:
        return STATUS[self.code].http

    def __str__(self) -> str:
        place = f" at {self.where}" if self.where else ""
        hint = f" {self.hint}" if self.hint else ""
        return f"{self.kind} error [{self.code}]{place}: {self.message}{hint}"


class UsageError(TrnError):
    """The command line asks for something that does not exist or does not fit together."""

    code = "usage"
    kind = "usage"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a spec: where it stands, and what is wrong and expected there."""

    path: str
    """Dotted path of the field, "" for the document as a whole."""
    message: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file and self.line else (self.file or "")
        return ": ".join(part for part in (place, self.path, self.message) if part)


class SpecError(UsageError):
    """A spec that is refused, with *all* of its problems; `str()` is one line a problem."""

    code = "spec_refused"
    kind = "spec"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __str__(self) -> str:
        return "\n".join(f"spec error [{self.code}] {problem}" for problem in self.problems)


class PlanRefused(TrnError):
    """The spec is well formed but cannot be run like this: an unfit trainer, a budget beyond the data, a taken id."""

    code = "plan_refused"
    kind = "plan"


class ResumeRefused(TrnError):
    """What is asked of an existing run does not fit what that run is."""

    code = "resume_refused"
    kind = "resume"


class NoGoodCheckpoint(ResumeRefused):
    """The run had committed checkpoints, and none of them is whole any more."""

    code = "no_good_checkpoint"


class DataError(TrnError):
    """A data file or column is missing, has changed, or holds what the spec does not say."""

    code = "data_error"
    kind = "data"


class DataExhausted(DataError):
    """The data ended before the budget did."""

    code = "data_exhausted"


class TrainerError(TrnError):
    """The trainer's own code raised; the cause is chained."""

    code = "trainer_raised"
    kind = "trainer"


class NumericalInstability(TrnError):
    """A value that must be finite is not. Raised before the update wherever the trainer allows it.

    `step` counts from 1 and is the step that was refused; `field` is the name of the value; `value` is its repr
    ("nan", "inf", "-inf"), so that no JSON ever needs a token for it.
    """

    code = "numerical_instability"
    kind = "training"

    def __init__(self, *, step: int, field: str, value: float) -> None:
        self.step = step
        self.field = field
        self.value = repr(value)
        super().__init__(
            f"{field} is {self.value}, expected a finite number; nothing of this step was kept.",
            where=f"step {step}",
            hint="Lower the learning rate, set clip_grad_norm, or look at the rows named in the event.",
        )


class StorageError(TrnError):
    """A durable operation failed; the file it was for is as it was before."""

    code = "io_error"
    kind = "storage"


class VerificationFailed(TrnError):
    """What lies in a run's folder is not what its records say."""

    code = "verification_failed"
    kind = "verify"


class Unauthorized(TrnError):
    """A token is missing, wrong or expired, or does not allow what was asked. The token itself is never said."""

    code = "unauthorized"
    kind = "authorisation"


class RankLost(TrnError):
    """A process of the run is gone, or gives no sign of life."""

    code = "rank_lost"
    kind = "ranks"


class Hang(TrnError):
    """No step ended for too long."""

    code = "hang"
    kind = "run"


class PeerFailed(TrnError):
    """Another rank of the run failed first, and said why; `outcome` is its word of the outcome table."""

    code = "rank_lost"
    kind = "ranks"

    def __init__(self, rank: int, outcome: str, reason: str) -> None:
        super().__init__(f"rank {rank}: {reason}")
        self.rank = rank
        self.outcome = outcome

    @property
    def exit_status(self) -> int:
        return STATUS[self.outcome].exit

    def __str__(self) -> str:
        return self.message


class DeviceError(TrnError):
    """A device is unknown or busy; there is never a quiet fall to the CPU."""

    code = "no_device"
    kind = "device"


class EngineError(DeviceError):
    """The engine that is to run a job, or runs it, cannot be asked, or refuses."""

    kind = "engine"


class Stopped(TrnError):
    """A run was asked to stop; `outcome` is `preempted`, `cancelled` or `time_limit`."""

    code = "preempted"
    kind = "run"

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome

    @property
    def exit_status(self) -> int:
        return STATUS[self.outcome].exit

    def __str__(self) -> str:
        return f"{self.kind} stopped [{self.outcome}]: {self.message}"
