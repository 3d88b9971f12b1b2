"""AMD's accelerators, by the module `amdsmi` that comes with ROCm."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from trn.devices.drivers import Driver, NoDriver, Physical, Use, pci_address

__all__ = ["AmdSmi"]


class AmdSmi(Driver):
    """Raises NoDriver where there is no such module, or no driver under it."""

    def __init__(self) -> None:
        try:
            import amdsmi
        except ImportError:
            raise NoDriver("amdsmi is not installed: it comes with ROCm") from None
        except (OSError, KeyError, AttributeError) as error:  # it loads its library while it is imported
            raise NoDriver(f"amdsmi: {error}") from None
        self._smi = amdsmi
        try:
            amdsmi.amdsmi_init()
        except amdsmi.AmdSmiException as error:
            raise NoDriver(f"amdsmi: {_line(error)}") from None

    def devices(self) -> list[Physical]:
        smi = self._smi
        try:
            handles = smi.amdsmi_get_processor_handles()
        except smi.AmdSmiException as error:
            raise NoDriver(f"amdsmi: {_line(error)}") from None
        found = []
        for handle in handles:
            bus = self._ask(handle, smi.amdsmi_get_gpu_device_bdf)
            asic = self._ask(handle, smi.amdsmi_get_gpu_asic_info) or {}
            found.append(
                Physical(
                    name=asic.get("market_name"),
                    uuid=self._ask(handle, smi.amdsmi_get_gpu_device_uuid),
                    address=None if bus is None else pci_address(bus),
                    handle=handle,
                )
            )
        return found

    def use(self, device: Physical) -> Use:
        smi, handle, reasons = self._smi, device.handle, {}
        vram = smi.AmdSmiMemoryType.VRAM

        def read(field: str, ask: Callable[[], Any]) -> float | None:
            try:
                value = ask()
            except smi.AmdSmiException as error:
                reasons[field] = f"amdsmi: {_line(error)}"
                return None
            if isinstance(value, (int, float)):
                return value
            reasons[field] = f"amdsmi: {value}"  # "N/A"
            return None

        total = read("memory_total_bytes", lambda: smi.amdsmi_get_gpu_memory_total(handle, vram))
        used = read("memory_free_bytes", lambda: smi.amdsmi_get_gpu_memory_usage(handle, vram))
        busy = read("utilisation_pct", lambda: smi.amdsmi_get_gpu_activity(handle)["gfx_activity"])
        power = read("power_w", lambda: _power(smi.amdsmi_get_power_info(handle)))
        if total is None and used is not None:
            reasons["memory_free_bytes"] = reasons["memory_total_bytes"]
        return Use(
            memory_total_bytes=None if total is None else int(total),
            memory_free_bytes=None if total is None or used is None else int(total - used),
            utilisation_pct=None if busy is None else float(busy),
            power_w=None if power is None else float(power),
            reasons=reasons,
        )

    def close(self) -> None:
        with contextlib.suppress(self._smi.AmdSmiException):
            self._smi.amdsmi_shut_down()

    def _ask(self, handle: Any, question: Callable[[Any], Any]) -> Any:
        try:
            return question(handle)
        except self._smi.AmdSmiException:
            return None


def _power(told: dict[str, Any]) -> Any:
    """In watts; which of the two is filled depends on the device."""
    current = told.get("current_socket_power")
    return current if isinstance(current, (int, float)) else told.get("average_socket_power")


def _line(error: Exception) -> str:
    """Its errors are written over several lines."""
    return " ".join(str(error).split())
