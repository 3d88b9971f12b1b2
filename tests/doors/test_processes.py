"""How many processes, and who starts them: the command line, the spec, the run before, and who started the door."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from trn.doors.cli import main
from trn.doors.processes import Asked, Processes, read_processes
from trn.errors import UsageError
from trn.launch import Layout
from trn.ranks import World

RANK_1_OF_2 = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
RANK_0_OF_2 = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}


def read(asked: Asked | None = None, **changes: Any) -> Processes:
    values: dict[str, Any] = {"ddp": True, "device": "cpu", "before": None, "launcher": "local", "environ": {}}
    return read_processes(asked or Asked(), **{**values, **changes})


def test_nothing_said_is_one_process() -> None:
    assert read(ddp=False) == read(ddp=True) == Processes(Layout(1), World())
    assert read(ddp=False, before=2).size == 1


def test_a_number_of_processes_is_a_layout() -> None:
    processes = read(Asked(nproc=3, max_restarts=2))
    assert (processes.layout, processes.max_restarts, processes.is_follower) == (Layout(3), 2, False)


def test_a_script_for_any_number_of_machines_works_for_one() -> None:
    assert read(Asked(nproc=2, nnodes=1, node_rank=0, rdzv_endpoint="host:29500")).layout == Layout(2)


def test_a_resume_has_as_many_as_before_unless_told_otherwise() -> None:
    assert read(before=4).layout == Layout(4)
    assert read(Asked(nproc=2), before=4).layout == Layout(2)
    two = {"nnodes": 2, "node_rank": 0, "rdzv_endpoint": "host:29500"}
    assert read(Asked(**two), before=4).layout == Layout(2, **two)
    with pytest.raises(UsageError, match="the run has had 3 processes, which 2 machines cannot share evenly"):
        read(Asked(**two), before=3)


def test_several_machines_have_a_rank_each_and_one_meeting_place() -> None:
    processes = read(Asked(nproc=2, nnodes=3, node_rank=2, rdzv_endpoint="[::1]:29500"))
    assert (processes.size, processes.is_follower) == (6, True)
    assert processes.layout.rdzv_endpoint == "[::1]:29500"


def test_a_door_on_each_machine_knows_its_number_from_who_started_it() -> None:
    """`srun --ntasks-per-node=1 trn run --nproc 4 --nnodes 2 ...`"""
    asked = Asked(nproc=4, nnodes=2, rdzv_endpoint="host:29500")
    first, second = (read(asked, environ=environ) for environ in (RANK_0_OF_2, RANK_1_OF_2))
    assert [one.layout.node_rank for one in (first, second)] == [0, 1]
    assert (first.is_follower, second.is_follower, second.size) == (False, True, 8)


def test_a_door_that_was_started_as_a_rank_keeps_the_job_only_as_the_first() -> None:
    first, second = read(environ=RANK_0_OF_2), read(environ=RANK_1_OF_2)
    assert first.layout == second.layout == Layout(1)
    assert (first.is_follower, second.is_follower, second.size) == (False, True, 2)


@pytest.mark.parametrize(
    ("asked", "changes", "said"),
    [
        (Asked(nproc=2), {"ddp": False}, "at ddp: expected `ddp: true` for 2 processes, found false."),
        (Asked(), {"ddp": False, "environ": RANK_0_OF_2}, "at ddp: expected `ddp: true` for 2 processes"),
        (Asked(nproc=2), {"launcher": "inline"}, "at --launcher: there is one debugger, and the run has 2 processes."),
        (Asked(nproc=2), {"environ": RANK_1_OF_2}, "at --nproc: this process was started as rank 1 of 2"),
        (Asked(nproc=2, nnodes=3), {"environ": RANK_1_OF_2}, "give --nnodes 2 too."),
        (Asked(max_restarts=1), {"environ": RANK_0_OF_2}, "at --max-restarts: this process was started as rank 0 of 2"),
        (Asked(nproc=1, node_rank=0), {}, "at --node-rank: it goes with several machines."),
        (Asked(rdzv_endpoint="h:1"), {}, "at --rdzv-endpoint: it goes with several machines."),
        (
            Asked(nnodes=2, rdzv_endpoint="h:1"),
            {},
            "at --node-rank: expected a number below --nnodes 2, found nothing.",
        ),
        (Asked(nnodes=2, node_rank=2, rdzv_endpoint="h:1"), {}, "expected a number below --nnodes 2, found 2."),
        (Asked(nnodes=1, node_rank=1), {}, "at --node-rank: expected a number below --nnodes 1, found 1."),
        (Asked(nnodes=2, node_rank=0), {}, "at --rdzv-endpoint: expected HOST:PORT, found ''."),
        (Asked(nnodes=2, node_rank=0, rdzv_endpoint="host"), {}, "expected HOST:PORT, found 'host'."),
        (Asked(nnodes=2, node_rank=0, rdzv_endpoint=":29500"), {}, "expected HOST:PORT, found ':29500'."),
        (Asked(nnodes=2, node_rank=0, rdzv_endpoint="host:99999"), {}, "expected HOST:PORT"),
        (Asked(), {"environ": {"RANK": "x", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}}, "expected a whole number"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(asked: Asked, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        read(asked, **changes)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from support.job import write_job

    monkeypatch.setenv("TRN_RUNS_DIR", str(tmp_path / "runs"))
    return write_job(tmp_path / "job", max_steps=60)


def test_a_spec_for_one_process_is_not_started_as_two(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--config", str(job), "--nproc", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "usage error [usage] at ddp: expected `ddp: true` for 2 processes, found false. "
        "Set it in the spec of a new run, or start this one with a single process."
    )
    assert not (tmp_path / "runs").exists()


def test_the_door_of_another_rank_becomes_the_rank_and_writes_nothing(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trn.runner.__main__ import parse

    became: list[list[str]] = []

    def start(program: str, argv: list[str]) -> None:
        became.append(argv)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", start)
    for name, value in RANK_1_OF_2.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONHASHSEED", os.environ.get("PYTHONHASHSEED", "0"))
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    assert main(["run", "--config", str(job), "--ddp"]) == 0
    (argv,) = became
    args = parse(argv[argv.index("trn.runner") + 1 :])
    assert args.follow
    assert args.door_pid == os.getppid()
    assert not (tmp_path / "runs").exists()
    assert main(["run", "--config", str(job), "--ddp", "--dry-run"]) == 0
    assert len(became) == 1  # the plan is told once, by the first rank's door
