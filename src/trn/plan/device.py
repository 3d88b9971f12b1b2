"""The device that a spec names, if it is here: never a quiet fall to another one."""

from __future__ import annotations

import torch

from trn.errors import DeviceError

__all__ = ["torch_device"]


def torch_device(name: str, *, local_rank: int = 0) -> torch.device:
    """The device of this name; of an accelerator without a number, that of the rank. Raises DeviceError."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"{name!r} is no device; expected cpu, cuda:0, mps ...", where="device") from error
    here = _here()
    if device.type == "cuda" and device.index is None and local_rank and torch.cuda.device_count() > 1:
        device = torch.device("cuda", local_rank)  # where a launcher shows each rank only its own, that is the first
    indexed = device.type if device.type in ("cpu", "mps") else f"{device.type}:{device.index or 0}"
    if indexed not in here:
        raise DeviceError(f"{name!r} is not here; this machine has {', '.join(here)}.", where="device")
    return device


def _here() -> list[str]:
    found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found
