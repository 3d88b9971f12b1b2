"""Leases: devices that nobody else gets until the last process that holds them is gone.

    lease(want) ── choosing, alone ──> all of it, locked ──> Lease ──fds──> keeper ──fds──> runner
                                   └─> Busy or NotThere, and nothing is locked

The lock belongs to the open file, which every process that was handed the descriptor shares: the lease ends when the
last of them has closed it or died, however it died. A forked child closes them, so that no worker of a killed run
keeps its devices. Not promised: that a program which was not started through here leaves leased devices alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Mapping, Sequence
from types import TracebackType

from trn.devices.cpu import usable_cores
from trn.devices.folder import LeasesFolder, leases_path, lock_at_once
from trn.devices.inventory import Device, Inventory, accelerators, cores
from trn.devices.want import Holder, Want, busy, not_there
from trn.records import utc_now

__all__ = ["DEVICES", "FDS", "Lease", "adopt_lease", "cores_before_lease", "holders", "lease", "require_there"]

FDS = "TRN_LEASE_FDS"
"""What a child is told of the descriptors it inherits: `FD:INODE` of each."""
DEVICES = "TRN_LEASE_DEVICES"
"""The devices of the lease, as the caller counts them, in the order in which the child sees them."""
CORES = "TRN_LEASE_CORES"
"""The cores by number that the caller could use, where the child runs on some of them only."""


class Lease:
    """What this process holds, until `release` or its end; a context manager."""

    def __init__(self, devices: Sequence[str] = (), fds: Sequence[int] = (), shown: Mapping[str, str] | None = None):
        self.devices = tuple(devices)
        """cuda:0, cpu:2 ...: as the caller counts them."""
        self.fds = tuple(fds)
        """Not inheritable: to be passed on one by one."""
        self._shown = dict(shown or {})
        if self.fds:
            _held.add(self)

    @property
    def cpus(self) -> tuple[int, ...]:
        """The cores by number; none: no core was asked for, and all may be used."""
        return tuple(int(name[4:]) for name in self.devices if name.startswith("cpu:"))

    def environ(self) -> dict[str, str]:
        """The variables by which a child sees its devices and nothing else, and knows the lease."""
        if not self.devices:
            return {}
        descriptors = ",".join(f"{fd}:{os.fstat(fd).st_ino}" for fd in self.fds)
        return {FDS: descriptors, DEVICES: ",".join(self.devices), **self._shown}

    def release(self) -> None:
        """Let go here; processes that were handed the descriptors hold on."""
        _held.discard(self)
        fds, self.fds = self.fds, ()
        for fd in fds:
            os.close(fd)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


_held: set[Lease] = set()


def _close_in_child() -> None:
    for one in list(_held):
        one.release()


os.register_at_fork(after_in_child=_close_in_child)


def lease(want: Want, *, note: str, environ: Mapping[str, str]) -> Lease:
    """All that is wanted, for this process and those it hands it to; `note` is `job=.. run=..`.

    Never waits for a holder. Raises NotThere or Busy, naming what is there or who holds it, and StorageError where the
    folder of leases cannot be used; then nothing is held.
    """
    if want.is_empty:
        return Lease()
    found = _found(want, environ)
    groups = _groups(want, found)
    taken: dict[str, int] = {}
    chosen: list[Device] = []
    with LeasesFolder(environ) as folder, contextlib.ExitStack() as undo, folder.choosing():
        for candidates, count in groups:
            mine = _take(folder, candidates, count, taken, undo)
            while len(mine) < count:
                held = _held_by(folder, candidates, mine)
                free = len(candidates) - len(held)
                if free < count:
                    raise busy(want, held, free)
                # let go since they were tried; while we choose nobody else takes them
                left = [one for one in candidates if one not in mine]
                mine += _take(folder, left, count - len(mine), taken, undo)
            chosen += sorted(mine, key=candidates.index if want.accelerators else found.devices.index)
        line = f"{note} since={utc_now()} pid={os.getpid()}"
        for fd in taken.values():
            _leave_note(fd, line)
        undo.pop_all()
    shown = _shown(chosen)
    if want.cpus:
        shown[CORES] = os.environ.get(CORES) or ",".join(str(core) for core in usable_cores())
    return Lease([one.id for one in chosen], [taken[one.key] for one in chosen], shown)


def require_there(want: Want, environ: Mapping[str, str]) -> None:
    """Raise NotThere, or StorageError, where `lease` would whoever holds what; nothing is taken."""
    if not want.is_empty:
        _groups(want, _found(want, environ))
        LeasesFolder(environ).close()


def holders(environ: Mapping[str, str]) -> dict[str, Holder]:
    """Who holds what on this machine, by the key of the device. Raises StorageError."""
    if not os.path.lexists(leases_path(environ)):
        return {}
    with LeasesFolder(environ) as folder, folder.choosing():
        notes = {name: folder.note(name) for name in folder.names()}
    return {name: Holder.of_note(note) for name, note in notes.items() if note is not None}


def adopt_lease(environ: Mapping[str, str]) -> Lease | None:
    """The lease that this process was started with, from now on held by it too; its note names this process.

    None where there is none, or the descriptors are not there: a lease is handed from a process to its child, and what
    that one starts only finds the variables.
    """
    devices = [name for name in environ.get(DEVICES, "").split(",") if name]
    fds = [_inherited(entry) for entry in environ.get(FDS, "").split(",")]
    mine = [fd for fd in fds if fd is not None]
    if not devices or len(mine) != len(devices):
        return None
    if known := next((one for one in _held if one.fds == tuple(mine)), None):
        return known  # the child's program runs in the process of its door
    for fd in mine:
        os.set_inheritable(fd, False)
        if environ.get("RANK", "0") == "0":
            words = os.pread(fd, 4096, 0).decode(errors="replace").split()
            _leave_note(fd, " ".join([*(word for word in words if not word.startswith("pid=")), f"pid={os.getpid()}"]))
    return Lease(devices, mine, {name: environ[name] for name in _VARIABLES if name in environ})


_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", CORES)


def cores_before_lease(environ: Mapping[str, str]) -> tuple[int, ...]:
    """The cores, by number, of whoever started the leased job that this process is of; none where it is of none."""
    given = environ.get(CORES, "").split(",")
    return tuple(int(one) for one in given if one.isascii() and one.isdecimal() and len(one) < 6)


def _found(want: Want, environ: Mapping[str, str]) -> Inventory:
    """What it can be taken from; drivers take their time, and are asked for no more than is needed."""
    devices, reasons = cores(), {}
    if want.accelerators or want.count:
        more = accelerators(environ, with_use=want.count > 0)
        devices, reasons = (*more.devices, *devices), dict(more.reasons)
    return Inventory(devices, reasons)


def _groups(want: Want, found: Inventory) -> list[tuple[list[Device], int]]:
    """From which devices how many are to be taken, the best first. Raises NotThere."""
    here = {device.id: device for device in found.accelerators}
    groups: list[tuple[list[Device], int]] = []
    if want.accelerators:
        for name in want.accelerators:
            if name not in here:
                raise not_there(want, found, f"there is no {name}")
        groups.append(([here[name] for name in want.accelerators], len(want.accelerators)))
    if want.count:
        roomy = sorted(found.of("cuda", "rocm"), key=lambda one: -(one.memory_free_bytes or 0))
        groups.append((roomy, want.count))
    if want.cpus:
        groups.append(([*found.of("cpu")], want.cpus))
    for candidates, count in groups:
        if len(candidates) < count:
            raise not_there(want, found, f"there are {len(candidates)}")
    return groups


def _take(
    folder: LeasesFolder, candidates: Sequence[Device], count: int, taken: dict[str, int], undo: contextlib.ExitStack
) -> list[Device]:
    """Lock the first `count` that are free; fewer where there are no more."""
    mine: list[Device] = []
    for device in candidates:
        if len(mine) == count:
            break
        fd = folder.open(f"{device.key}.lock")
        if lock_at_once(fd):
            undo.callback(os.close, fd)
            taken[device.key] = fd
            mine.append(device)
        else:
            os.close(fd)
    return mine


def _held_by(folder: LeasesFolder, candidates: Sequence[Device], mine: Sequence[Device]) -> list[tuple[Device, Holder]]:
    notes = [(one, folder.note(one.key)) for one in candidates if one not in mine]
    return [(one, Holder.of_note(note)) for one, note in notes if note is not None]


def _leave_note(fd: int, line: str) -> None:
    with contextlib.suppress(OSError):  # a courtesy; on a full disk the lock holds all the same
        os.ftruncate(fd, 0)
        os.pwrite(fd, line.encode(), 0)


def _shown(chosen: Sequence[Device]) -> dict[str, str]:
    """The variables that hide all other accelerators."""
    for kind, names in (("cuda", ("CUDA_VISIBLE_DEVICES",)), ("rocm", ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"))):
        if mine := [one.shown_as or "" for one in chosen if one.kind == kind]:
            # where UUIDs are unknown the indices are those of the bus, which is not CUDA's own order
            return dict.fromkeys(names, ",".join(mine)) | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return {}


def _inherited(entry: str) -> int | None:
    """The descriptor, where it is the one that was meant and its lock is ours."""
    number, _, inode = entry.partition(":")
    try:
        fd = int(number)
        status = os.fstat(fd)
        fcntl.fcntl(fd, fcntl.F_GETFD)
        return fd if status.st_ino == int(inode) and lock_at_once(fd) else None
    except (OSError, ValueError, OverflowError):
        return None
