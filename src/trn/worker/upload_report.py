"""How the uploads of a run stand, for whoever ends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Report"]

Json = dict[str, Any]

_TOLD = 3


@dataclass(frozen=True)
class Report:
    """Of all jobs of the run, but for `failed`, which is this process's."""

    is_complete: bool
    """Whether everything that still exists was accepted; the end too, where one was to be told."""
    failed: tuple[str, ...] = ()
    """What was given up, a line each; the next start tries it again."""
    pending: int = 0
    """What could not be sent in time: checkpoints, samples, and the rest of the metrics as one."""
    accepted: int = 0
    """Files that the other side has."""
    skipped: int = 0
    """Checkpoints and samples that were gone before they could be sent."""
    final_checkpoint: Json | None = None
    """`{name, sha256, size_bytes, ref}` of the checkpoint that the outcome names; None where it was not accepted."""
    is_told: bool = True
    """Whether the end was accepted, or there was none to tell."""
    is_unauthorized: bool = False
    """The token was not taken; nothing was sent after that."""
    is_fenced: bool = False
    """Somebody else has the run; likewise."""
    problem: str | None = None
    """Why something is pending, or the end was not told."""

    @property
    def reason(self) -> str:
        """What is missing, in one line; "" where nothing is."""
        if self.is_complete:
            return ""
        parts = list(self.failed[:_TOLD])
        if more := len(self.failed) - len(parts):
            parts.append(f"{more} more were given up")
        missing = [f"{self.pending} not sent in time"] if self.pending else []
        missing += [] if self.is_told else ["the end was not told"]
        if missing or not parts:
            why = f" ({self.problem})" if missing and self.problem else self.problem or ""
            parts.append(" and ".join(missing) + why)
        return "; ".join(parts)
