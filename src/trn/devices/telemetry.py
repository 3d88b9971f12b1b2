"""What an accelerator is doing while something trains on it: read each second by a thread, never by who trains.

A driver may take its time, or hang; then there are no new readings, and nobody waits for one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trn.devices.amd import AmdSmi
from trn.devices.drivers import Driver, NoDriver, Use
from trn.devices.inventory import seen
from trn.devices.nvidia import Nvml

__all__ = ["Reading", "Telemetry"]

_EVERY_S = 1.0
_DRIVERS: Mapping[str, Callable[[], Driver]] = {"cuda": Nvml, "rocm": AmdSmi}
_LONGEST_STOP_S = 1.0


@dataclass(frozen=True)
class Reading:
    """What was read, and when, by time.perf_counter()."""

    at_s: float
    use: Use


class Telemetry:
    """Gives `hear` a new reading each second, from its thread, between `start` and `stop`.

    `kind` is cuda or rocm; `index` is the device as this process counts them. `reason` says why there is none of how
    busy it is, None while there is. A forked child has no thread, and hears nothing.
    """

    def __init__(
        self,
        kind: str,
        index: int,
        environ: Mapping[str, str],
        *,
        hear: Callable[[Reading], None],
        every_s: float = _EVERY_S,
    ) -> None:
        self.reason: str | None = "not read yet"
        self._kind, self._index, self._environ = kind, index, dict(environ)
        self._hear, self._every_s = hear, every_s
        self._pid = os.getpid()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trn-telemetry", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End it; a driver that hangs is left behind after a second."""
        self._over.set()
        if os.getpid() == self._pid and self._thread.is_alive():
            self._thread.join(_LONGEST_STOP_S)

    def _run(self) -> None:
        try:
            self._read_on()
        except NoDriver as error:
            self.reason = str(error)
        except Exception as error:  # noqa: BLE001 - a driver's library may fail in any way, and the run goes on
            self.reason = f"{type(error).__name__}: {error}"

    def _read_on(self) -> None:
        driver = _DRIVERS[self._kind]()
        try:
            _, mine = seen(driver, self._kind, self._environ)
            index = 0 if len(mine) == 1 else self._index  # a launcher may show each rank its own device alone
            if index >= len(mine):
                raise NoDriver(f"the driver shows {len(mine)} devices, and the run has more")
            while not self._over.is_set():
                use = driver.use(mine[index])
                self.reason = use.reasons.get("utilisation_pct")
                self._hear(Reading(time.perf_counter(), use))
                self._over.wait(self._every_s)
        finally:
            driver.close()
