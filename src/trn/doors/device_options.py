"""Which devices a job is to hold: options of `run` and `resume`, and what the spec's `device` means without them.

--devices cuda:0,cuda:1   these, as CUDA_VISIBLE_DEVICES counts them; `auto`: as many as there are processes
--device-count N          so many, those with the most free memory
--cpu-only                none, and `device: cpu`
--cpus N                  so many cores, for whatever device

    options, spec ──choose──> Choice ──the job's processes──> Want ──> leased by whoever starts the job

More than one device is one process for each. Where the spec says otherwise the job is refused: nothing here overrides
a spec but `--cpu-only`. Not here: who has them (devices), and what waits for them (jobs).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import click

from trn.devices import Want, accelerators
from trn.doors.processes import Processes
from trn.errors import UsageError

__all__ = ["AskedDevices", "Choice", "choose", "device_options", "want_of", "want_of_device"]

_NAMES = re.compile(r"mps|cuda:(0|[1-9][0-9]{0,3})(,cuda:(0|[1-9][0-9]{0,3}))*")
_AUTO = "auto"
"""Of --devices: any that are free. Of a spec's `device`: an accelerator if one is here, else the CPU."""


class ForChild(NamedTuple):
    """What the runner is told as a flag: by which name, for which key of the spec."""

    name: str
    key: str
    value: object


@dataclass(frozen=True)
class AskedDevices:
    """What the command line says; None where it is silent. Raises UsageError for what cannot be meant."""

    devices: str | None = None
    device_count: int | None = None
    cpu_only: bool = False
    cpus: int | None = None

    @classmethod
    def of(cls, given: dict[str, Any]) -> AskedDevices:
        """Takes its own out of a command's parameters."""
        asked = cls(**{name: given.pop(name) for name in cls.__dataclass_fields__})
        asked._check()
        return asked

    @property
    def names(self) -> tuple[str, ...]:
        """The devices that are named one by one."""
        return tuple(self.devices.split(",")) if self.devices and self.devices != _AUTO else ()

    @property
    def kind(self) -> str | None:
        """Of the accelerators that are asked for: cuda, mps, None where nobody asks."""
        if self.names:
            return self.names[0].partition(":")[0]
        return "cuda" if self.devices == _AUTO or self.device_count else None

    @property
    def count(self) -> int | None:
        """How many are asked for, where that is said."""
        return len(self.names) or self.device_count

    @property
    def option(self) -> str:
        """What is to be named when it cannot be."""
        return "--devices" if self.devices else "--device-count"

    @property
    def defaults(self) -> dict[str, Any]:
        """What stands in the spec where that is silent."""
        if self.kind is None:
            return {}
        return {"device": self.kind} | ({"ddp": True} if (self.count or 1) > 1 else {})

    @property
    def flags(self) -> list[ForChild]:
        """What wins over the spec."""
        return [ForChild("--cpu-only", "device", "cpu")] if self.cpu_only else []

    @property
    def arguments(self) -> list[str]:
        """The same options again, for another `trn run`."""
        given = {"--devices": self.devices, "--device-count": self.device_count, "--cpus": self.cpus}
        options = [part for name, value in given.items() if value is not None for part in (name, str(value))]
        return options + (["--cpu-only"] if self.cpu_only else [])

    def _check(self) -> None:
        if self.devices is not None and self.devices != _AUTO:
            if not _NAMES.fullmatch(self.devices):
                raise UsageError(
                    f"expected names such as cuda:0,cuda:1, or mps, or auto; found {self.devices!r}.",
                    where="--devices",
                    hint="`trn devices` shows what is there; --cpu-only is the word for none.",
                )
            if len(set(self.names)) < len(self.names):
                raise UsageError(f"each device once; found {self.devices!r}.", where="--devices")
            if self.device_count not in (None, len(self.names)):
                raise UsageError(
                    f"--devices names {len(self.names)}, and --device-count says {self.device_count}.",
                    where="--device-count",
                    hint="Leave one of them out.",
                )
        if self.cpu_only and self.kind is not None:
            raise UsageError(f"{self.option} asks for accelerators.", where="--cpu-only", hint="Leave one of them out.")


_OPTIONS = (
    click.option(
        "--devices", metavar="LIST", help="Hold and use these: cuda:0,cuda:1 or mps; auto: any that are free."
    ),
    click.option(
        "--device-count", type=click.IntRange(min=1), metavar="N", help="Hold and use N of them, one process for each."
    ),
    click.option("--cpu-only", is_flag=True, help="Use no accelerator, whatever the spec says."),
    click.option("--cpus", type=click.IntRange(min=1), metavar="N", help="Hold N cores, and run on these alone."),
)


def device_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options of `AskedDevices`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@dataclass(frozen=True)
class Choice:
    """What the options and the spec mean together."""

    asked: AskedDevices
    device: str
    """As the spec has it in the end."""
    nproc: int | None
    """How many processes there are to be on this machine, where the command line or the devices say so."""
    flags: tuple[ForChild, ...] = ()
    """What the runner is told, so that it reads the same spec."""


def choose(
    asked: AskedDevices, *, device: str, ddp: bool, nproc: int | None, machines: int = 1, is_resume: bool = False
) -> Choice:
    """What `asked` means for a spec, or a run, with this `device` and `ddp`. Raises UsageError where they contradict.

    A run that is resumed may have had a device of another number, or be on another machine.
    """
    if asked.cpu_only and device != "cpu":
        raise UsageError(f"the run is on {device!r}, and stays there.", where="--cpu-only", hint="Leave it out.")
    if asked.kind is None:
        return Choice(asked, device, nproc, tuple(asked.flags))
    device = asked.kind if device == _AUTO else device
    kind, _, number = device.partition(":")
    if kind != asked.kind:
        raise UsageError(
            f"it asks for {asked.kind}, and the spec says `device: {device}`.",
            where=asked.option,
            hint=f"Set `device: {asked.kind}` in the spec, or give --device {asked.kind} too.",
        )
    if number and not is_resume and asked.names != (device,):
        raise UsageError(
            f"the spec says `device: {device}`, which is that one and no other.",
            where=asked.option,
            hint=f"Set `device: {kind}` in the spec, or give --device {kind} too.",
        )
    count = asked.count or nproc or 1
    if nproc is not None and nproc != count:
        raise UsageError(
            f"{nproc} processes and {count} devices: expected one for each.",
            where="--nproc",
            hint=f"Leave it out, or {asked.option}.",
        )
    if count * machines > 1 and not ddp:
        raise UsageError(
            f"{count} devices are for as many processes, and the spec says `ddp: false`.",
            where=asked.option,
            hint="Set `ddp: true` in the spec, or give --ddp too.",
        )
    flags = (ForChild(asked.option, "device", device), *([ForChild(asked.option, "ddp", ddp)] if count > 1 else []))
    return Choice(asked, device, count if ddp else nproc, flags)


def want_of(choice: Choice, processes: Processes, environ: Mapping[str, str]) -> Want:
    """What the job is to hold. Raises UsageError where somebody else has shared out the devices already.

    Without an option it is what the spec's device says, if anything of this kind is seen here: where nothing is, the
    runner asks torch, and refuses in its words; with `auto` it takes the CPU.
    """
    asked, device = choice.asked, choice.device
    cpus = asked.cpus or 0
    count = processes.layout.nproc
    if processes.world.world_size > 1:
        if asked.kind is not None or asked.cpus:
            raise UsageError(
                f"this process was started as rank {processes.world.rank} of {processes.world.world_size}, and its "
                "launcher shares out the devices.",
                where="--cpus" if asked.kind is None else asked.option,
            )
        return Want()
    if asked.names:
        return Want(asked.names, cpus=cpus)
    if asked.kind is not None:
        return Want(count=count, cpus=cpus)
    return want_of_device(device, environ, count=count, cpus=cpus)


def want_of_device(device: str, environ: Mapping[str, str], *, count: int = 1, cpus: int = 0) -> Want:
    """What a spec's `device` alone says, for so many processes; nothing of a kind that is not seen here."""
    kind, _, number = device.partition(":")
    if kind not in ("cuda", "mps", _AUTO):
        return Want(cpus=cpus)
    here = {one.id for one in accelerators(environ, with_use=False).devices}
    if kind == _AUTO:
        kind = device = next(("mps" for name in here if name.startswith("mps")), "cuda")
    if not any(name.startswith(kind) for name in here):
        return Want(cpus=cpus)
    return Want((device,), cpus=cpus) if number or kind == "mps" else Want(count=count, cpus=cpus)
