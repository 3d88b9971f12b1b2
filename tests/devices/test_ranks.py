"""Ranks that torchrun starts hold the lease themselves: they may outlive all that is between them and a door."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from support.door import until
from support.processes import alive
from trn.devices import Busy, Want, holders, lease
from trn.launch import Layout, TorchrunLauncher

RANK = """
import os, time
from trn.devices import adopt_lease
held = adopt_lease(os.environ)
print("rank", os.environ["RANK"], os.getpid(), os.getppid(), held and held.devices, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_ranks_hold_their_devices_when_torchrun_and_the_door_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRN_LEASES_DIR", str(tmp_path / "leases"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    core, log = min(os.sched_getaffinity(0)), tmp_path / "job.log"
    held = lease(Want(cpus=1), note="job=j run=r", environ=os.environ)
    child = TorchrunLauncher(Layout(2), lease=held).start([sys.executable, "-c", RANK], log=log)
    held.release()
    ranks: dict[str, tuple[int, int, str]] = {}

    def told() -> bool:
        found = re.findall(r"rank (\d) (\d+) (\d+) (.*)", log.read_text())
        ranks.update({rank: (int(pid), int(parent), devices) for rank, pid, parent, devices in found})
        return len(ranks) == 2

    try:
        until(told, timeout_s=90)
        assert [devices for _, _, devices in ranks.values()] == [f"('cpu:{core}',)"] * 2
        assert [one.pid for one in holders(os.environ).values()] == [ranks["0"][0]]
        os.kill(child.pid, signal.SIGKILL)
        os.kill(ranks["0"][1], signal.SIGKILL)
        child.wait(20)
        until(lambda: not alive(ranks["0"][1]))
        with pytest.raises(Busy):
            lease(Want(cpus=len(os.sched_getaffinity(0))), note="job=k", environ=os.environ)
        os.kill(ranks["0"][0], signal.SIGKILL)
        with pytest.raises(Busy):
            lease(Want(cpus=len(os.sched_getaffinity(0))), note="job=k", environ=os.environ)
    finally:
        for pid, _, _ in ranks.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        child.signal(signal.SIGKILL)
    until(lambda: not holders(os.environ))
