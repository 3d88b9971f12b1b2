"""What a worker refuses before there is a run: one line with a code that a platform can tell apart.

startup.missing_job_spec_path      2   there is no job file, or no name of one
startup.missing_trainer_import     2   neither the job nor the environment names a trainer
startup.invalid_artifact_paths    78   folders that are files, of another run, or inside of each other
startup.invalid_timeout            2   a limit of time that is no number from 0
startup.missing_capability_token  77   an orchestrator, and no token to show it
"""

from __future__ import annotations

from trn.errors import STATUS, TrnError

__all__ = ["STARTUP_CODES", "StartupRefused"]

STARTUP_CODES = {
    "missing_job_spec_path": "usage",
    "missing_trainer_import": "usage",
    "invalid_artifact_paths": "plan_refused",
    "invalid_timeout": "usage",
    "missing_capability_token": "unauthorized",
}
"""The word of the outcome table that each code stands for."""


class StartupRefused(TrnError):
    """The worker does not begin; `startup_code` says why in a word, `outcome` is the word of the outcome table."""

    code = "usage"
    kind = "worker"

    def __init__(self, name: str, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, where=where, hint=hint)
        self.startup_code = f"startup.{name}"
        self.outcome = STARTUP_CODES[name]

    @property
    def exit_status(self) -> int:
        return STATUS[self.outcome].exit

    def __str__(self) -> str:
        place = f" at {self.where}" if self.where else ""
        hint = f" {self.hint}" if self.hint else ""
        return f"worker refused [{self.startup_code}]{place}: {self.message}{hint}"
