"""What a run computes on: host, accelerator, interpreter, threads and the switches of determinism.

What only torch knows is handed in as values, so that this room stays free of torch.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil  # type: ignore[import-untyped]  # psutil ships no types

from trn.provenance.code import library_versions

__all__ = ["Accelerator", "Device", "TorchFacts", "hardware", "host", "platform_facts", "runtime"]


@dataclass(frozen=True)
class Device:
    """One accelerator device, as its driver names it."""

    index: int
    name: str
    memory_bytes: int | None = None
    capability: str | None = None


@dataclass(frozen=True)
class Accelerator:
    """The accelerators that this process may use; `reason` says why there are none, where that is known."""

    kind: str | None = None
    """`cuda`, `rocm`, `mps`, ...; null where there is none."""
    version: str | None = None
    """Of the library that torch was built for."""
    driver_version: str | None = None
    devices: tuple[Device, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class TorchFacts:
    """What the runner reads from live torch after it has set it up."""

    version: str
    threads: int
    interop_threads: int | None = None
    deterministic: bool | Literal["warn"] = True
    flags: Mapping[str, bool | int | str | None] = field(default_factory=dict)
    """Switches that decide about bits, as read back: cudnn_benchmark, allow_tf32, matmul_precision, ..."""
    accelerator: Accelerator = Accelerator()


def host() -> dict[str, Any]:
    """`{hostname, machine, system, cpu_count, cpu_usable, memory_bytes}` of this machine."""
    return {
        "hostname": platform.node() or "unknown",
        "machine": platform.machine() or "unknown",
        "system": platform.system() or "unknown",
        "cpu_count": os.cpu_count(),
        "cpu_usable": _usable_cpus(),
        "memory_bytes": int(psutil.virtual_memory().total),
    }


def hardware(accelerator: Accelerator) -> dict[str, Any]:
    """`{host, accelerator}` as run_meta.json has it."""
    devices = [asdict(device) for device in accelerator.devices]
    return {
        "host": host(),
        "accelerator": {"available": bool(devices)} | asdict(accelerator) | {"devices": devices},
    }


def runtime(facts: TorchFacts, extra_libraries: tuple[str, ...] = ()) -> dict[str, Any]:
    """The interpreter, the library versions and how torch was set up. Of the executable only its name is told."""
    return {
        "python_version": platform.python_version(),
        "python_implementation": platform.python_implementation(),
        "python_executable": Path(sys.executable or "python").name,
        "platform": _platform(),
        "torch_version": facts.version,
        "versions": library_versions(extra_libraries),
        "threads": facts.threads,
        "interop_threads": facts.interop_threads,
        "deterministic": facts.deterministic,
        "flags": dict(facts.flags),
    }


def platform_facts() -> dict[str, Any]:
    """The platform as runtime_env.json tells it: system, kernel, C library, interpreter, processors."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "version": platform.version(),
        "machine": platform.machine(),
        "platform": _platform(),
        "libc": " ".join(part for part in platform.libc_ver() if part) or None,
        "python_version": platform.python_version(),
        "python_implementation": platform.python_implementation(),
        "cpu_count": os.cpu_count(),
        "cpu_usable": _usable_cpus(),
    }


def _platform() -> str:
    """System, kernel, machine and C library in one word. platform.platform() would start `uname -p` for it."""
    libc = "".join(platform.libc_ver())
    return "-".join([platform.system(), platform.release(), platform.machine(), *(["with", libc] if libc else [])])


def _usable_cpus() -> int | None:
    """Processors that this process may run on; where the system does not say, all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
