"""How many processes a run gets, and who starts them: options of `run` and `resume`, and the door's environment.

--nproc 1, or nothing     this door starts one process
--nproc N                 this door starts torchrun, which starts N; with --nnodes M, so does one door on each machine
no --nproc, and RANK ...  a launcher has started a door for each rank: rank 0's starts the one process of its rank and
                          keeps the job, the others become theirs
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from trn.devices import count_accelerators
from trn.errors import UsageError
from trn.launch import Layout
from trn.ranks import World, read_world

__all__ = ["Asked", "Processes", "process_options", "read_processes"]


@dataclass(frozen=True)
class Asked:
    """What the command line says; None and "" where it is silent."""

    nproc: int | None = None
    nnodes: int | None = None
    node_rank: int | None = None
    rdzv_endpoint: str = ""
    max_restarts: int = 0

    @property
    def machines(self) -> int:
        return self.nnodes or 1

    @classmethod
    def of(cls, given: dict[str, Any]) -> Asked:
        """Takes its own out of a command's parameters."""
        return cls(**{name: given.pop(name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Processes:
    """What this door starts, within the world that somebody else has started; one of the two is a single process."""

    layout: Layout
    world: World
    max_restarts: int = 0

    @property
    def is_follower(self) -> bool:
        """Whether the job is kept by the door of another rank, or on another machine."""
        return not self.world.writes or self.layout.node_rank > 0

    @property
    def size(self) -> int:
        """How many ranks the run has."""
        return max(self.layout.world_size, self.world.world_size)


def process_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options of `Asked`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


_OPTIONS = (
    click.option(
        "--nproc",
        type=click.IntRange(min=1),
        metavar="N",
        help="Processes on this machine, with `ddp: true`; else one for each accelerator. On a resume: as before.",
    ),
    click.option("--nnodes", type=click.IntRange(min=1), metavar="M", help="Machines; on each, start this command."),
    click.option("--node-rank", type=click.IntRange(min=0), metavar="K", help="Which machine this is, from 0."),
    click.option(
        "--rdzv-endpoint", default="", metavar="HOST:PORT", help="Where the machines meet: an address of machine 0."
    ),
    click.option(
        "--max-restarts",
        type=click.IntRange(min=0),
        default=0,
        metavar="R",
        help="How often to go on from the last checkpoint after a process was killed, lost or hung.",
    ),
)


def read_processes(
    asked: Asked, *, ddp: bool, device: str, before: int | None, launcher: str, environ: Mapping[str, str]
) -> Processes:
    """What to start. `before` is the world's size of the run that is resumed. Raises UsageError."""
    world = read_world(environ)
    is_ours = asked.nproc is not None or asked.machines > 1
    if world.world_size > 1:
        _check_started(asked, world, is_ours=is_ours)
    if not is_ours and world.world_size > 1:
        processes = Processes(Layout(1), world)
    else:
        nproc = asked.nproc or (_usual(asked, device, before, environ) if ddp else 1)
        processes = Processes(_layout(asked, nproc, world), World(), asked.max_restarts)
    if processes.size > 1 and not ddp:
        raise UsageError(
            f"expected `ddp: true` for {processes.size} processes, found false.",
            where="ddp",
            hint="Set it in the spec of a new run, or start this one with a single process.",
        )
    if processes.size > 1 and launcher == "inline":
        raise UsageError(
            f"there is one debugger, and the run has {processes.size} processes.",
            where="--launcher",
            hint="Give --nproc 1, or leave --launcher out.",
        )
    return processes


def _check_started(asked: Asked, world: World, *, is_ours: bool) -> None:
    """Refuse what cannot be asked of a door that a launcher has started as one of several."""
    place = f"this process was started as rank {world.rank} of {world.world_size}"
    if is_ours and asked.machines != world.world_size:
        raise UsageError(
            f"{place}: the run has as many processes already.",
            where="--nproc",
            hint=f"Leave it out; or, with one such process on each machine, give --nnodes {world.world_size} too.",
        )
    if asked.max_restarts and not is_ours:
        raise UsageError(f"{place}, and only its launcher can start it again.", where="--max-restarts")


def _usual(asked: Asked, device: str, before: int | None, environ: Mapping[str, str]) -> int:
    """How many processes a machine gets where nobody says."""
    if before is None:
        return max(1, 0 if device == "cpu" else count_accelerators(environ))
    if before % asked.machines:
        raise UsageError(
            f"the run has had {before} processes, which {asked.machines} machines cannot share evenly.",
            where="--nnodes",
            hint="Say with --nproc how many each machine is to start.",
        )
    return before // asked.machines


def _layout(asked: Asked, nproc: int, world: World) -> Layout:
    node_rank = asked.node_rank
    if asked.nnodes is None and (node_rank is not None or asked.rdzv_endpoint):
        where = "--rdzv-endpoint" if node_rank is None else "--node-rank"
        raise UsageError("it goes with several machines.", where=where, hint="Give --nnodes too.")
    if asked.machines == 1 and not node_rank:
        return Layout(nproc)
    if node_rank is None and world.world_size == asked.machines:
        node_rank = world.rank
    if node_rank is None or node_rank >= asked.machines:
        found = "nothing" if node_rank is None else str(node_rank)
        raise UsageError(f"expected a number below --nnodes {asked.machines}, found {found}.", where="--node-rank")
    host, _, port = asked.rdzv_endpoint.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 65536:
        raise UsageError(
            f"expected HOST:PORT, found {asked.rdzv_endpoint!r}.",
            where="--rdzv-endpoint",
            hint="Give an address of the machine with --node-rank 0, and a free port on it; the same on all machines.",
        )
    return Layout(nproc, asked.machines, node_rank, asked.rdzv_endpoint)
