"""A file of lines: exactly once, whatever becomes of the relay, the position or the end of the file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from support.sending import RelayThread, ToyRun, send_all, wait_for
from trn.files import set_fault


@pytest.fixture
def run(tmp_path: Path) -> ToyRun:
    return ToyRun(tmp_path / "runs")


def test_the_file_is_the_journal_byte_for_byte(run: ToyRun, tmp_path: Path) -> None:
    run.emit(600)
    assert send_all(f"file:{tmp_path}/new/out.jsonl", run.facts).is_delivered
    assert (tmp_path / "new/out.jsonl").read_bytes() == run.events_file.read_bytes()


@pytest.mark.parametrize("keeps_position", [True, False])
def test_sent_again_only_what_is_missing_is_added(run: ToyRun, tmp_path: Path, keeps_position: bool) -> None:
    run.emit(10)
    send_all(f"file:{tmp_path}/out.jsonl", run.facts)
    if not keeps_position:
        shutil.rmtree(tmp_path / "runs" / ".trn")
    run.emit(10)
    relay = send_all(f"file:{tmp_path}/out.jsonl", run.facts, from_start=not keeps_position)
    assert relay.standing.sent == (20 if keeps_position else 10)
    assert (tmp_path / "out.jsonl").read_bytes() == run.events_file.read_bytes()


@pytest.mark.parametrize("lost_bytes", [1, 5, 300, 1500])
def test_a_torn_end_is_cut_and_sent_again(run: ToyRun, tmp_path: Path, lost_bytes: int) -> None:
    out = tmp_path / "out.jsonl"
    run.emit(20)
    send_all(f"file:{out}", run.facts)
    os.truncate(out, out.stat().st_size - lost_bytes)
    run.emit(1)
    send_all(f"file:{out}", run.facts)
    assert out.read_bytes() == run.events_file.read_bytes()


def test_a_file_that_is_removed_while_it_sends_is_written_anew(run: ToyRun, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run.emit(20)
    relay = RelayThread(f"file:{out}", run.facts)
    wait_for(lambda: relay.relay.standing.sent == 20, "the events")
    out.unlink()
    run.emit(5)
    wait_for(lambda: out.exists() and out.read_bytes() == run.events_file.read_bytes(), "the file")
    assert relay.finish().is_delivered


def test_several_runs_share_a_file_also_at_the_same_time(run: ToyRun, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    runs = [run, *(ToyRun(tmp_path / "runs", f"exp0{number}", f"job-{number}") for number in (2, 3))]
    relays = [RelayThread(f"file:{out}", one.facts) for one in runs]
    for _ in range(20):
        for one in runs:
            one.emit(10)
    for relay in relays:
        assert relay.finish().is_delivered
    lines = out.read_bytes().splitlines(True)
    for one in runs:
        mine = [line for line in lines if f'"run_id":"{one.facts.run_id}"'.encode() in line]
        assert b"".join(mine) == one.events_file.read_bytes()
    runs[0].emit(1)
    send_all(f"file:{out}", runs[0].facts)
    assert len(out.read_bytes().splitlines()) == 601


def test_a_file_of_something_else_is_left_as_it_is(run: ToyRun, tmp_path: Path) -> None:
    """A torn last line is cut, so a mistyped name would cost its last line."""
    run.emit(3)
    other = tmp_path / "spec.yaml"
    other.write_text("seed: 1\nmodel: no newline at the end")
    relay = RelayThread(f"file:{other}", run.facts)
    wait_for(lambda: relay.said, "the refusal")
    assert "it holds something else than events" in relay.said[0]
    assert not relay.finish(5).is_delivered
    assert other.read_text() == "seed: 1\nmodel: no newline at the end"


def test_the_events_of_another_run_of_the_same_name_are_not_taken_for_this_ones(run: ToyRun, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run.emit(5)
    send_all(f"file:{out}", run.facts)
    shutil.rmtree(run.dir)
    again = ToyRun(tmp_path / "runs", job_id="job-2")
    again.emit(7)
    relay = RelayThread(f"file:{out}", again.facts)
    wait_for(lambda: relay.said, "the refusal")
    assert "another run with this name" in relay.said[0]
    assert not relay.finish(5).is_delivered
    assert len(out.read_bytes().splitlines()) == 5


def test_a_full_disk_is_waited_for(run: ToyRun, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run.emit(20)
    set_fault("op=write,n=1,do=enospc,path=out.jsonl")
    try:
        relay = RelayThread(f"file:{out}", run.facts)
        wait_for(lambda: relay.said, "the failure")
    finally:
        set_fault(None)
    assert "No space left" in relay.said[0]
    assert relay.finish().is_delivered
    assert out.read_bytes() == run.events_file.read_bytes()


def test_a_place_where_no_file_can_be_is_told_and_not_waited_for(run: ToyRun, tmp_path: Path) -> None:
    run.emit(3)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    other = ToyRun(tmp_path / "runs", "exp02")
    other.emit(2)
    before = other.events_file.read_bytes()
    mine = (run.events_file, run.reports / "more.jsonl")
    index = tmp_path / "runs" / ".trn" / "index.jsonl"
    for place in (tmp_path / "folder", tmp_path / "pipe", *mine, other.events_file, index):
        relay = RelayThread(f"file:{place}", run.facts)
        wait_for(lambda relay=relay: relay.said, "the refusal")
        assert not relay.finish(5).is_delivered
        assert relay.relay.standing.dropped == 0
    assert other.events_file.read_bytes() == before
    assert not index.exists()
