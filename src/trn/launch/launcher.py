"""The interface of all launchers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Handle", "Launcher"]


class Handle(ABC):
    """A started child. `pid` is its process id."""

    pid: int

    @abstractmethod
    def poll(self) -> int | None:
        """The exit status, negative for the signal that killed it, or None while it runs."""

    @abstractmethod
    def wait(self, timeout_s: float) -> int | None:
        """As `poll`, after waiting at most so long for the end."""

    @abstractmethod
    def signal(self, number: int) -> None:
        """Send a signal to the child alone, or to those it stands for; nothing happens once it has ended.

        Safe in a signal handler.
        """

    @abstractmethod
    def failure(self) -> tuple[int, str] | None:
        """Once the child has ended, what is known better than by its exit status: how it ended, and why.

        Of one that stands for several, how the one that failed first did; of one under limits, which of them ended it.
        The exit status is negative for a signal. None where none failed, or its own status says all there is.
        """


class Launcher(ABC):
    """A way to start a child program."""

    @abstractmethod
    def start(self, argv: Sequence[str], *, log: Path) -> Handle:
        """Start `argv`, with its standard output and standard error appended to `log` where they are captured.

        Raises StorageError where the log cannot be written, OSError where the program cannot be started.
        """
