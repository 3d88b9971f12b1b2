"""What there is to compute on, as the caller may use it: accelerators and cores, with what they are doing.

    drivers ──> all of a machine ──CUDA_VISIBLE_DEVICES, affinity──> the caller's, numbered in its order

No framework is asked: a door must not wait seconds for an answer, and torch tells nothing of other processes.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trn.devices.amd import AmdSmi
from trn.devices.cpu import usable_cores
from trn.devices.drivers import Driver, NoDriver, Physical, Use
from trn.devices.nvidia import open_nvidia
from trn.devices.visible import visible

__all__ = ["Device", "Inventory", "accelerators", "cores", "inventory", "opened", "seen"]

_LOOK_S = 0.1
"""How long the cores are watched to see how busy they are."""


@dataclass(frozen=True)
class Device:
    """One device; what cannot be read is null, and `reasons` says why, by field."""

    id: str
    """As torch calls it: cuda:0 (also on ROCm), mps, cpu; the cores are cpu:N."""
    kind: str
    """cuda, rocm, mps or cpu."""
    name: str | None
    uuid: str | None
    key: str
    """By which its lease is known on this machine, whoever numbers it."""
    shown_as: str | None = None
    """How a child is told to see it, in *_VISIBLE_DEVICES."""
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    utilisation_pct: float | None = None
    power_w: float | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        hidden = ("key", "shown_as")
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in hidden} | {
            "reasons": dict(self.reasons)
        }


@dataclass(frozen=True)
class Inventory:
    """`reasons`: by kind, why there is none of it."""

    devices: tuple[Device, ...]
    reasons: Mapping[str, str]

    def of(self, *kinds: str) -> tuple[Device, ...]:
        return tuple(one for one in self.devices if one.kind in kinds)

    @property
    def accelerators(self) -> tuple[Device, ...]:
        return self.of("cuda", "rocm", "mps")


def inventory(environ: Mapping[str, str], *, with_use: bool = True) -> Inventory:
    """All that a process with this environment may use. Without `with_use` nobody asks what they are doing."""
    found = accelerators(environ, with_use=with_use)
    return Inventory((*found.devices, *cores(with_use=with_use)), found.reasons)


def accelerators(environ: Mapping[str, str], *, with_use: bool = True) -> Inventory:
    """The same without the cores."""
    devices: list[Device] = []
    reasons: dict[str, str] = {}
    for kind in ("cuda", "rocm"):
        if devices and kind == "rocm":
            reasons[kind] = "there are devices of NVIDIA, which a build of torch for CUDA uses"
            continue
        try:
            with opened(kind) as driver:
                mine = _of_driver(driver, kind, environ, with_use)
        except NoDriver as error:
            reasons[kind] = str(error)
            continue
        if not mine:
            reasons[kind] = "the environment hides them all (*_VISIBLE_DEVICES)"
        devices += mine
    metal = _metal()
    if isinstance(metal, str):
        reasons["mps"] = metal
    else:
        devices.append(metal)
    return Inventory(tuple(devices), reasons)


_OPEN: dict[str, Callable[[], Driver]] = {"cuda": open_nvidia, "rocm": AmdSmi}


@contextlib.contextmanager
def opened(kind: str) -> Iterator[Driver]:
    """The driver of a kind, let go at the end. Raises NoDriver."""
    driver = _OPEN[kind]()
    try:
        yield driver
    finally:
        driver.close()


def _of_driver(driver: Driver, kind: str, environ: Mapping[str, str], with_use: bool) -> list[Device]:
    if not driver.devices():
        raise NoDriver("the driver shows none")
    counted, mine = seen(driver, kind, environ)
    asked = driver if with_use else None
    return [_device(one, number, kind, counted, asked) for number, one in enumerate(mine)]


def seen(driver: Driver, kind: str, environ: Mapping[str, str]) -> tuple[Sequence[Physical], list[Physical]]:
    """Those that an index in the variable of this kind counts, and those that the environment leaves, in its order."""
    counted = driver.devices()
    if kind == "rocm" and "ROCR_VISIBLE_DEVICES" in environ:  # what it hides, HIP does not count
        counted = visible(counted, environ["ROCR_VISIBLE_DEVICES"])
    return counted, visible(counted, environ.get(_variable(kind, environ)))


def _variable(kind: str, environ: Mapping[str, str]) -> str:
    return "HIP_VISIBLE_DEVICES" if kind == "rocm" and "HIP_VISIBLE_DEVICES" in environ else "CUDA_VISIBLE_DEVICES"


def _device(one: Physical, number: int, kind: str, counted: Sequence[Physical], driver: Driver | None) -> Device:
    use = Use.unknown("not asked for") if driver is None else driver.use(one)
    index = next((place for place, device in enumerate(counted) if device is one or one in device.instances), number)
    known_by = (one.uuid if one.is_instance else one.address) or str(index)
    return Device(
        id=f"cuda:{number}",
        kind=kind,
        name=one.name,
        uuid=one.uuid,
        key="cuda-" + "".join(char if char.isalnum() or char in ".-" else "-" for char in known_by),
        shown_as=one.uuid if kind == "cuda" and one.uuid else str(index),
        memory_total_bytes=use.memory_total_bytes,
        memory_free_bytes=use.memory_free_bytes,
        utilisation_pct=use.utilisation_pct,
        power_w=use.power_w,
        reasons=dict(use.reasons),
    )


def _metal() -> Device | str:
    """The accelerator of a Mac, or why there is none."""
    if (platform.system(), platform.machine()) != ("Darwin", "arm64"):
        return "this is no Mac with a processor of Apple's"
    reasons = dict.fromkeys(Use.FIELDS[:2], "its memory is the machine's")
    reasons |= dict.fromkeys(Use.FIELDS[2:], "macOS tells it to administrators only")
    return Device("mps", "mps", "Apple GPU", None, "mps", reasons=reasons | {"uuid": "macOS names none"})


def cores(*, with_use: bool = False) -> tuple[Device, ...]:
    """Those that this process may run on."""
    mine = usable_cores()
    busy = _busy(mine) if with_use else {}
    reasons = {"name": "a core has none", "uuid": "a core has none", "power_w": "nobody reads it"}
    reasons |= dict.fromkeys(Use.FIELDS[:2], "its memory is the machine's")
    unread = reasons | {"utilisation_pct": "the system does not say" if with_use else "not asked for"}
    return tuple(
        Device(
            *(f"cpu:{core}", "cpu", None, None, f"cpu-{core}"),
            utilisation_pct=busy.get(core),
            reasons=reasons if core in busy else unread,
        )
        for core in mine
    )


def _busy(cores: tuple[int, ...]) -> dict[int, float]:
    """Percent of the time from now on, by core; nothing where there is no /proc."""
    before = _times()
    if before:
        time.sleep(_LOOK_S)
    busy = {}
    for core, (idle, total) in _times().items():
        idle_before, total_before = before.get(core, (idle, total))
        if core in cores and total > total_before:
            busy[core] = round(100.0 * (1.0 - (idle - idle_before) / (total - total_before)), 1)
    return busy


def _times() -> dict[int, tuple[int, int]]:
    """Of each core: how long it was idle, and how long in all, in ticks. Source: proc_stat(5)."""
    try:
        with open("/proc/stat", encoding="ascii") as stream:
            lines = [line.split() for line in stream if line.startswith("cpu") and not line.startswith("cpu ")]
    except OSError:
        return {}
    # user nice system idle iowait irq softirq steal; what guests got is in the first two already
    return {int(name[3:]): (int(told[3]) + int(told[4]), sum(map(int, told[:8]))) for name, *told in lines}
