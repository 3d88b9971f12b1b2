"""Two network namespaces stand for two machines: what one sees of the other is a cable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.compare import assert_identical, outcome
from support.processes import marked
from support.together import run, write_together

ADDRESSES = ("10.231.77.1", "10.231.77.2")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """The names of two namespaces that are connected."""
    names = (f"trn-a-{os.getpid()}", f"trn-b-{os.getpid()}")
    cable = (f"va{os.getpid()}", f"vb{os.getpid()}")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cable[0], "netns", names[0], "type", "veth", "peer", "name", cable[1], "netns", names[1])
        for name, end, address in zip(names, cable, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def start(host: str, rank: int, spec: Path, run_id: str, mark: str, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "trn", "run", "--config", str(spec), "--run-id", run_id, "--auto-resume"]
    command += ["--runs-dir", str(spec.parent / "runs"), "--nproc", "1", "--nnodes", "2", "--node-rank", str(rank)]
    command += ["--rdzv-endpoint", f"{ADDRESSES[0]}:29500"]
    variables = {"TRN_TEST_MARK": mark, "GLOO_SOCKET_IFNAME": f"v{'ab'[rank]}{os.getpid()}"}
    with open(log, "wb") as output:
        return subprocess.Popen(
            ["ip", "netns", "exec", host, *command], env=os.environ | variables, stdout=output, stderr=output
        )


@pytest.mark.slow
def test_a_run_on_two_hosts_survives_the_loss_of_one_of_its_ranks(hosts: tuple[str, str], tmp_path: Path) -> None:
    spec = write_together(tmp_path, pause_s=0.05, max_steps=60, grace_s=5.0)
    oracle, run_dir, mark = run(2, spec, "oracle"), tmp_path / "runs/r", f"hosts-{os.getpid()}"
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    metrics = run_dir / "reports/train_metrics.jsonl"
    try:
        doors = [start(hosts[rank], rank, spec, "r", mark, logs[rank]) for rank in range(2)]
        end = time.monotonic() + 60
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 12):
            assert time.monotonic() < end, [log.read_text() for log in logs]
            time.sleep(0.05)
        os.kill(rank_of(mark, 1), signal.SIGKILL)
        # the machine of the rank that was killed knows the signal
        assert [door.wait(40) for door in doors] == [87, 128 + 9], [log.read_text() for log in logs]
        assert outcome(run_dir)["status"] == "rank_lost"
        assert marked(mark) == []
        doors = [start(hosts[rank], rank, spec, "r", mark, logs[rank]) for rank in range(2)]
        assert [door.wait(90) for door in doors] == [0, 0], [log.read_text() for log in logs]
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
    assert_identical(run_dir, oracle)


def rank_of(mark: str, rank: int) -> int:
    for pid in marked(mark):
        folder = Path(f"/proc/{pid}")
        variables = (folder / "environ").read_bytes().split(b"\0")
        if b"trn.runner" in (folder / "cmdline").read_bytes().split(b"\0") and f"RANK={rank}".encode() in variables:
            return pid
    raise AssertionError(f"rank {rank} is not there")
