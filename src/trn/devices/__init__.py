"""What this machine can compute on, and with. No torch here: what is there is asked of the system, not of a framework.

Here: how many threads a run gets, how many accelerators there are, and how memory is kept. Leases and telemetry will
belong here too.
"""

from trn.devices.accelerators import count_accelerators
from trn.devices.cpu import cpu_threads
from trn.devices.memory import keep_freed_memory

__all__ = ["count_accelerators", "cpu_threads", "keep_freed_memory"]
