"""Which devices a process may use: what *_VISIBLE_DEVICES leaves, in its order."""

from __future__ import annotations

from collections.abc import Sequence

from trn.devices.drivers import Physical

__all__ = ["visible"]


def visible(devices: Sequence[Physical], chosen: str | None) -> list[Physical]:
    """As CUDA reads the variable: indices, or the beginnings of UUIDs; None: it is not set, and all are.

    The list ends before the first entry that names no device, no single one, or one that was named before. Of a
    partitioned device there are its instances: all where the variable is not set, the first where it is named.
    """
    if chosen is None:
        return [one for device in devices for one in (device.instances or (device,))]
    found: list[Physical] = []
    for entry in (part.strip() for part in chosen.split(",")):
        one = _named(devices, entry)
        if one is None or one in found:
            break
        found.append(one)
    return found


def _named(devices: Sequence[Physical], entry: str) -> Physical | None:
    if entry.isascii() and entry.isdecimal():
        named = [devices[int(entry)]] if int(entry) < len(devices) else []
    elif entry.startswith("MIG-"):
        named = [part for device in devices for part in device.instances if _is(part, entry)]
    elif entry.startswith("GPU-"):
        named = [device for device in devices if _is(device, entry)]
    else:
        named = []
    if len(named) != 1:
        return None
    return named[0].instances[0] if named[0].instances else named[0]


def _is(device: Physical, beginning: str) -> bool:
    return device.uuid is not None and device.uuid.lower().startswith(beginning.lower())
