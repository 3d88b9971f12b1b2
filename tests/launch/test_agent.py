"""The agent between a door and its ranks, with real processes in the place of torchrun: nothing is ever left behind."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.door import until
from support.processes import alive, marked
from trn.launch import LocalLauncher
from trn.launch.torchrun import ATTEMPT, FOLDER

pytestmark = pytest.mark.slow

TOY = str(Path(__file__).parents[1] / "support" / "rank_toy.py")
AGENT = [sys.executable, "-u", "-P", "-m", "trn.launch.agent"]


def agent(what: str, *options: str, nproc: int = 2) -> list[str]:
    return [*AGENT, "--nproc", str(nproc), *options, "--", sys.executable, "-u", TOY, "spawn", str(nproc), what, FOLDER]


class Started:
    """A door in a process of its own that starts an agent, which starts two ranks."""

    def __init__(self, tmp_path: Path, mark: str, what: str, *options: str) -> None:
        self.log, self.mark = tmp_path / "job.log", mark
        command = agent(what, *options)
        code = f"""
import os, sys, time
from pathlib import Path
from trn.launch import LocalLauncher
command = {command!r}
command[command.index("--"):command.index("--")] = ["--door-pid", str(os.getpid())]
child = LocalLauncher().start(command, log=Path({str(self.log)!r}))
print(child.pid, flush=True)
while child.poll() is None:
    child.wait(1)
code = child.poll()
sys.exit(code if code >= 0 else 128 - code)
"""
        self.door = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert self.door.stdout is not None
        self.agent = int(self.door.stdout.readline())
        until(lambda: len(self._said(r"rank \d is (\d+)")) == 2 and self._said(r"spawned (\d+)"))
        (self.torchrun,) = self._said(r"spawned (\d+)")
        self.ranks = [self._said(rf"rank {rank} is (\d+)")[0] for rank in range(2)]

    def _said(self, pattern: str) -> list[int]:
        text = self.log.read_text() if self.log.exists() else ""
        return [int(found) for found in re.findall(pattern, text)]

    def pid(self, who: str) -> int:
        return {
            "door": self.door.pid,
            "agent": self.agent,
            "torchrun": self.torchrun,
            "rank 0": self.ranks[0],
            "rank 1": self.ranks[1],
        }[who]

    def wait_for_all(self, timeout_s: float = 30) -> float:
        """Until no process is left; returns how long that took."""
        since = time.monotonic()
        pids = [self.agent, self.torchrun, *self.ranks]
        until(lambda: not any(alive(pid) for pid in pids), timeout_s=timeout_s)
        self.door.wait(timeout_s)
        until(lambda: not marked(self.mark), timeout_s=5)
        return time.monotonic() - since


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A variable that all processes of the test inherit; whatever is left at the end is killed."""
    value = f"agent-{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv("TRN_TEST_MARK", value)
    yield value
    for pid in marked(value):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("what", "expected"), [("ok", 0), ("exit=1:78", 78), ("kill=1", 128 + signal.SIGKILL), ("exit=0:3", 3)]
)
def test_the_exit_status_is_that_of_what_was_started(mark: str, tmp_path: Path, what: str, expected: int) -> None:
    child = LocalLauncher().start(agent(what), log=tmp_path / "job.log")
    assert child.wait(20) == expected
    until(lambda: not marked(mark))


def test_a_program_that_is_not_there_is_one_line_and_127(tmp_path: Path) -> None:
    child = LocalLauncher().start([*AGENT, "--nproc", "1", "--", "/not/there"], log=tmp_path / "job.log")
    assert child.wait(20) == 127
    assert (tmp_path / "job.log").read_text() == "trn: cannot start /not/there: No such file or directory\n"


def test_its_folder_is_there_for_the_program_and_gone_afterwards(tmp_path: Path) -> None:
    code = "import os, sys; print(os.path.isdir(sys.argv[1]), sys.argv[1])"
    log = tmp_path / "job.log"
    child = LocalLauncher().start([*AGENT, "--nproc", "1", "--", sys.executable, "-c", code, FOLDER], log=log)
    assert child.wait(20) == 0
    was_there, folder = log.read_text().split()
    assert was_there == "True"
    assert not Path(folder).exists()


def test_folders_of_agents_that_were_killed_are_removed(
    mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    left, used, new = (tmp_path / f"trn-ranks-{name}" for name in ("left", "used", "new"))
    for folder in (left, used, new):
        folder.mkdir()
        (folder / "error.json").touch()
    for folder in (left, used):
        os.utime(folder, (1, 1))
    fd = os.open(used, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    child = LocalLauncher().start(agent("ok"), log=tmp_path / "job.log")
    assert child.wait(20) == 0
    os.close(fd)
    assert {path.name for path in tmp_path.glob("trn-ranks-*")} == {used.name, new.name}


def test_the_folder_of_a_running_agent_is_locked(mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    started = Started(tmp_path, mark, "wait")
    (folder,) = tmp_path.glob("trn-ranks-*")
    os.utime(folder, (1, 1))
    other = LocalLauncher().start(agent("ok"), log=tmp_path / "other.log")
    assert other.wait(20) == 0
    assert folder.is_dir()
    os.kill(started.agent, signal.SIGKILL)
    started.wait_for_all()
    assert folder.is_dir()
    os.utime(folder, (1, 1))
    assert LocalLauncher().start(agent("ok"), log=tmp_path / "other.log").wait(20) == 0
    assert not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_reaches_each_rank_once_and_not_their_parent(
    mark: str, tmp_path: Path, number: signal.Signals
) -> None:
    started = Started(tmp_path, mark, "wait")
    os.kill(started.agent, number)
    started.wait_for_all()
    assert started.door.returncode == 75
    ends = sorted(line for line in started.log.read_text().splitlines() if "ends after" in line)
    # the second to end may have been asked again by its parent, which has seen the first end
    assert ends[0].startswith(f"rank 0 ends after {number.name}")
    assert ends[1].startswith(f"rank 1 ends after {number.name}")
    assert {f"rank {rank} ends after {number.name}" for rank in (0, 1)} & set(ends)


@pytest.mark.parametrize("victim", ["door", "agent", "torchrun", "rank 0", "rank 1"])
def test_whoever_is_killed_nobody_is_left(mark: str, tmp_path: Path, victim: str) -> None:
    started = Started(tmp_path, mark, "wait")
    os.kill(started.pid(victim), signal.SIGKILL)
    started.wait_for_all()
    assert started.door.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["door", "torchrun", "rank 0"])
def test_a_stopped_rank_does_not_outlive_the_others(mark: str, tmp_path: Path, victim: str) -> None:
    started = Started(tmp_path, mark, "wait")
    os.kill(started.ranks[1], signal.SIGSTOP)
    os.kill(started.pid(victim), signal.SIGKILL)
    assert started.wait_for_all() < 20


def test_a_rank_that_is_only_stopped_is_left_alone(mark: str, tmp_path: Path) -> None:
    started = Started(tmp_path, mark, "wait")
    os.kill(started.ranks[1], signal.SIGSTOP)
    time.sleep(1)
    os.kill(started.ranks[1], signal.SIGCONT)
    os.kill(started.agent, signal.SIGTERM)
    started.wait_for_all()
    assert started.door.returncode == 75


@pytest.mark.slow
def test_ranks_that_hear_nothing_are_killed_when_their_grace_is_over(mark: str, tmp_path: Path) -> None:
    started = Started(tmp_path, mark, "deaf", "--grace-s", "2")
    os.kill(started.torchrun, signal.SIGKILL)
    assert 1.5 < started.wait_for_all() < 10


@pytest.mark.slow
def test_what_a_rank_leaves_behind_is_ended(mark: str, tmp_path: Path) -> None:
    child = LocalLauncher().start(agent("leave", nproc=1), log=tmp_path / "job.log")
    assert child.wait(20) == 0
    assert not marked(mark)


def test_a_signal_before_there_are_ranks_ends_it(mark: str, tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    code = "print('up', flush=True); import time; time.sleep(100)"
    child = LocalLauncher().start([*AGENT, "--nproc", "2", "--", sys.executable, "-c", code], log=log)
    until(lambda: log.read_text() == "up\n")
    child.signal(signal.SIGUSR1)
    assert child.wait(20) == 128 + signal.SIGTERM
    until(lambda: not marked(mark))


def test_it_starts_again_as_often_as_it_is_told(mark: str, tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    child = LocalLauncher().start(agent("exit=0:87", "--max-restarts", "2", nproc=1), log=log)
    assert child.wait(30) == 87
    assert [line for line in log.read_text().splitlines() if line.startswith("trn:")] == [
        "trn: ended with 87; restart 1 of 2",
        "trn: ended with 87; restart 2 of 2",
    ]
    raised = LocalLauncher().start(agent("exit=0:71", "--max-restarts", "2", nproc=1), log=log)
    assert raised.wait(30) == 71
    refused = LocalLauncher().start(agent("exit=0:78", "--max-restarts", "2", nproc=1), log=log)
    assert refused.wait(30) == 78
    assert log.read_text().count("restart") == 2


def test_a_restart_that_finds_nobody_is_tried_again_and_not_counted(mark: str, tmp_path: Path) -> None:
    """The first machine needs its time, and a second try that no rank came of has cost nothing."""
    count, log = tmp_path / "count", tmp_path / "job.log"
    code = f"""
import pathlib, sys
count, folder, attempt = pathlib.Path({str(count)!r}), pathlib.Path(sys.argv[1]), sys.argv[2]
tries = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(tries))
print("try", tries, attempt)
if tries in (1, 4):
    (folder / "started").touch()
sys.exit(0 if tries == 4 else 87)
"""
    command = [*AGENT, "--nproc", "1", "--max-restarts", "1", "--", sys.executable, "-c", code, FOLDER, ATTEMPT]
    child = LocalLauncher().start(command, log=log)
    assert child.wait(30) == 0
    waiting = "trn: waiting for the machine with node rank 0 to start again"
    assert log.read_text().splitlines() == [
        "try 1 trn-0",
        "trn: ended with 87; restart 1 of 1",
        "try 2 trn-1",
        waiting,
        "try 3 trn-1",
        waiting,
        "try 4 trn-1",
    ]


def test_ctrl_c_in_a_terminal_comes_to_the_agent_alone(mark: str, tmp_path: Path) -> None:
    """On another machine it has the terminal: the ranks hear of it once, from the agent."""
    log = tmp_path / "job.log"
    with open(log, "wb") as output:
        child = subprocess.Popen(agent("wait"), stdout=output, stderr=output, process_group=0)
    until(lambda: len(re.findall(r"rank \d is", log.read_text())) == 2 and "spawned" in log.read_text())
    os.killpg(child.pid, signal.SIGINT)
    assert child.wait(20) == 75
    assert "rank 0 ends after SIGINT" in log.read_text()
    until(lambda: not marked(mark))
