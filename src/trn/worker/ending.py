"""How a worker ends: one category, which the terminal event, the terminal payload and the exit code all have."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from trn.errors import STATUS, Stopped, TrnError
from trn.jobs.ending import Ending
from trn.records import Outcome
from trn.worker.refusal import StartupRefused

__all__ = ["Terminal", "terminal_of", "terminal_of_outcome", "terminal_of_error"]

Json = dict[str, Any]

_MOST_LETTERS = 1000
_CODE = re.compile(r"\[([a-z_]+)\]")
"""The code in the line of an error."""


@dataclass(frozen=True)
class Terminal:
    """What is told of the end. `status` is a word of the outcome table."""

    status: str
    reason: str
    step: int = 0
    outcome: Json | None = None
    """The run's own, where it has one."""
    told: Json = field(default_factory=dict)
    """More for the event: the code of a refusal at the start."""

    @property
    def exit_code(self) -> int:
        return STATUS[self.status].exit

    @property
    def checkpoint(self) -> Json | None:
        """The final one, as the outcome names it."""
        found = (self.outcome or {}).get("checkpoint")
        return found if isinstance(found, dict) else None

    def but(self, status: str, reason: str) -> Terminal:
        """The same end, which has become another one."""
        return replace(self, status=status, reason=reason)

    def payload(self, run_id: str, job_id: str, final_checkpoint: Json | None) -> Json:
        """What is posted to whoever waits for the end."""
        return {
            "run_id": run_id,
            "job_id": job_id,
            "status": self.status,
            "exit_code": self.exit_code,
            "step": self.step,
            "reason": self.reason,
            "final_checkpoint": final_checkpoint,
            "outcome": self.outcome,
        }


def terminal_of(ending: Ending, said: str) -> Terminal:
    """The end of a job that was started. `said` is the last line it printed, for one that was refused."""
    outcome: Outcome | None = ending.outcome
    if outcome is not None:
        return terminal_of_outcome(outcome)
    reason = ending.reason or said
    word = ending.state if ending.state in STATUS else _word_of(ending.exit_code, reason)
    return Terminal(word, reason[:_MOST_LETTERS])


def terminal_of_outcome(outcome: Outcome) -> Terminal:
    """The end of a run, as its own outcome has it."""
    return Terminal(outcome.status, outcome.reason[:_MOST_LETTERS], outcome.step, outcome.to_json())


def terminal_of_error(error: TrnError | OSError) -> Terminal:
    """The end of a job that never came to a start."""
    if isinstance(error, OSError):
        where = f" at {error.filename}" if error.filename else ""
        return Terminal("io_error", f"storage error [io_error]{where}: {error.strerror or error}.")
    if isinstance(error, Stopped):
        return Terminal(error.outcome, error.message)
    if isinstance(error, StartupRefused):
        return Terminal(error.outcome, str(error), told={"code": error.startup_code})
    return Terminal(error.code, str(error)[:_MOST_LETTERS])


def _word_of(exit_code: int, said: str) -> str:
    """The word of the outcome table for an exit status: what was said, where several share it."""
    words = [word for word, status in STATUS.items() if status.exit == exit_code]
    named = _CODE.search(said)
    if named is not None and named.group(1) in words:
        return named.group(1)
    return words[0] if words else "crashed"
