"""What a program that is started apart inherits of the process that starts it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from support import kept
from support.door import until
from support.kept import enqueue
from trn.devices import Want, cores_before_lease, lease
from trn.jobs import open_store
from trn.launch import LocalLauncher

ALL = sorted(os.sched_getaffinity(0))
PINNED = """
import os, sys
from pathlib import Path
from trn.doors import apart
told = "import os; left = [name for name in os.environ if name.startswith('TRN_LEASE_')];"
told += "print(sorted(os.sched_getaffinity(0)), left, file=open('server', 'w'))"
apart._server = lambda runs_dir: [sys.executable, "-c", told]
print(sorted(os.sched_getaffinity(0)), flush=True)
apart.serve_if_needed(Path(sys.argv[1]))
print(sorted(os.sched_getaffinity(0)), flush=True)
"""


def test_who_serves_the_queue_is_not_bound_to_the_cores_of_the_job_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.stand_in(monkeypatch, tmp_path)
    runs_dir, log = tmp_path / "runs", tmp_path / "log"
    with open_store(runs_dir) as store:
        enqueue(store, "waiting")
    with lease(Want(cpus=1), note="job=j run=r", environ=os.environ) as held:
        child = LocalLauncher(lease=held).start([sys.executable, "-c", PINNED, str(runs_dir)], log=log)
        assert child.wait(60) == 0, log.read_text()
    assert log.read_text() == f"{ALL[:1]}\n{ALL[:1]}\n"
    until(lambda: (runs_dir / "server").exists() and (runs_dir / "server").read_text().endswith("\n"))
    assert (runs_dir / "server").read_text() == f"{ALL} []\n"


def test_a_job_within_a_job_still_knows_the_cores_of_who_began_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRN_LEASE_CORES", "3,5")
    with lease(Want(cpus=1), note="job=j run=r", environ=os.environ) as held:
        assert cores_before_lease(held.environ()) == (3, 5)
    assert cores_before_lease({}) == ()
    assert cores_before_lease({"TRN_LEASE_CORES": "x,-1,2"}) == (2,)
