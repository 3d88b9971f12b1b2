"""What becomes of a run whose data change, break or go; and that a cache changes nothing but the speed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from support.compare import assert_identical, events, lines, outcome
from support.forkserver import ForkServer
from support.job import command, write_job, write_table
from trn.errors import PlanRefused
from trn.feed import write_manifest
from trn.plan import data
from trn.plan.data import plan_data
from trn.records import new_job_id
from trn.spec import load_spec

pytestmark = pytest.mark.slow
DATA_ERROR, REFUSED = 65, 78


def reads(spec: Path, old: str, new: str) -> None:
    text = spec.read_text()
    assert old in text
    spec.write_text(text.replace(old, new))


def run(server: ForkServer, spec: Path, name: str, *more: str) -> tuple[int, str]:
    runs_dir = spec.parent.parent
    log = runs_dir / f"{name}.log"
    return server.run(command(spec, runs_dir, name, *more), log), log.read_text()


def stop_half_way(server: ForkServer, spec: Path, name: str) -> Path:
    """Start a run and end it by SIGTERM once it has a checkpoint; returns its folder."""
    runs_dir = spec.parent.parent
    run_dir = runs_dir / name
    pid = server.start(command(spec, runs_dir, name), runs_dir / f"{name}.log")
    deadline_s = time.monotonic() + 60
    while not list(run_dir.glob("checkpoints/step-*.json")):
        assert time.monotonic() < deadline_s, (runs_dir / f"{name}.log").read_text()
        time.sleep(0.005)
    os.kill(pid, signal.SIGTERM)
    assert server.wait(pid) != 0
    return run_dir


@pytest.mark.parametrize("window", ["2", "all"])
def test_a_run_may_turn_to_the_cache_and_back(server: ForkServer, tmp_path: Path, window: str) -> None:
    spec = write_job(tmp_path / "job", max_steps=300, checkpoint_every=10)
    reads(spec, "window: 2", f"window: {window}")
    assert run(server, spec, "straight")[0] == 0
    begun = stop_half_way(server, spec, "turning")
    reads(spec, f"window: {window}", f"window: {window}\n  cache: cached")
    code, said = run(server, spec, "turning")
    assert code == 0, said
    assert "decoding 323 rows into the cache" in said
    assert_identical(begun, tmp_path / "straight")
    code, said = run(server, spec, "cached")
    assert code == 0, said
    assert "decoding" not in said
    assert lines(tmp_path / "cached", "train_metrics.jsonl") == lines(begun, "train_metrics.jsonl")


def test_a_cache_that_is_cut_between_two_runs_is_made_again(server: ForkServer, tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=30)
    reads(spec, "window: 2", "window: 2\n  cache: cached")
    assert run(server, spec, "one")[0] == 0
    (made,) = (tmp_path / "job/cached").glob("*.arrow")
    os.truncate(made, made.stat().st_size // 2)
    code, said = run(server, spec, "two")
    assert code == 0, said
    assert "decoding 323 rows into the cache" in said
    assert lines(tmp_path / "one", "train_metrics.jsonl") == lines(tmp_path / "two", "train_metrics.jsonl")


@pytest.mark.parametrize(("change", "expected"), [("gone", DATA_ERROR), ("other", REFUSED), ("cut", DATA_ERROR)])
def test_files_that_changed_since_the_run_began_are_refused(
    server: ForkServer, tmp_path: Path, change: str, expected: int
) -> None:
    spec = write_job(tmp_path / "job", max_steps=100_000, checkpoint_every=10)
    stop_half_way(server, spec, "run")
    path = tmp_path / "job/train-1.parquet"
    if change == "gone":
        path.unlink()
    elif change == "other":
        write_table(path, 123, seed=9, row_group_rows=50)
    else:
        os.truncate(path, path.stat().st_size - 100)
    code, said = run(server, spec, "run")
    assert code == expected, said
    assert ("dataset.data" if change == "other" else str(path)) in said


@pytest.mark.parametrize("by", ["the run", "the spec", "a revision"])
def test_a_file_with_another_time_alone_is_told_on_a_resume(server: ForkServer, tmp_path: Path, by: str) -> None:
    spec = write_job(tmp_path / "job", max_steps=300, checkpoint_every=10)
    run_dir = stop_half_way(server, spec, "run")
    touched = tmp_path / "job/train-1.parquet"
    os.utime(touched, ns=(0, 0))
    if by == "a revision":
        reads(spec, "checkpoint_every: 10", "checkpoint_every: 20")
    again = ["--job-id", new_job_id(), "--run-dir", str(run_dir)]
    code, said = (server.run(again, tmp_path / "log"), "") if by == "the run" else run(server, spec, "run", "--resume")
    assert code == 0, said
    assert [event["files"] for event in events(run_dir) if event["event"] == "data_touched"] == [[str(touched)]]


def test_data_that_lie_elsewhere_are_told_by_their_new_names(server: ForkServer, tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=300, checkpoint_every=10)
    run_dir = stop_half_way(server, spec, "run")
    for name in ("train-0", "train-1"):
        (tmp_path / f"job/{name}.parquet").rename(tmp_path / f"job/moved-{name}.parquet")
    os.utime(tmp_path / "job/moved-train-0.parquet", ns=(0, 0))
    reads(spec, "[train-0.parquet, train-1.parquet]", "[moved-train-0.parquet, moved-train-1.parquet]")
    code, said = run(server, spec, "run", "--resume")
    assert code == 0, said
    (told,) = [event["files"] for event in events(run_dir) if event["event"] == "data_touched"]
    assert told == [str(tmp_path / "job/moved-train-0.parquet")]


def test_a_file_of_the_same_size_and_time_is_found_by_its_manifest(server: ForkServer, tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=100_000, checkpoint_every=10)
    paths = [str(tmp_path / f"job/train-{index}.parquet") for index in (0, 1)]
    write_manifest(paths, tmp_path / "job/dataset.json")
    reads(spec, "parquet_paths: [train-0.parquet, train-1.parquet]", "manifest: dataset.json")
    run_dir = stop_half_way(server, spec, "run")
    before = os.stat(paths[0])
    column = pq.read_metadata(paths[0]).row_group(1).column(1)
    with open(paths[0], "r+b") as stream:
        stream.seek((column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 5)
        was = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([was[0] ^ 1]))
    os.utime(paths[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    code, said = run(server, spec, "run")
    assert code == DATA_ERROR, said
    assert "row group 1" in said
    assert outcome(run_dir)["status"] == "data_error"


@pytest.mark.parametrize("cached", [False, True])
def test_a_file_that_is_cut_while_training_ends_the_run(server: ForkServer, tmp_path: Path, cached: bool) -> None:
    spec = write_job(tmp_path / "job", max_steps=100_000, checkpoint_every=10)
    if cached:
        reads(spec, "window: 2", "window: 2\n  cache: cached")
    else:
        reads(spec, "window: 2", "window: 1")
    runs_dir, run_dir = tmp_path, tmp_path / "run"
    pid = server.start(command(spec, runs_dir, "run"), tmp_path / "run.log")
    deadline_s = time.monotonic() + 60
    while not list(run_dir.glob("checkpoints/step-*.json")):
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    (cut,) = (tmp_path / "job/cached").glob("*.arrow") if cached else [tmp_path / "job/train-0.parquet"]
    os.truncate(cut, 1000)
    code = server.wait(pid)
    said = (tmp_path / "run.log").read_text()
    # a cut within the gather itself, some microseconds of each step, ends the process by SIGBUS instead
    if not (cached and code == -signal.SIGBUS):
        assert code == DATA_ERROR, said
        assert str(cut) in said
        assert outcome(run_dir)["status"] == "data_error"


def test_no_rows_and_a_batch_larger_than_the_data_are_refused_before_anything(
    server: ForkServer, tmp_path: Path
) -> None:
    spec = write_job(tmp_path / "job", max_steps=1)
    reads(spec, "end: cycle", "end: stop")
    reads(spec, "batch_size: 8", "batch_size: 1000")
    code, said = run(server, spec, "large")
    assert code != 0
    assert "the data give 0" in said or "no whole batch" in said
    for index in (0, 1):
        write_table(tmp_path / f"job/train-{index}.parquet", 0, seed=1)
    code, said = run(server, spec, "empty")
    assert code == DATA_ERROR, said
    assert "no rows" in said
    assert not (tmp_path / "large").exists()
    assert not (tmp_path / "empty").exists()


def test_a_window_of_all_row_groups_of_large_files_needs_a_cache(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Columns:
        columns = ("x", "y")

    spec = write_job(tmp_path / "job", max_steps=30)
    reads(spec, "window: 2", "window: all")
    monkeypatch.setattr(data, "_WHOLE_BYTES", 1000)
    with pytest.raises(PlanRefused, match=r"dataset\.window: all would hold the whole data set .* Set dataset\.cache"):
        plan_data(load_spec(spec).spec, Columns())  # type: ignore[arg-type]
    reads(spec, "window: all", "window: all\n  cache: cached")
    planned, _ = plan_data(load_spec(spec).spec, Columns())  # type: ignore[arg-type]
    assert planned.window == 9
