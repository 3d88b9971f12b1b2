"""Batches that stand in the spec are planned as any other data: one file, which is there if the plan is made."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.job import TRAINER
from trn.errors import DataError, PlanRefused, TrnError
from trn.feed import Cursor, Dataset, Feed
from trn.plan import device as device_module
from trn.plan import make_plan, plan_order
from trn.plan.device import settled_device
from trn.plan.mock import MOCK_FOLDER, make_mock
from trn.ranks import World
from trn.spec import load_spec
from trn.spec.plan_model import Plan

ROW = [0.1, 1, 2, 3, 4, 5, 6, 7.5]
BATCHES = [{"x": [ROW, [float(n)] * 8], "y": [n, 0.5], "name": [f"ä{n}", "b"]} for n in range(4)]
JOB = {
    "trainer_api_version": "v1",
    "run_id": "run",
    "trainer": "noisy:Noisy",
    "max_steps": 4,
    "mock_batches": BATCHES,
    "optimizer": {"accumulate": 2},
}

Planned = Callable[..., Plan]


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    """The plan of a job with `more` over it."""
    (tmp_path / "noisy.py").write_text(TRAINER)

    def plan_one(run_id: str = "run", **more: Any) -> Plan:
        path = tmp_path / "job.json"
        path.write_text(json.dumps({**JOB, **more}))
        return make_plan(load_spec(path), run_id=run_id, runs_dir=tmp_path / "runs", world=World())[0]

    return plan_one


def mocks_in(runs_dir: Path) -> list[Path]:
    """What is in the folder of such files, but for its lock; nothing else was written."""
    found = sorted(path for path in runs_dir.rglob("*") if path.is_file() and path.name != ".lock")
    assert {path.parent for path in found} <= {runs_dir / MOCK_FOLDER}
    return found


def batches_of(plan: Plan, count: int) -> list[pa.RecordBatch]:
    """The first batches that a run of this plan is given."""
    dataset = Dataset.from_json(plan.dataset.data)
    with Feed(dataset, plan_order(plan), plan.dataset.columns, Cursor(), rank=0, world_size=1, readahead=0) as feed:
        given = [feed.next() for _ in range(count)]
    return [one.record_batch for one in given if one is not None]


def test_batches_come_to_the_trainer_as_they_were_written(planned: Planned) -> None:
    plan = planned(dataset={"columns": ["y", "x", "name"], "end": "cycle"}, max_steps=8)
    batches = batches_of(plan, 8)
    assert batches[0].schema.types == [pa.float32(), pa.list_(pa.float32(), 8), pa.string()]
    as_float32 = pa.array(ROW, pa.float32()).to_pylist()
    for number, batch in enumerate(batches):
        n = number % 4
        assert batch.to_pydict() == {"y": [n, 0.5], "x": [as_float32, [n] * 8], "name": [f"ä{n}", "b"]}


def test_the_file_is_named_by_its_rows_and_has_a_row_group_for_each_batch(planned: Planned, tmp_path: Path) -> None:
    plan = planned()
    (path,) = mocks_in(tmp_path / "runs")
    assert plan.dataset.data["files"][0]["path"] == str(path)
    assert [block.rows for block in Dataset.from_json(plan.dataset.data).blocks] == [2, 2, 2, 2]
    assert path.stat().st_mode & 0o777 == 0o600
    again, before = planned("other"), path.stat()
    assert again.fingerprint == plan.fingerprint
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    changed = planned(mock_batches=[*BATCHES[1:], BATCHES[0]])
    assert changed.fingerprint != plan.fingerprint
    assert len(mocks_in(tmp_path / "runs")) == 2


def test_a_file_that_was_lost_or_damaged_is_made_again_as_it_was(planned: Planned, tmp_path: Path) -> None:
    plan = planned()
    (path,) = mocks_in(tmp_path / "runs")
    whole, time_ns = path.read_bytes(), path.stat().st_mtime_ns
    other = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1]}), other)
    for damaged in (None, b"", whole[:-9], whole[:100] + b"?" + whole[101:], other.getvalue().to_pybytes()):
        path.unlink()
        (path.parent / f".{path.name}.tmp-1-0").write_bytes(b"of a writer that died")
        if damaged is not None:
            path.write_bytes(damaged)
        assert planned("again").to_json()["dataset"] == plan.to_json()["dataset"]
        assert path.read_bytes() == whole
        assert path.stat().st_mtime_ns == time_ns
    assert mocks_in(tmp_path / "runs") == [path]


def test_the_rows_written_by_another_version_of_the_library_are_kept(planned: Planned, tmp_path: Path) -> None:
    plan = planned()
    (path,) = mocks_in(tmp_path / "runs")
    pq.write_table(pq.read_table(path), path, row_group_size=2, compression="gzip", version="1.0")
    other = path.read_bytes()
    kept = planned("other")
    assert path.read_bytes() == other
    assert kept.dataset.data["fingerprint"] != plan.dataset.data["fingerprint"]
    assert [one.num_rows for one in batches_of(kept, 4)] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"max_steps": 5}, PlanRefused, "the budget is 5 steps, the data give 4"),
        ({"dataset": {"columns": ["z"]}}, DataError, 'there is no column "z"'),
        ({"mock_batches": [{"x": [ROW, ROW]}] * 4}, DataError, 'there is no column "y"'),
        ({"precision": "fp16", "optimizer": {"fused": True, "name": "adadelta"}}, PlanRefused, "cannot be fused"),
        ({"validation": {"parquet_paths": ["none.parquet"]}}, DataError, "none.parquet"),
    ],
)
def test_a_plan_that_is_refused_leaves_nothing(
    planned: Planned, tmp_path: Path, more: dict[str, Any], error: type[TrnError], message: str
) -> None:
    with pytest.raises(error) as refused:
        planned(**more)
    assert message in str(refused.value)
    assert str(refused.value).isprintable()
    assert not (tmp_path / "runs").exists()


def test_a_cache_of_batches_is_found_again(planned: Planned, tmp_path: Path) -> None:
    mock = make_mock(BATCHES, tmp_path / "here")
    described = mock.open(["x"], {})
    assert not (tmp_path / "here").exists()
    mock.write()
    assert mock.open(["x"], {}) == described
    os.utime(mock.path)  # somebody touched it: the rows are the same, and so is the plan's view of them
    assert mock.open(["x"], {}).fingerprint == described.fingerprint


def test_the_plan_says_what_was_filled_in_and_it_is_no_part_of_the_fingerprint(planned: Planned) -> None:
    plan = planned()
    assert plan.defaulted == {
        "seed": 0, "device": "auto", "precision": "none", "ddp": False,
        "dataset.batch_size": 2, "dataset.end": "stop", "dataset.shuffle": False,
    }  # fmt: skip
    same = planned(seed=0, device=plan.device, dataset={"end": "stop", "batch_size": 2})
    assert same.defaulted == {"precision": "none", "ddp": False, "dataset.shuffle": False}
    assert same.fingerprint == plan.fingerprint
    assert Plan.read(plan.to_bytes(), "plan").defaulted == plan.defaulted


def test_a_device_that_is_left_to_the_machine_is_one_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for here, settled in (
        (["cpu"], "cpu"),
        (["cpu", "cuda:0", "cuda:1"], "cuda"),
        (["cpu", "mps"], "mps"),
    ):
        monkeypatch.setattr(device_module, "_here", lambda here=here: here)
        assert settled_device("auto") == settled
    assert settled_device("cuda:3") == "cuda:3"
