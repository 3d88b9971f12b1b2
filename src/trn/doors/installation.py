"""What is installed and what it runs on, without importing any of it: a doctor must also look at broken installations.

Versions are read from the metadata of the packages. What only torch itself can say comes from a child process, which
may be slow, raise or crash.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from typing import Any, NamedTuple

from trn.doors.text import clean_line

__all__ = ["Library", "environment", "libraries", "machine", "torch_facts", "trainers"]

Json = dict[str, Any]

_PACKAGE = "trn-runtime"
_TRAINERS = "trn.trainers"
_REQUIREMENT = re.compile(r"""([\w.-]+)\s*(?:>=\s*([\d.]+))?[^;]*(?:;\s*extra\s*==\s*["'](\w+)["'])?""")
_FOR_DEVELOPERS = ("dev", "bench")
_ASK_TORCH = """
import json, torch
mps = getattr(torch.backends, "mps", None)
cuda = torch.cuda.is_available()
print(json.dumps({
    "version": torch.__version__,
    "threads": torch.get_num_threads(),
    "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    "cuda": cuda,
    "built_for": torch.version.cuda or torch.version.hip,
    "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if cuda else [],
    "mps": bool(mps and mps.is_available()),
}))
"""


class Library(NamedTuple):
    """A package that trn asks for; `extra` is the extra it belongs to, None for one that every run needs."""

    name: str
    version: str | None
    at_least: str | None
    extra: str | None

    @property
    def problem(self) -> str | None:
        """What is wrong with it, None when it fits."""
        if self.version is None:
            return f"{self.name} is not installed"
        if self.at_least and _numbers(self.version) < _numbers(self.at_least):
            return f"{self.name} is {self.version}, expected {self.at_least} or newer"
        return None


def machine() -> Json:
    """`{trn, python, executable, platform, cpu, memory}`."""
    return {
        "trn": _version(_PACKAGE),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpu": {"count": os.cpu_count(), "usable": _usable_cpus()},
        "memory": _memory(),
    }


def _usable_cpus() -> list[int] | None:
    """The processors that this process may run on; None where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _memory() -> Json | None:
    try:
        import psutil  # type: ignore[import-untyped]  # psutil ships no types; it may be what is missing
    except ImportError:
        return None
    memory = psutil.virtual_memory()
    return {"total_bytes": int(memory.total), "available_bytes": int(memory.available)}


def libraries() -> list[Library]:
    """The packages that trn asks for, as its own metadata names them, with what is installed of each."""
    try:
        asked = requires(_PACKAGE) or []
    except PackageNotFoundError:
        return []
    found = [match.groups() for text in asked if (match := _REQUIREMENT.fullmatch(text))]
    return [Library(name, _version(name), least, extra) for name, least, extra in found if extra not in _FOR_DEVELOPERS]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """The release of a version as numbers: `2.13.0+cpu` is (2, 13, 0)."""
    release = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in release[0].split(".")) if release else ()


def trainers() -> list[Json]:
    """`{name, value, package}` of each installed trainer, by name; none of them is imported."""
    points = sorted(entry_points(group=_TRAINERS), key=lambda point: point.name)
    return [
        {"name": point.name, "value": point.value, "package": point.dist.name if point.dist else None}
        for point in points
    ]


def torch_facts(timeout_s: float = 120.0) -> tuple[Json | None, str | None]:
    """What torch says of itself in a process of its own; else None, and why not."""
    command = [sys.executable, "-P", "-c", _ASK_TORCH]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return None, f"importing torch took more than {timeout_s:g} s"
    said = (done.stdout if done.returncode == 0 else done.stderr).decode(errors="replace").strip().splitlines()
    last = said[-1] if said else f"it exited with {done.returncode}"
    if done.returncode != 0:
        return None, clean_line(last)
    try:
        facts = json.loads(last)
    except ValueError:
        facts = None
    return (facts, None) if isinstance(facts, dict) else (None, f"it said {clean_line(last)[:80]!r}")


def environment(environ: Mapping[str, str]) -> tuple[Json | None, str | None]:
    """The variables that decide how a run behaves, as a run records them; None, and why, where that cannot be told."""
    try:
        from trn.provenance.environment import allowed_variables  # needs installed libraries: they may be broken
        from trn.provenance.redact import Redactor
    except Exception as error:  # noqa: BLE001 - a broken library may raise anything, and here that is the answer
        return None, clean_line(f"{type(error).__name__}: {error}")
    return allowed_variables(environ, Redactor.knowing(environ)), None
