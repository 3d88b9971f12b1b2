"""NVIDIA's accelerators: by NVML where nvidia-ml-py is installed, else by nvidia-smi, else by what /proc shows.

NVML counts in the order of the PCI bus, and so do we. CUDA's own order puts the fastest first unless
CUDA_DEVICE_ORDER says otherwise: whoever gets devices from us is told their UUIDs, and the order of the bus.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from trn.devices.drivers import Driver, NoDriver, Physical, Use, pci_address

__all__ = ["PROC", "Nvml", "open_nvidia", "proc_devices"]

PROC = Path("/proc/driver/nvidia/gpus")
_EXTRA = "nvidia-ml-py is not installed: pip install 'trn-runtime[cuda]'"
_SMI_S = 10.0
_ASKED = ("uuid", "name", "pci.bus_id", "memory.total", "memory.free", "utilization.gpu", "power.draw")
_MEBI = 1 << 20
_Found = TypeVar("_Found")


def open_nvidia(proc: Path | None = None) -> Driver:
    """The best way to ask that there is. Raises NoDriver."""
    try:
        return Nvml()
    except NoDriver as error:
        reason = str(error)
    if (program := shutil.which("nvidia-smi")) is not None:
        with contextlib.suppress(NoDriver):
            return _Smi(program, reason)
    if devices := proc_devices(PROC if proc is None else proc):
        return _Listed(devices, reason)
    raise NoDriver("no driver of NVIDIA is loaded")


class Nvml(Driver):
    """By the library of the driver itself. Raises NoDriver where it, or its Python module, is not there."""

    def __init__(self) -> None:
        try:
            import pynvml  # an extra, and only where somebody asks for accelerators
        except ImportError:
            raise NoDriver(_EXTRA) from None
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise NoDriver(f"NVML: {error}") from None

    def devices(self) -> list[Physical]:
        nvml = self._nvml
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            raise NoDriver(f"NVML: {error}") from None
        return [one for index in range(count) if (one := self._device(index)) is not None]

    def use(self, device: Physical) -> Use:
        nvml, handle, reasons = self._nvml, device.handle, {}

        def read(fields: Sequence[str], ask: Callable[[], _Found]) -> _Found | None:
            try:
                return ask()
            except nvml.NVMLError as error:
                reasons.update(dict.fromkeys(fields, f"NVML: {error}"))
                return None

        memory = read(("memory_total_bytes", "memory_free_bytes"), lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        rates = read(("utilisation_pct",), lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        milliwatts = read(("power_w",), lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        return Use(
            memory_total_bytes=None if memory is None else int(memory.total),
            memory_free_bytes=None if memory is None else int(memory.free),
            utilisation_pct=None if rates is None else float(rates.gpu),
            power_w=None if milliwatts is None else milliwatts / 1000.0,
            reasons=reasons,
        )

    def close(self) -> None:
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _device(self, index: int) -> Physical | None:
        """None for one that has fallen off the bus: CUDA does not count it either."""
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError:
            return None
        bus = self._told(lambda: nvml.nvmlDeviceGetPciInfo(handle).busId)
        return Physical(
            name=self._told(lambda: nvml.nvmlDeviceGetName(handle)),
            uuid=self._told(lambda: nvml.nvmlDeviceGetUUID(handle)),
            address=None if bus is None else pci_address(bus),
            handle=handle,
            instances=tuple(self._instances(handle)),
        )

    def _instances(self, handle: Any) -> Iterator[Physical]:
        nvml = self._nvml
        try:
            is_partitioned = nvml.nvmlDeviceGetMigMode(handle)[0] == 1
            most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle) if is_partitioned else 0
        except nvml.NVMLError:  # most devices cannot be partitioned
            return
        for index in range(most):
            with contextlib.suppress(nvml.NVMLError):  # a place without an instance
                part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
                name, uuid = self._told(lambda: nvml.nvmlDeviceGetName(part)), nvml.nvmlDeviceGetUUID(part)  # noqa: B023 - called at once
                yield Physical(name, _text(uuid), None, handle=part, is_instance=True)

    def _told(self, ask: Callable[[], str | bytes]) -> str | None:
        try:
            return _text(ask())
        except self._nvml.NVMLError:
            return None


def _text(told: str | bytes) -> str:
    """Older versions of the module answer in bytes."""
    return told.decode(errors="replace") if isinstance(told, bytes) else told


class _Smi(Driver):
    """One call of nvidia-smi. Instances of partitioned devices are not seen."""

    def __init__(self, program: str, reason: str) -> None:
        command = [program, f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_S, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise NoDriver(f"nvidia-smi: {error}") from None
        rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
        self._rows = [row for row in rows if len(row) == len(_ASKED)]
        self._reason = reason
        if not self._rows:
            raise NoDriver("nvidia-smi shows no device")

    def devices(self) -> list[Physical]:
        return [Physical(row[1], row[0], pci_address(row[2]), handle=row) for row in self._rows]

    def use(self, device: Physical) -> Use:
        total, free, busy, power = (_number(text) for text in device.handle[3:])
        found = (total, free, busy, power)
        why = f"nvidia-smi does not say, and {self._reason}"
        return Use(
            None if total is None else int(total * _MEBI),
            None if free is None else int(free * _MEBI),
            *(busy, power),
            reasons={name: why for name, value in zip(Use.FIELDS, found, strict=True) if value is None},
        )

    def close(self) -> None:
        """Nothing: the program has ended."""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


class _Listed(Driver):
    """Devices of which nothing is known but that they are there."""

    def __init__(self, devices: Sequence[Physical], reason: str) -> None:
        self._devices, self._reason = devices, reason

    def devices(self) -> Sequence[Physical]:
        return self._devices

    def use(self, device: Physical) -> Use:
        return Use.unknown(self._reason)

    def close(self) -> None:
        """Nothing."""


def proc_devices(proc: Path) -> list[Physical]:
    """What the loaded driver shows in /proc, in the order of the bus; nothing where it is not loaded."""
    try:
        folders = sorted(proc.iterdir(), key=lambda folder: pci_address(folder.name))
    except OSError:
        return []
    return [_listed(folder) for folder in folders]


def _listed(folder: Path) -> Physical:
    try:
        lines = (folder / "information").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    uuid = facts.get("GPU UUID", "")
    return Physical(
        name=facts.get("Model") or None,
        uuid=uuid if uuid and "?" not in uuid else None,  # before its first use the driver shows question marks
        address=pci_address(folder.name),
    )
