"""What this machine can compute on, and with. No torch here: what is there is asked of the system, not of a framework.

    drivers, /proc ──> inventory ──> what the caller may use ──> lease ──> what nobody else gets meanwhile
                                └──> readings each second ──> step records and heartbeats

Here: how many threads a run gets, which accelerators and cores there are, what they are doing, who holds them, and how
memory is kept. Not here: in which order jobs wait for devices (jobs), and what a trainer does with them.
"""

from trn.devices.accelerators import count_accelerators
from trn.devices.cpu import cpu_threads, usable_cores
from trn.devices.inventory import Device, Inventory, accelerators, inventory
from trn.devices.lease import DEVICES, Lease, adopt_lease, cores_before_lease, holders, lease, require_there
from trn.devices.memory import keep_freed_memory
from trn.devices.want import Busy, Holder, NotThere, Want

__all__ = [
    "DEVICES",
    "Busy",
    "Device",
    "Holder",
    "Inventory",
    "Lease",
    "NotThere",
    "Want",
    "accelerators",
    "adopt_lease",
    "cores_before_lease",
    "count_accelerators",
    "cpu_threads",
    "holders",
    "inventory",
    "keep_freed_memory",
    "lease",
    "require_there",
    "usable_cores",
]
