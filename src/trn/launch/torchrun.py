"""Several processes on this machine, started by torchrun, each with its place in RANK, LOCAL_RANK and WORLD_SIZE.

    door ──> agent ──> torchrun ──> ranks        all output in the job's log, in the order in which it is written

What keeps them together is in `trn.launch.agent`. torchrun itself never restarts a rank (--max-restarts 0): a run goes
on from its checkpoint as a new job, which is the door's to start. Over several machines the one with node rank 0 keeps
the store at which all meet, and its first process is rank 0 of all.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trn.devices import Lease
from trn.errors import StorageError
from trn.files import make_folder, remove
from trn.launch.launcher import Handle, Launcher
from trn.launch.local import LocalLauncher
from trn.ranks import error_file

__all__ = ["ATTEMPT", "FOLDER", "MEET_S", "Layout", "TorchrunLauncher"]

FOLDER = "@trn-folder@"
"""In the agent's command: a folder that is there while torchrun runs, and is removed afterwards."""
ATTEMPT = "@trn-attempt@"
"""In the agent's command: by what the machines know that they mean the same attempt, and none that is just ending."""
MEET_S = 300
"""How long the machines wait for each other."""


@dataclass(frozen=True)
class Layout:
    """How many processes, and on how many machines; `node_rank` is this one."""

    nproc: int
    nnodes: int = 1
    node_rank: int = 0
    rdzv_endpoint: str = ""
    """HOST:PORT of the machine with node rank 0, for several."""

    @property
    def world_size(self) -> int:
        return self.nproc * self.nnodes


class TorchrunLauncher(Launcher):
    """Starts `[python, ..., "-m", MODULE, ...]` as the ranks of a world.

    `grace_s`: how long they may take to end; `attempt`: how often the run was restarted before; `is_detached`: they
    outlive this process; `lease`: what they hold.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        grace_s: float = 30.0,
        attempt: int = 0,
        is_detached: bool = False,
        lease: Lease | None = None,
    ) -> None:
        self._layout, self._grace_s, self._attempt, self._is_detached = layout, grace_s, attempt, is_detached
        self._lease = lease

    def start(self, argv: Sequence[str], *, log: Path) -> Handle:
        make_folder(log.parent)
        failure = log.with_suffix(".failure.json")
        remove(failure)
        environ = self.environ() | {error_file.VARIABLE: str(failure)}
        command = self.command(argv, door_pid=os.getpid())
        return _TorchrunHandle(LocalLauncher(environ, lease=self._lease).start(command, log=log), failure)

    def command(self, argv: Sequence[str], *, door_pid: int | None, max_restarts: int = 0) -> list[str]:
        """The agent's command line; without a `door_pid` it watches whoever its parent is."""
        here = [sys.executable, "-u", "-P", "-m"]
        door = [] if door_pid is None else ["--door-pid", str(door_pid)]
        own = ["--nproc", str(self._layout.nproc), "--grace-s", f"{self._grace_s:g}"]
        own += ["--attempt", str(self._attempt)] if self._attempt else []
        own += ["--detached"] if self._is_detached else []
        own += ["--max-restarts", str(max_restarts)] if max_restarts else []
        torchrun = [*here, "trn.ranks.torchrun", *self._options(), "--no-python", *argv]
        return [*here, "trn.launch.agent", *door, *own, "--", *torchrun]

    def environ(self) -> dict[str, str]:
        """What the ranks get in addition to this process's variables, which stand where they say something else."""
        ours = {
            # the default hands the agent's own store to the ranks, also to those of a next attempt, who then read
            # the addresses of the dead
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            # what torchrun would set, and say so in five lines
            "OMP_NUM_THREADS": "1",
            # a peer that is gone would show in twenty lines of addresses
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(max(1, round(self._grace_s))),
        }
        if self._layout.nnodes == 1:
            ours["GLOO_SOCKET_IFNAME"] = "lo"
        return {name: value for name, value in ours.items() if name not in os.environ}

    def _options(self) -> list[str]:
        layout = self._layout
        one_machine = ["--standalone", "--local-addr", "127.0.0.1"]
        host, _, port = layout.rdzv_endpoint.rpartition(":")
        several = ["--node-rank", str(layout.node_rank), "--master-addr", host, "--master-port", port]
        several += ["--rdzv-conf", f"timeout={MEET_S}", "--rdzv-id", ATTEMPT]
        return [
            *("--nnodes", str(layout.nnodes), "--nproc-per-node", str(layout.nproc), "--max-restarts", "0"),
            *("--log-dir", FOLDER),
            *(one_machine if layout.nnodes == 1 else several),
        ]


class _TorchrunHandle(Handle):
    """The agent, which passes signals on to the ranks."""

    def __init__(self, agent: Handle, failure: Path) -> None:
        self._agent, self._failure = agent, failure
        self.pid = agent.pid

    def poll(self) -> int | None:
        return self._agent.poll()

    def wait(self, timeout_s: float) -> int | None:
        return self._agent.wait(timeout_s)

    def signal(self, number: int) -> None:
        self._agent.signal(number)

    def failure(self) -> tuple[int, str] | None:
        said = error_file.read(self._failure)
        with contextlib.suppress(StorageError):
            remove(self._failure)
        return said
