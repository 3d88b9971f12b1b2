"""Who am I among the processes of a run, and what do they agree on. No torch in this file.

One process is a world of one: rank 0 of 1, which agrees with itself. Only rank 0 writes. What launched us is read from
the environment once, in `read_world`, by the first of these that is there:

    torchrun           RANK                  LOCAL_RANK                  WORLD_SIZE
    Open MPI           OMPI_COMM_WORLD_RANK  OMPI_COMM_WORLD_LOCAL_RANK  OMPI_COMM_WORLD_SIZE
    MPICH, Intel MPI   PMI_RANK              MPI_LOCALRANKID             PMI_SIZE
    Slurm (srun)       SLURM_PROCID          SLURM_LOCALID               SLURM_STEP_NUM_TASKS

mpirun comes before Slurm, since inside an allocation it starts its daemons with srun, whose variables its processes
then inherit. A batch script has SLURM_PROCID and SLURM_NTASKS too, and is one process: only a step has
SLURM_STEP_NUM_TASKS. Half a set, or a value that is no number, is an error, not a guess; an empty variable is none.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from trn.errors import UsageError

__all__ = ["World", "meeting_place", "read_world"]


@dataclass(frozen=True)
class World:
    """This process's place: `rank` in 0..world_size-1, `local_rank` in 0..local_world_size-1 on its machine."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    """How many of the world are on this machine; at least `local_rank + 1` where the launcher does not say."""

    @property
    def writes(self) -> bool:
        """Only rank 0 writes artifacts."""
        return self.rank == 0


@dataclass(frozen=True)
class _Launcher:
    """The variables by which one kind of launcher tells a process its place."""

    name: str
    rank: str
    local_rank: str
    size: str
    local_size: str = ""

    @property
    def variables(self) -> tuple[str, str, str]:
        return self.rank, self.local_rank, self.size


_TORCHRUN = _Launcher("torchrun", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_OPEN_MPI = _Launcher(
    "Open MPI",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
)
_MPICH = _Launcher("MPI", "PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS")
_SLURM = _Launcher("Slurm", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")


def read_world(environ: Mapping[str, str]) -> World:
    """The world that the launcher's variables describe, see above; without any, a world of one.

    Raises UsageError for a value that is no number, a missing variable, or a rank outside its world.
    """
    launcher = _launcher(environ)
    if launcher is None:
        return World()
    rank, local_rank, size = (_number(environ, name, launcher) for name in launcher.variables)
    for name, value in ((launcher.rank, rank), (launcher.local_rank, local_rank)):
        if value >= size:
            raise UsageError(
                f"expected less than {launcher.size}={size}, found {value}.", where=f"environment variable {name}"
            )
    return World(rank, local_rank, size, max(_local_size(environ, launcher), local_rank + 1))


def meeting_place(environ: Mapping[str, str]) -> tuple[str, int]:
    """The address and the port where the ranks of this world find each other: MASTER_ADDR and MASTER_PORT.

    A Slurm step on one machine needs neither: it meets on the loopback, at a port that follows from the job's id.
    Raises UsageError where they are missing, or the port is none.
    """
    address = environ.get("MASTER_ADDR", "").strip()
    port = environ.get("MASTER_PORT", "").strip()
    is_step = _launcher(environ) is _SLURM
    if not address and is_step and environ.get("SLURM_STEP_NUM_NODES", "").strip() == "1":
        address = "127.0.0.1"
    if not port and is_step:
        port = str(_slurm_port(environ))
    if not address or not port:
        missing = " and ".join(name for name, value in (("MASTER_ADDR", address), ("MASTER_PORT", port)) if not value)
        raise UsageError(
            f"{missing} {'are' if ' ' in missing else 'is'} not set, and the ranks cannot find each other.",
            where="environment",
            hint="Export MASTER_ADDR, the address of the machine with rank 0, and MASTER_PORT, a free port on it.",
        )
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"expected a port from 1 to 65535, found {port!r}.", where="environment variable MASTER_PORT")
    return address, int(port)


def _launcher(environ: Mapping[str, str]) -> _Launcher | None:
    """Whose variables count."""
    has = {name for name, value in environ.items() if value.strip()}
    if has & set(_TORCHRUN.variables):
        return _TORCHRUN
    if has & set(_OPEN_MPI.variables):
        return _OPEN_MPI
    # srun can set PMI_RANK and PMI_SIZE as well, but never the local rank of an mpirun
    if _MPICH.local_rank in has or (has & {_MPICH.rank, _MPICH.size} and _SLURM.size not in has):
        return _MPICH
    return _SLURM if _SLURM.size in has else None


def _number(environ: Mapping[str, str], name: str, launcher: _Launcher) -> int:
    text = environ.get(name, "").strip()
    where = f"environment variable {name}"
    if not text:
        there = ", ".join(one for one in launcher.variables if environ.get(one, "").strip())
        raise UsageError(
            f"expected a whole number, found nothing, although {launcher.name} has set {there}.",
            where=where,
            hint=f"Set {', '.join(launcher.variables)} all, or none of them.",
        )
    if not (text.isascii() and text.isdecimal()) or (name == launcher.size and int(text) == 0):
        expected = "a whole number above 0" if name == launcher.size else "a whole number"
        raise UsageError(f"expected {expected}, found {text!r}.", where=where)
    return int(text)


def _local_size(environ: Mapping[str, str], launcher: _Launcher) -> int:
    """How many ranks the launcher says are on this machine; 0 where it does not."""
    if launcher is _SLURM:
        return _slurm_local_size(environ)
    text = environ.get(launcher.local_size, "").strip()
    return int(text) if text.isascii() and text.isdecimal() else 0


def _slurm_local_size(environ: Mapping[str, str]) -> int:
    """From a list like `2(x3),1`: the tasks of each node of the step, in the order of the nodes."""
    tasks: list[int] = []
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        if found := re.fullmatch(r"\s*(\d+)(?:\(x(\d+)\))?\s*", part):
            tasks += [int(found[1])] * int(found[2] or 1)
    node = environ.get("SLURM_NODEID", "").strip()
    return tasks[int(node)] if node.isdecimal() and int(node) < len(tasks) else 0


def _slurm_port(environ: Mapping[str, str]) -> int:
    """The same for all tasks of a step, another one for the next; below the ports that systems hand out themselves."""
    numbers = [int(text) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID") if (text := environ.get(name, "")).isdecimal()]
    return 15000 + zlib.crc32(" ".join(map(str, numbers)).encode()) % 15000
