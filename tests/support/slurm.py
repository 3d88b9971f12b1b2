"""A Slurm of the test's own: munged, slurmctld and two slurmd, which stand for two machines, on the loopback.

Needs root, and Debian's packages slurm-wlm and munge. Nothing of a Slurm that is installed is touched: keys, sockets,
ports and folders are its own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["is_here", "slurm"]

_PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "sinfo")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"

_CONFIG = """
ClusterName=test
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2 RealMemory=1000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2 RealMemory=1000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def is_here() -> bool:
    """Whether this machine can run it."""
    return os.geteuid() == 0 and all(shutil.which(program, path=_PATH) for program in _PROGRAMS)


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[Mapping[str, str]]:
    """A Slurm whose nodes are idle; gives the environment for srun and sbatch."""
    folder.chmod(0o755)
    for part in folder.parents:  # munged's user must come to its socket
        with contextlib.suppress(PermissionError):
            part.chmod(part.stat().st_mode | 0o011)
    (folder / "state").mkdir()
    host = socket.gethostname().partition(".")[0]
    controller, first, second = _free_ports(3)
    (folder / "slurm.conf").write_text(
        _CONFIG.format(
            host=host,
            folder=folder,
            controller=controller,
            first=first,
            second=second,
            # a job's machines meet at a port made from its number: two of these Slurms at a time must not share one
            first_job=1 + secrets.randbelow(1_000_000),
        )
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environ |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _PATH}
    with contextlib.ExitStack() as stack:
        stack.enter_context(_munged(folder))
        for command in (["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]):
            stack.enter_context(_running(command, folder, environ))
        _wait_until_idle(environ)
        try:
            yield environ
        finally:
            _end_jobs(environ)


@contextlib.contextmanager
def _munged(folder: Path) -> Iterator[None]:
    own = folder / "munge"
    own.mkdir()
    key = own / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    for path in (own, key):
        shutil.chown(path, "munge", "munge")
    own.chmod(0o755)
    options = [f"--key-file={key}", f"--socket={folder}/munge.socket", f"--pid-file={own}/pid"]
    options += [f"--log-file={own}/log", f"--seed-file={own}/seed", "--foreground", "--force"]
    with _running(["munged", *options], folder, {"PATH": _PATH}):
        yield


@contextlib.contextmanager
def _running(command: list[str], folder: Path, environ: Mapping[str, str]) -> Iterator[None]:
    with open(folder / "output.log", "ab") as output:
        program = shutil.which(command[0], path=_PATH)
        assert program is not None, command[0]
        process = subprocess.Popen([program, *command[1:]], stdout=output, stderr=output, env=dict(environ))
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_idle(environ: Mapping[str, str]) -> None:
    deadline = time.monotonic() + 30
    said = ""
    while said.split() != ["idle", "idle"]:
        assert time.monotonic() < deadline, f"the nodes are not idle: {said}"
        time.sleep(0.1)
        said = _said(environ, "sinfo", "-h", "-N", "-o", "%T")


def _end_jobs(environ: Mapping[str, str]) -> None:
    """Kill what a failed test has left running: slurmd leaves it to itself when it ends."""
    deadline = time.monotonic() + 15
    while _said(environ, "squeue", "-h", "-o", "%i") and time.monotonic() < deadline:
        _said(environ, "scancel", "--full", "--signal=KILL", "--user=root")
        _said(environ, "scancel", "--user=root")
        time.sleep(0.2)


def _said(environ: Mapping[str, str], *command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=dict(environ), check=False, timeout=30)
    return done.stdout or done.stderr


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
