"""How a broken promise is told: in one line, with the place, what was expected, what was found and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from trn.errors import TrnError
from trn.testing.compare import Difference

__all__ = ["BrokenPromise", "breaks", "kept_promise"]


class BrokenPromise(AssertionError):
    """A trainer is not what a run relies on; `promise` is one of the words that `CheckReport.proven` lists."""

    def __init__(self, promise: str, message: str, *, where: str = "", hint: str = "") -> None:
        self.promise, self.where, self.hint = promise, where, hint
        place = f" at {where}" if where else ""
        super().__init__(f"check_trainer [{promise}]{place}: {message}{f' {hint}' if hint else ''}")


def breaks(promise: str, found: Difference | None, *, where: str, meaning: str, hint: str) -> None:
    """Raise BrokenPromise for a difference; `meaning` says what was to be the same as what."""
    if found is not None:
        place = ", ".join(part for part in (where, found.path.lstrip(".")) if part)
        raise BrokenPromise(
            promise, f"expected {found.expected}, found {found.found}: {meaning}.", where=place, hint=hint
        )


@contextlib.contextmanager
def kept_promise(promise: str) -> Iterator[None]:
    """Inside, whatever a trainer raises breaks this promise."""
    try:
        yield
    except TrnError as error:
        message = " ".join(str(error).split())
        raise BrokenPromise(promise, message) from error
    except AssertionError:
        raise
    except Exception as error:
        raise BrokenPromise(promise, f"{type(error).__name__}: {' '.join(str(error).split())}") from error
