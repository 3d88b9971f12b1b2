"""Drivers that are not there: modules and programs in their place, which answer from a file of the test's.

`install` writes them into a folder that this process, and those it starts, import from first. Only what belongs to a
driver is made up; everything that asks is the real thing.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "TEST_DRIVER"

NVML = """
import json, os, time
from types import SimpleNamespace


class NVMLError(Exception):
    pass


def _devices():
    try:
        with open(os.environ["TEST_DRIVER"]) as stream:
            return json.load(stream)
    except (KeyError, OSError):
        raise NVMLError("Driver Not Loaded") from None


def _told(handle, key):
    device, part = handle
    one = _devices()[device]
    value = (one if part is None else one["instances"][part]).get(key)
    if key == "busy" and value == "hangs":
        time.sleep(60)
    if value is None:
        raise NVMLError("Not Supported")
    return value


def nvmlInit():
    _devices()


def nvmlShutdown():
    pass


def nvmlDeviceGetCount():
    return len(_devices())


def nvmlDeviceGetHandleByIndex(index):
    return index, None


def nvmlDeviceGetName(handle):
    return _told(handle, "name")


def nvmlDeviceGetUUID(handle):
    return _told(handle, "uuid").encode()


def nvmlDeviceGetPciInfo(handle):
    return SimpleNamespace(busId=_told(handle, "bus"))


def nvmlDeviceGetMemoryInfo(handle):
    return SimpleNamespace(total=_told(handle, "total"), free=_told(handle, "free"))


def nvmlDeviceGetUtilizationRates(handle):
    return SimpleNamespace(gpu=_told(handle, "busy"))


def nvmlDeviceGetPowerUsage(handle):
    return _told(handle, "milliwatts")


def nvmlDeviceGetMigMode(handle):
    return [1 if _told(handle, "instances") else 0, 0]


def nvmlDeviceGetMaxMigDeviceCount(handle):
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle, index):
    if index >= len(_told(handle, "instances")):
        raise NVMLError("Not Found")
    return handle[0], index
"""

AMD = """
import json, os
from enum import IntEnum


class AmdSmiException(Exception):
    pass


class AmdSmiMemoryType(IntEnum):
    VRAM = 0


def _devices():
    try:
        with open(os.environ["TEST_DRIVER"]) as stream:
            return json.load(stream)
    except (KeyError, OSError):
        raise AmdSmiException("Error code:\\n\\t34 | driver not loaded") from None


def _told(handle, key):
    value = _devices()[handle].get(key)
    if value is None:
        raise AmdSmiException("Error code:\\n\\t2 | not supported")
    return value


def amdsmi_init():
    _devices()


def amdsmi_shut_down():
    pass


def amdsmi_get_processor_handles():
    return list(range(len(_devices())))


def amdsmi_get_gpu_asic_info(handle):
    return {"market_name": _told(handle, "name")}


def amdsmi_get_gpu_device_uuid(handle):
    return _told(handle, "uuid")


def amdsmi_get_gpu_device_bdf(handle):
    return _told(handle, "bus")


def amdsmi_get_gpu_memory_total(handle, kind):
    return _told(handle, "total")


def amdsmi_get_gpu_memory_usage(handle, kind):
    return _told(handle, "total") - _told(handle, "free")


def amdsmi_get_gpu_activity(handle):
    return {"gfx_activity": _told(handle, "busy")}


def amdsmi_get_power_info(handle):
    return {"current_socket_power": "N/A", "average_socket_power": _told(handle, "milliwatts") / 1000}
"""

ABSENT = 'raise ImportError("not installed")\n'


def gpu(number: int, **changes: Any) -> dict[str, Any]:
    """A device as its driver describes it; null is what it does not tell."""
    facts = {
        "name": "Test GPU",
        "uuid": f"GPU-{number:x}{number:x}aa-0000-1111",
        "bus": f"00000000:{number + 1:02X}:00.0",
        "total": 80_000_000_000,
        "free": 79_000_000_000,
        "busy": 3,
        "milliwatts": 61_500,
        "instances": [],
    }
    return {**facts, **changes}


def install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, devices: list[dict[str, Any]] | None, *, pynvml: str = NVML,
    amdsmi: str = ABSENT,
) -> Path:  # fmt: skip
    """Let this process and its children see `devices`; None: no driver is loaded. Returns the file to change them."""
    folder, state = tmp_path / "drivers", tmp_path / "devices.json"
    folder.mkdir()
    (folder / "pynvml.py").write_text(pynvml)
    (folder / "amdsmi.py").write_text(amdsmi)
    # nor are the real ones, where this machine has any
    (folder / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr("trn.devices.nvidia.PROC", tmp_path / "no-gpus")
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep))
    monkeypatch.syspath_prepend(str(folder))
    for name in ("pynvml", "amdsmi"):
        monkeypatch.setitem(sys.modules, name, None)  # whatever is there at the end goes, or is the real one again
        del sys.modules[name]
    importlib.invalidate_caches()
    monkeypatch.setenv(VARIABLE, str(state))
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    if devices is not None:
        write(state, devices)
    return state


def write(state: Path, devices: list[dict[str, Any]]) -> None:
    """From now on the driver says this."""
    whole = state.with_suffix(".new")
    whole.write_text(json.dumps(devices))
    whole.rename(state)
