"""Real trainings with two ranks, through the command line: started by the door, by torchrun, killed, resumed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.door import until
from support.job import write_job
from support.processes import alive, marked
from trn.records import read_lines

pytestmark = pytest.mark.slow
TRN = [sys.executable, "-u", "-P", "-m", "trn"]


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of runs; whatever the test has started and left is killed."""
    mark = f"several-{os.getpid()}-{tmp_path.name}"
    monkeypatch.setenv("TRN_TEST_MARK", mark)
    monkeypatch.setenv("TRN_RUNS_DIR", str(tmp_path / "runs"))
    yield tmp_path / "runs"
    left = marked(mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = write_job(tmp_path / "job", max_steps=60)
    path.write_text(path.read_text().replace("ddp: false", "ddp: true"))
    return path


def trn(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TRN, *arguments], capture_output=True, text=True, timeout=120, check=False)


def rank_pids(door: int) -> list[int]:
    """Of the ranks that the agent of this door has, by their numbers."""
    pids = [door]
    for _ in ("agent", "torchrun", "ranks"):
        pids = [child for pid in pids for child in children_of(pid)]
    numbered = {}
    for pid in pids:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        numbered.update({int(one[5:]): pid for one in variables if one.startswith(b"RANK=")})
    return [numbered[rank] for rank in sorted(numbered)]


def children_of(pid: int) -> list[int]:
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            parent = int(Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == pid and alive(int(name)):
            found.append(int(name))
    return found


def wait_for_checkpoint(run_dir: Path) -> None:
    events = run_dir / "reports" / "events.jsonl"
    until(lambda: any(event["event"] == "checkpoint" for event in read_lines(events)), timeout_s=60)


def test_two_ranks_are_one_job_and_a_resume_has_as_many(runs_dir: Path, job: Path) -> None:
    command = [*TRN, "run", "--config", str(job), "--nproc", "2", "--run-id", "demo", "--max-steps", "100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as door:
        wait_for_checkpoint(runs_dir / "demo")
        door.terminate()
        _, said = door.communicate(timeout=60)
    assert door.returncode == 75, said
    assert [line for line in said.splitlines() if "Traceback" in line or "torch" in line] == []
    with subprocess.Popen([*TRN, "resume", "demo"], stderr=subprocess.PIPE, text=True) as again:
        until(
            lambda: (
                len([one for one in read_lines(runs_dir / "demo/reports/events.jsonl") if one["event"] == "started"])
                == 2
            ),
            timeout_s=60,
        )
        assert len(rank_pids(again.pid)) == 2
        again.send_signal(signal.SIGINT)
        again.communicate(timeout=60)
    assert again.returncode == 92
    assert trn("verify", "demo").returncode == 0


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_and_the_run_goes_on_to_its_end(runs_dir: Path, job: Path, victim: int) -> None:
    command = [*TRN, "run", "--config", str(job), "--nproc", "2", "--run-id", "demo", "--max-steps", "400"]
    with subprocess.Popen([*command, "--max-restarts", "1"], stderr=subprocess.PIPE, text=True) as door:
        wait_for_checkpoint(runs_dir / "demo")
        os.kill(rank_pids(door.pid)[victim], signal.SIGKILL)
        _, said = door.communicate(timeout=120)
    assert door.returncode == 0, said
    assert f"rank {victim} was killed by SIGKILL" in said
    assert "; restart 1 of 1" in said
    rows = json.loads(trn("list", "--json").stdout)
    assert [(row["state"], row["exit_code"]) for row in rows] == [("completed", 0), ("rank_lost", 87)]
    metrics = list(read_lines(runs_dir / "demo" / "reports" / "train_metrics.jsonl"))
    assert [line["step"] for line in metrics] == list(range(1, 401))
    assert trn("verify", "demo").returncode == 0


def test_a_refusal_is_one_line_with_its_code(runs_dir: Path, job: Path) -> None:
    done = trn("run", "--config", str(job), "--nproc", "2", "--run-id", "demo", "--set", "clip_grad_norm=-1")
    assert done.returncode == 2
    refused = trn("run", "--config", str(job), "--nproc", "2", "--run-id", "demo", "--set", "trainer=nowhere:Nobody")
    assert refused.returncode == 78, refused.stderr
    said = [line for line in refused.stderr.splitlines() if line[:5] != "trn: "]
    assert len(said) == 1
    assert said[0].startswith("plan error [plan_refused] at trainer 'nowhere:Nobody'")
    assert not (runs_dir / "demo").exists()


def test_a_plan_for_two_ranks_can_be_foretold(runs_dir: Path, job: Path) -> None:
    done = trn("run", "--config", str(job), "--nproc", "2", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"]["world_size"] == 2
    assert not runs_dir.exists()


def test_torchrun_starts_the_command_itself(runs_dir: Path, job: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "trn"]
    done = subprocess.run(
        [*torchrun, "run", "--config", str(job), "--run-id", "demo", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"]["step"] == 60  # one of the two doors answers
    assert len(json.loads(trn("list", "--json").stdout)) == 1
    taken = subprocess.run(
        [*torchrun, "run", "--config", str(job), "--run-id", "demo"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert taken.returncode == 1  # torchrun's own; what it shows is ours
    assert "exitcode  : 78" in taken.stderr
    assert "the run 'demo' exists" in taken.stderr.split("Root Cause")[1]


def test_two_machines_start_again_together(runs_dir: Path, job: Path, tmp_path: Path) -> None:
    """Two commands on this machine stand for two machines; the rank on the second is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    command = [*TRN, "run", "--config", str(job), "--nproc", "1", "--nnodes", "2", "--rdzv-endpoint", endpoint]
    command += ["--run-id", "demo", "--max-steps", "400", "--max-restarts", "1"]
    doors = []
    for node_rank in (0, 1):
        with open(tmp_path / f"{node_rank}.log", "wb") as output:
            doors.append(subprocess.Popen([*command, "--node-rank", str(node_rank)], stdout=output, stderr=output))
    wait_for_checkpoint(runs_dir / "demo")
    (torchrun,) = children_of(doors[1].pid)  # the second command has become its agent
    (rank,) = children_of(torchrun)
    os.kill(rank, signal.SIGKILL)
    assert [door.wait(120) for door in doors] == [0, 0], (tmp_path / "0.log").read_text()
    assert "; restart 1 of 1" in (tmp_path / "0.log").read_text()
    assert "trn: ended with 137; restart 1 of 1" in (tmp_path / "1.log").read_text()
    rows = json.loads(trn("list", "--json").stdout)
    assert [(row["state"], row["exit_code"]) for row in rows] == [("completed", 0), ("rank_lost", 87)]
    assert trn("verify", "demo").returncode == 0


def test_a_run_that_is_there_is_not_started_a_second_time(runs_dir: Path, job: Path) -> None:
    command = [*TRN, "run", "--config", str(job), "--nproc", "2", "--run-id", "demo", "--max-steps", "100000"]
    door = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for_checkpoint(runs_dir / "demo")
    second = trn("resume", "demo")
    door.terminate()
    assert door.wait(60) == 75
    assert second.returncode == 78
    assert "resume error [resume_refused]" in second.stderr
    assert "another process is running it" in second.stderr
