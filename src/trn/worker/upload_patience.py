"""How often a place is asked again that cannot take what it is sent, and what is told of it: the first failure."""

from __future__ import annotations

import time
from collections.abc import Callable

from trn.errors import StorageError
from trn.transfer.answers import Unreachable
from trn.transfer.backoff import Backoff

__all__ = ["Failure", "Patience", "reason_of"]

Failure = Unreachable | StorageError | OSError
"""What may work at another time."""

_FIRST_S = 0.2
_LONGEST_AT_THE_END_S = 5.0


class Patience:
    """When a place is to be asked again, and what it last did wrong; the first of it is told."""

    def __init__(self, what: str, say: Callable[[str], None]) -> None:
        self._what, self._say = what, say
        self._backoff = Backoff(_FIRST_S)
        self._due_s = 0.0
        self._is_wish = False
        self.problem: str | None = None
        """Null once it works again."""

    def is_due(self) -> bool:
        return time.monotonic() >= self._due_s

    def due_in_s(self) -> float:
        return max(0.0, self._due_s - time.monotonic())

    def wait(self, seconds: float) -> None:
        self._due_s = time.monotonic() + seconds

    def answered(self) -> None:
        """It is there, and has taken nothing yet: the next pause is a short one."""
        self._backoff.reset()

    def worked(self) -> None:
        self._backoff.reset()
        self._due_s, self._is_wish = 0.0, False
        self.problem = None

    def failed(self, error: Failure, *, is_ending: bool) -> None:
        wish_s = error.retry_after_s if isinstance(error, Unreachable) else None
        self._is_wish = wish_s is not None
        delay_s = self._backoff.failed(wish_s)
        self.wait(min(delay_s, _LONGEST_AT_THE_END_S) if is_ending and wish_s is None else delay_s)
        if self.problem is None:
            self._say(f"trn: upload of {self._what}: {reason_of(error)}; it is tried again")
        self.problem = reason_of(error)

    def hurry(self) -> None:
        """The end has come: a wait that the place did not ask for is over."""
        if not self._is_wish:
            self._due_s = 0.0


def reason_of(error: Failure) -> str:
    """It in words that say nothing of this machine's folders: they are told to others."""
    if isinstance(error, Unreachable):
        return error.reason
    return error.message if isinstance(error, StorageError) else f"{error.strerror or error}"
