"""What is asked for, and what is said where it cannot be had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trn.devices.inventory import Device, Inventory
from trn.errors import DeviceError

__all__ = ["Busy", "Holder", "NotThere", "Want", "busy", "not_there"]

_LOOK = "`trn devices` shows what is there, and who holds it."
_SHOWN = 4


class NotThere(DeviceError):
    """Something unknown, or more than there is: to wait would not help."""

    is_busy = False


class Busy(DeviceError):
    """All of it is there, and somebody holds it."""

    is_busy = True


@dataclass(frozen=True)
class Want:
    """Devices to be leased; nothing of this order is a default for anything."""

    accelerators: tuple[str, ...] = ()
    """By name, as the caller counts them: cuda:0, mps."""
    count: int = 0
    """So many of CUDA's, whichever have the most free memory."""
    cpus: int = 0
    """So many cores."""

    @property
    def is_empty(self) -> bool:
        return not (self.accelerators or self.count or self.cpus)

    @property
    def kinds(self) -> frozenset[str]:
        """Of what it wants something: cuda, mps, cpu."""
        named = {name.partition(":")[0] for name in self.accelerators}
        return frozenset(named | ({"cuda"} if self.count else set()) | ({"cpu"} if self.cpus else set()))

    def __str__(self) -> str:
        parts = [*self.accelerators]
        parts += [f"{self.count} of cuda"] if self.count else []
        parts += [f"{self.cpus} cores" if self.cpus != 1 else "1 core"] if self.cpus else []
        return " and ".join(parts) or "nothing"

    def to_json(self) -> dict[str, Any]:
        return {"devices": list(self.accelerators), "device_count": self.count, "cpus": self.cpus}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Want:
        return cls(tuple(value["devices"]), int(value["device_count"]), int(value["cpus"]))


@dataclass(frozen=True)
class Holder:
    """Who holds a device, as far as the holder's note says."""

    job_id: str | None = None
    run_id: str | None = None
    pid: int | None = None
    since: str | None = None

    @classmethod
    def of_note(cls, note: str) -> Holder:
        words = dict(word.split("=", 1) for word in note.split() if "=" in word)
        pid = words.get("pid", "")
        number = int(pid) if pid.isascii() and pid.isdecimal() and len(pid) < 10 else None
        return cls(words.get("job"), words.get("run"), number, words.get("since"))

    def __str__(self) -> str:
        job = f"job {self.job_id}" if self.job_id else "somebody"
        run = f" of run {self.run_id}" if self.run_id else ""
        rest = [f"pid {self.pid}"] if self.pid is not None else []
        rest += [f"since {self.since}"] if self.since else []
        return f"{job}{run}" + (f" ({', '.join(rest)})" if rest else "")


def not_there(want: Want, found: Inventory, missing: str) -> NotThere:
    here = [device.id + (f" ({device.name})" if device.name else "") for device in found.accelerators]
    cores = len(found.of("cpu"))
    here += [f"{cores} cores" if cores != 1 else "1 core"] if want.cpus or not here else []
    why = "; ".join(reason for kind, reason in found.reasons.items() if kind in want.kinds)
    return NotThere(
        f"expected {want}, and {missing}{f' ({why})' if why else ''}; what is here: {', '.join(here)}.",
        where="devices",
        hint=f"Ask for what is there; {_LOOK}",
    )


def busy(want: Want, held: Sequence[tuple[Device, Holder]], free: int) -> Busy:
    by_holder: dict[Holder, list[str]] = {}
    for device, holder in held:
        by_holder.setdefault(holder, []).append(device.id)
    told = _some([_held_by(holder, names) for holder, names in by_holder.items()], "; ")
    left = "" if want.accelerators else f", {free} of them free"
    return Busy(f"expected {want}{left}: {told}.", where="devices", hint=f"Wait with --queue, or ask for less; {_LOOK}")


def _held_by(holder: Holder, names: Sequence[str]) -> str:
    return f"{_some(names, ', ')} {'is' if len(names) == 1 else 'are'} held by {holder}"


def _some(words: Sequence[str], between: str) -> str:
    """The first of them: one line is read, not a hundred cores."""
    more = len(words) - _SHOWN
    return between.join(words[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
