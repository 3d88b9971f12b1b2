"""The device that a spec names, if it is here: never a quiet fall to another one.

Where this process was started with a lease it sees the leased devices alone, counted from 0, while a spec counts as
its author does. So `cuda:1` is found among what was leased, and where something else was leased, that is its device:
a run goes on, on a machine with other devices, on what it was given there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from trn.devices import DEVICES
from trn.errors import DeviceError

__all__ = ["leased_name", "settled_device", "torch_device"]

AUTO = "auto"


def settled_device(name: str) -> str:
    """The device of a plan: `name` itself, and for `auto` the kind of the first accelerator that is here, else cpu."""
    return next((one.partition(":")[0] for one in reversed(_here())), "cpu") if name == AUTO else name


def torch_device(name: str, *, local_rank: int = 0) -> torch.device:
    """The device of this name; of an accelerator without a number, that of the rank. Raises DeviceError."""
    try:
        device = torch.device(leased_name(name, os.environ))
    except RuntimeError as error:
        raise DeviceError(f"{name!r} is no device; expected cpu, cuda:0, mps ...", where="device") from error
    here = _here()
    if device.type == "cuda" and device.index is None and local_rank and torch.cuda.device_count() > 1:
        device = torch.device("cuda", local_rank)  # where a launcher shows each rank only its own, that is the first
    indexed = device.type if device.type in ("cpu", "mps") else f"{device.type}:{device.index or 0}"
    if indexed not in here:
        raise DeviceError(f"{name!r} is not here; this machine has {', '.join(here)}.", where="device")
    return device


def leased_name(name: str, environ: Mapping[str, str]) -> str:
    """The name by which this process sees the device that a spec or a plan calls `name`."""
    leased = [one for one in environ.get(DEVICES, "").split(",") if one.startswith("cuda:")]
    if not name.startswith("cuda:") or not leased:
        return name
    if name in leased:
        return f"cuda:{leased.index(name)}"
    return "cuda:0" if len(leased) == 1 else name


def _here() -> list[str]:
    found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found
