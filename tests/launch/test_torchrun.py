"""Ranks by the real torchrun: their places, their endings, and that whoever is killed nobody is left."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.door import until
from support.processes import alive, marked
from trn.launch import Handle, Layout, TorchrunLauncher

TOY = Path(__file__).parents[1] / "support" / "rank_toy.py"


def rank(what: str) -> list[str]:
    return [sys.executable, "-u", str(TOY), "rank", what]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "job.log"


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A variable that all processes of the test inherit; whatever is left at the end is killed."""
    value = f"torchrun-{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv("TRN_TEST_MARK", value)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield value
    for pid in marked(value):
        os.kill(pid, signal.SIGKILL)


def start(what: str, log: Path, nproc: int = 2) -> Handle:
    return TorchrunLauncher(Layout(nproc)).start(rank(what), log=log)


def ranks_of(log: Path, count: int = 2) -> list[int]:
    """The pids of the ranks, once they are there."""
    until(lambda: log.exists() and len(re.findall(r"rank \d is \d+", log.read_text())) == count, timeout_s=60)
    found = dict(re.findall(r"rank (\d) is (\d+)", log.read_text()))
    return [int(found[str(number)]) for number in range(count)]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


@pytest.mark.slow
def test_each_rank_has_its_place_and_the_output_of_all_is_in_the_log(mark: str, log: Path, tmp_path: Path) -> None:
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "GLOO_SOCKET_IFNAME"]
    names.append("PYTHONHASHSEED")
    # one write: the parts of a print would mix with the other rank's
    line = f"' '.join(os.environ[name] for name in {names!r}) + chr(10)"
    code = f"import os; os.write(1, ({line}).encode()); assert int(os.environ['MASTER_PORT'])"
    child = TorchrunLauncher(Layout(2)).start([sys.executable, "-c", code], log=log)
    assert child.wait(60) == 0, log.read_text()
    assert child.failure() is None
    assert sorted(log.read_text().splitlines()) == ["0 0 2 2 127.0.0.1 lo 0", "1 1 2 2 127.0.0.1 lo 0"]
    assert [path.name for path in log.parent.iterdir()] == ["job.log"]
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not marked(mark)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "failure", "status"),
    [
        ("fail=1", (70, "rank 1: ValueError: a bad batch"), 70),
        ("exit=0:78", (78, "rank 0 ended with exit status 78"), 78),
        ("kill=1", (-signal.SIGKILL, "rank 1 was killed by SIGKILL"), 128 + signal.SIGKILL),
    ],
)
def test_the_first_rank_that_failed_is_named_in_one_line_and_torchrun_says_nothing(
    mark: str, log: Path, what: str, failure: tuple[int, str], status: int
) -> None:
    child = start(what, log)
    assert child.wait(60) == status
    assert child.failure() == failure
    said = log.read_text().splitlines()
    assert [line for line in said if not line.startswith("rank ")] == []
    assert [path.name for path in log.parent.iterdir()] == ["job.log"]
    assert not marked(mark)


@pytest.mark.slow
def test_a_rank_that_takes_its_time_to_end_is_not_hurried_by_torchrun(mark: str, log: Path) -> None:
    """A SIGTERM to torchrun itself would reach the ranks a second time, and start its timer."""
    child = start("wait", log)
    torchrun = parent_of(ranks_of(log)[0])
    assert parent_of(torchrun) == child.pid
    child.signal(signal.SIGUSR1)
    assert child.wait(30) == 75
    assert any(re.fullmatch(r"rank \d ends after SIGUSR1", line) for line in log.read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["agent", "torchrun", "rank 0", "rank 1"])
@pytest.mark.parametrize("is_stopped", [False, True], ids=["running", "stopped"])
def test_whoever_is_killed_nobody_is_left_after_30_s(
    mark: str, log: Path, tmp_path: Path, victim: str, is_stopped: bool
) -> None:
    """`stopped`: another rank than the victim hears nothing. Beside a killed agent, torchrun has its own timer."""
    if victim == "agent" and is_stopped:
        launcher = TorchrunLauncher(Layout(2), grace_s=5)
    else:
        launcher = TorchrunLauncher(Layout(2))
    child = launcher.start(rank("wait"), log=log)
    ranks = ranks_of(log)
    pids = {"agent": child.pid, "torchrun": parent_of(ranks[0]), "rank 0": ranks[0], "rank 1": ranks[1]}
    if is_stopped:
        os.kill(ranks[0 if victim == "rank 1" else 1], signal.SIGSTOP)
    os.kill(pids[victim], signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in pids.values()), timeout_s=30)
    assert child.wait(10) == (-signal.SIGKILL if victim == "agent" else 128 + signal.SIGKILL)
    until(lambda: not marked(mark), timeout_s=5)
    if victim.startswith("rank"):
        assert child.failure() == (-signal.SIGKILL, f"{victim} was killed by SIGKILL")
        assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.slow
def test_a_door_that_is_killed_takes_its_ranks_with_it_and_leaves_no_file(mark: str, log: Path, tmp_path: Path) -> None:
    code = f"""
import os, sys
from pathlib import Path
from trn.launch import Layout, TorchrunLauncher
child = TorchrunLauncher(Layout(2)).start({rank("wait")!r}, log=Path({str(log)!r}))
print(child.pid, flush=True)
child.wait(100)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as door:
        assert door.stdout is not None
        agent = int(door.stdout.readline())
        ranks = ranks_of(log)
        door.kill()
    until(lambda: not any(alive(pid) for pid in (agent, *ranks)), timeout_s=30)
    until(lambda: not marked(mark), timeout_s=5)
    assert "rank 0 ends after SIGTERM" in log.read_text()
    assert [path.name for path in log.parent.iterdir()] == ["job.log"]
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.slow
def test_a_signal_while_torchrun_is_being_imported_ends_it(mark: str, log: Path) -> None:
    child = start("wait", log)
    time.sleep(0.5)
    child.signal(signal.SIGINT)
    assert child.wait(30) == 128 + signal.SIGTERM
    assert not marked(mark)
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_two_machines_share_one_world(mark: str, tmp_path: Path) -> None:
    """Two agents on this machine stand for two machines: the ranks are in the order of the node ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import os; print(os.environ['RANK'], os.environ['LOCAL_RANK'], os.environ['WORLD_SIZE'])"
    children = []
    for node_rank in (1, 0):
        layout = Layout(2, nnodes=2, node_rank=node_rank, rdzv_endpoint=f"127.0.0.1:{port}")
        log = tmp_path / f"{node_rank}.log"
        children.append(TorchrunLauncher(layout).start([sys.executable, "-c", code], log=log))
    assert [child.wait(60) for child in children] == [0, 0]
    assert sorted((tmp_path / "0.log").read_text().splitlines()) == ["0 0 4", "1 1 4"]
    assert sorted((tmp_path / "1.log").read_text().splitlines()) == ["2 0 4", "3 1 4"]
    assert not marked(mark)


@pytest.mark.slow
def test_a_meeting_place_that_is_taken_is_one_line(mark: str, log: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        layout = Layout(1, nnodes=2, node_rank=0, rdzv_endpoint=f"127.0.0.1:{taken.getsockname()[1]}")
        child = TorchrunLauncher(layout).start(rank("ok"), log=log)
        assert child.wait(60) == 87
    (line,) = log.read_text().splitlines()
    assert line.startswith("ranks error [rank_lost]: torchrun could not start the ranks: ")
    assert child.failure() == (87, line.partition(": ")[2])
    assert not marked(mark)


@pytest.mark.slow
def test_a_machine_that_waits_for_the_others_can_be_stopped(mark: str, log: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        layout = Layout(1, nnodes=2, node_rank=0, rdzv_endpoint=f"127.0.0.1:{free.getsockname()[1]}")
    child = TorchrunLauncher(layout).start(rank("ok"), log=log)
    assert child.wait(4) is None
    child.signal(signal.SIGTERM)
    assert child.wait(15) == 128 + signal.SIGTERM
    assert log.read_text() == ""
    assert not marked(mark)
