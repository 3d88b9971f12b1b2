"""What is asked of a driver: which accelerators there are, and what each is doing now.

One file per way to ask. Everything that a driver may refuse is null with a reason; a driver that cannot be asked at
all is a NoDriver. No library of a driver is imported before it is needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Driver", "NoDriver", "Physical", "Use", "pci_address"]


class NoDriver(Exception):
    """There is nobody to ask; the text says why."""


@dataclass(frozen=True)
class Physical:
    """An accelerator, or an instance of one that was partitioned (MIG)."""

    name: str | None
    uuid: str | None
    address: str | None
    """On the PCI bus, as `pci_address` writes it: the same in each container, and by whomever it is told."""
    handle: Any = None
    """What the driver calls it."""
    instances: tuple[Physical, ...] = ()
    """Where it is partitioned: in its place there are these."""
    is_instance: bool = False


@dataclass(frozen=True)
class Use:
    """What an accelerator is doing: null where it cannot be read, and then `reasons` says why, by field."""

    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    utilisation_pct: float | None = None
    power_w: float | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    FIELDS = ("memory_total_bytes", "memory_free_bytes", "utilisation_pct", "power_w")

    @classmethod
    def unknown(cls, reason: str) -> Use:
        return cls(reasons=dict.fromkeys(cls.FIELDS, reason))


class Driver(ABC):
    """The devices of one maker, in the order in which they are numbered."""

    @abstractmethod
    def devices(self) -> Sequence[Physical]:
        """All that are there, whatever the environment hides. Raises NoDriver."""

    @abstractmethod
    def use(self, device: Physical) -> Use:
        """What it is doing now; never an error."""

    @abstractmethod
    def close(self) -> None:
        """Let the driver's library go."""


def pci_address(text: str) -> str:
    """`0000:01:00.0`: drivers write the domain with four or eight digits, and letters in either case."""
    domain, _, rest = text.strip().lower().partition(":")
    try:
        return f"{int(domain, 16):04x}:{rest}"
    except ValueError:
        return text.strip().lower()
