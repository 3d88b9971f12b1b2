"""`dataset.nulls` in the plan: checked against the columns, part of the fingerprint, and of what a resume compares."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.job import write_job
from trn.errors import DataError, ResumeRefused, SpecError
from trn.plan import make_plan
from trn.ranks import World
from trn.runner.contract import plan_differences, revise
from trn.spec import load_spec
from trn.spec.plan_model import Plan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A job whose second file has nulls in `y`, and the footer says so."""
    write_job(tmp_path)
    path = tmp_path / "train-1.parquet"
    table = pq.read_table(path)
    y = pa.array([None, None, *table["y"].to_pylist()[2:]], pa.float32())
    pq.write_table(table.set_column(1, "y", y), path, row_group_size=50)
    return tmp_path


def plan_in(folder: Path, *sets: str) -> Plan:
    loaded = load_spec(folder / "spec.yaml", sets=sets)
    return make_plan(loaded, run_id="run", runs_dir=folder / "runs", world=World())[0]


def test_known_nulls_are_refused_naming_file_and_column(folder: Path) -> None:
    with pytest.raises(DataError, match=r'train-1\.parquet: column "y" has 2 null values') as caught:
        plan_in(folder)
    assert "dataset.nulls: {y: VALUE}" in str(caught.value)


def test_known_nulls_of_the_validation_data_are_refused_too(tmp_path: Path) -> None:
    write_job(tmp_path)
    table = pa.table({"x": pa.array([None], pa.list_(pa.float32(), 8)), "y": pa.array([1.0], pa.float32())})
    pq.write_table(table, tmp_path / "validation.parquet")
    with pytest.raises(DataError, match=r'validation\.parquet: column "x" has \d null values'):
        plan_in(tmp_path)
    assert plan_in(tmp_path, "dataset.nulls={x: 0}").dataset.fills == {"x": 0}


def test_validation_columns_of_another_type_are_refused_naming_file_and_both(tmp_path: Path) -> None:
    write_job(tmp_path)
    table = pq.read_table(tmp_path / "validation.parquet")
    y = table["y"].cast(pa.float64())
    pq.write_table(table.set_column(1, "y", y), tmp_path / "validation.parquet")
    message = r'validation\.parquet: column "y" is double here, and float in the training data \(.*train-0\.parquet\)'
    with pytest.raises(DataError, match=message):
        plan_in(tmp_path)


def test_a_column_that_no_cache_can_hold_is_refused_before_the_run(tmp_path: Path) -> None:
    write_job(tmp_path)
    for name in ("train-0", "train-1", "validation"):
        table = pq.read_table(tmp_path / f"{name}.parquet")
        words = pa.array(["a", "b"] * len(table)).slice(0, len(table)).dictionary_encode()
        pq.write_table(table.append_column("word", words), tmp_path / f"{name}.parquet", row_group_size=50)
    assert plan_in(tmp_path, "dataset.cache=cache").dataset.cache is not None
    sets = ("dataset.columns=[x, y, word]", "dataset.cache=cache")
    assert plan_in(tmp_path, sets[0]).dataset.columns == ["x", "y", "word"]
    with pytest.raises(
        DataError, match=r'train-0\.parquet: column "word" is a dictionary or holds one.*no dataset\.cache'
    ):
        plan_in(tmp_path, *sets)
    assert not (tmp_path / "cache").exists()


def test_the_largest_fill_there_is_comes_back_from_a_plan(folder: Path) -> None:
    path = folder / "train-1.parquet"
    for name in ("train-0", "train-1", "validation"):
        table = pq.read_table(folder / f"{name}.parquet")
        y = pa.array([None] * len(table), pa.uint64())
        pq.write_table(table.set_column(1, "y", y), folder / f"{name}.parquet", row_group_size=50)
    plan = plan_in(folder, f"dataset.nulls={{y: {2**64 - 1}}}")
    assert Plan.read(plan.to_bytes(), str(path)).dataset.fills == {"y": 2**64 - 1}


def test_a_fill_stands_in_the_plan_and_cannot_change_at_a_resume(folder: Path) -> None:
    plans = [plan_in(folder, f"dataset.nulls={{y: {value}}}") for value in ("-1", "0.5", "null")]
    assert [plan.dataset.fills for plan in plans] == [{"y": -1}, {"y": 0.5}, {"y": None}]
    assert len({plan.fingerprint for plan in plans}) == 3
    for was, now in ((plans[0], plans[1]), (plans[1], plans[2]), (plans[2], plans[0])):
        assert [one.key for one in plan_differences(was, now)] == ["dataset.nulls"]
        with pytest.raises(ResumeRefused, match=r"dataset\.nulls: the run has"):
            revise(was, now, allowed=())


def test_letting_nulls_through_is_a_difference_as_well(tmp_path: Path) -> None:
    write_job(tmp_path)
    refused, let_through = plan_in(tmp_path), plan_in(tmp_path, "dataset.nulls={y: null}")
    assert [one.key for one in plan_differences(refused, let_through)] == ["dataset.nulls"]
    assert Plan.read(let_through.to_bytes(), "plan") == let_through


def test_refuse_is_the_same_as_no_key(tmp_path: Path) -> None:
    write_job(tmp_path)
    assert plan_in(tmp_path, "dataset.nulls=refuse") == plan_in(tmp_path)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("keep", SpecError, r"dataset\.nulls: expected refuse, or the value that stands for null of each column"),
        ("{y: [1]}", SpecError, "expected one number, boolean or text for 'y'"),
        ("{y: .inf}", SpecError, "expected a finite number for 'y'"),
        ("{z: 1}", DataError, r"dataset\.nulls\.z: there is no such column"),
        ("{y: none}", DataError, r'dataset\.nulls\.y: \'none\' is no value of column "y", which is float'),
    ],
)
def test_a_policy_that_means_nothing_is_refused(folder: Path, given: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plan_in(folder, f"dataset.nulls={given}")


def test_a_secret_in_a_url_never_reaches_a_plan(folder: Path) -> None:
    for url in ("s3://me:hunter22@data/a.parquet", "https://host/a.parquet?token=hunter22"):
        with pytest.raises(DataError, match="a password or a key in it") as caught:
            plan_in(folder, f"dataset.parquet_paths=[{url!r}]")
        assert "hunter22" not in str(caught.value)
