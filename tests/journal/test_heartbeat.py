"""The file of a heartbeat, and the thread that writes it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trn.files import set_fault
from trn.journal.heartbeat import HeartbeatLog
from trn.records import Json, read_lines

Start = Callable[..., HeartbeatLog]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def start(tmp_path: Path, said: list[str]) -> Iterator[Start]:
    """Starts heartbeats in one file, and ends those that are left."""
    started = []

    def start(**changes: Any) -> HeartbeatLog:
        given = {"job_id": "job-1", "interval_s": 60.0, "read": lambda: {"threads": 1}, "warn": said.append}
        log = HeartbeatLog(tmp_path / "beats.jsonl", **{**given, **changes})
        log.start()
        started.append(log)
        return log

    yield start
    set_fault(None)
    for log in started:
        log.stop()


def lines(folder: Path) -> list[Json]:
    return list(read_lines(folder / "beats.jsonl"))


def wait_for(folder: Path, count: int) -> list[Json]:
    end = time.monotonic() + 20
    while len(lines(folder)) < count:
        assert time.monotonic() < end
        time.sleep(0.005)
    return lines(folder)


def test_marks_stand_in_their_order_with_their_time_and_job(start: Start, tmp_path: Path) -> None:
    log = start()
    log.admit()
    for number in range(100):
        log.mark("save", step=number)
    log.stop()
    found = lines(tmp_path)
    assert [(one["event"], one["step"], one["job_id"]) for one in found] == [("save", n, "job-1") for n in range(100)]
    assert [one["ts"] for one in found] == sorted(one["ts"] for one in found)


def test_it_beats_while_the_main_thread_stands_still(start: Start, tmp_path: Path) -> None:
    start(interval_s=0.02).admit()
    time.sleep(0.3)  # the main thread does nothing at all
    found = lines(tmp_path)
    assert len(found) >= 5
    assert all(one["event"] == "periodic" and one["threads"] == 1 for one in found)


def test_before_the_job_is_admitted_nothing_is_written_and_then_all_of_it(start: Start, tmp_path: Path) -> None:
    log = start(interval_s=0.02)
    log.mark("setup")
    time.sleep(0.1)
    assert not (tmp_path / "beats.jsonl").exists()
    log.admit()
    found = wait_for(tmp_path, 3)
    assert [one["event"] for one in found[:3]] == ["setup", "periodic", "periodic"]


def test_a_job_that_is_refused_leaves_no_file(start: Start, tmp_path: Path) -> None:
    log = start()
    log.mark("setup")
    log.drop()
    log.mark("failed")
    log.stop()
    assert list(tmp_path.iterdir()) == []


def test_a_resume_goes_on_in_the_file_after_a_torn_line(start: Start, tmp_path: Path) -> None:
    first = start()
    first.admit()
    first.mark("setup")
    first.stop()
    with open(tmp_path / "beats.jsonl", "ab") as stream:
        stream.write(b'{"ts":"2026')  # killed within a write
    second = start(job_id="job-2")
    second.admit()
    second.mark("setup")
    second.stop()
    assert [one["job_id"] for one in lines(tmp_path)] == ["job-1", "job-2"]


@pytest.mark.parametrize("operation", ["open", "write"])
def test_a_full_disk_ends_it_with_one_warning(start: Start, tmp_path: Path, said: list[str], operation: str) -> None:
    set_fault(f"op={operation},n=1,do=enospc,path=beats.jsonl")
    log = start(interval_s=0.01)
    log.admit()
    for _ in range(5):
        log.mark("save")
        time.sleep(0.02)
    log.stop()
    assert len(said) == 1
    assert "no more heartbeats, and the run goes on" in said[0]
    assert "No space left on device" in said[0]
    assert lines(tmp_path) == []


def test_a_reading_that_fails_ends_it_with_one_warning(start: Start, said: list[str]) -> None:
    def read() -> Json:
        raise OSError("no such counter")

    log = start(interval_s=0.01, read=read)
    log.admit()
    time.sleep(0.1)
    log.stop()
    assert said == ["warning: no more heartbeats, and the run goes on: OSError: no such counter"]


def test_a_forked_child_writes_nothing(start: Start, tmp_path: Path) -> None:
    log = start(interval_s=0.02)
    log.admit()
    log.mark("setup")
    pid = os.fork()
    if not pid:
        log.mark("from the child")
        log.stop()
        os._exit(0)
    os.waitpid(pid, 0)
    log.stop()
    assert {one["event"] for one in lines(tmp_path)} <= {"setup", "periodic"}


def test_it_draws_from_no_random_stream(start: Start, tmp_path: Path) -> None:
    before = random.getstate(), torch.get_rng_state()
    start(interval_s=0.01).admit()
    wait_for(tmp_path, 5)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_mark_takes_a_few_microseconds_whatever_the_disk_does(start: Start) -> None:
    log = start()
    log.admit()
    took = []
    for _ in range(200):
        began_s = time.perf_counter()
        log.mark("save", step=1)
        took.append(time.perf_counter() - began_s)
    assert sorted(took)[100] < 200e-6
