"""Rows in memory come as a run would give them, and a single hook can be called with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from trn.errors import DataError, NumericalInstability
from trn.feed import Cursor, Feed, Order, open_dataset
from trn.testing import bad_batch, make_context, memory_feed, memory_rows, random_rows, run_steps, write_rows

from .trainers import ByHand, Good, table


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_batches_are_those_of_a_run_over_the_file(tmp_path: Path, shuffle: bool) -> None:
    rows = table(300)
    dataset = open_dataset([str(write_rows(rows, tmp_path / "rows.parquet"))], columns=None)
    order = Order(dataset.fingerprint, dataset.block_rows, seed=5, batch_size=16, window=8, shuffle=shuffle, passes=2)
    given = list(memory_rows(rows, batch_size=16, seed=5, shuffle=shuffle, passes=2))
    with Feed(dataset, order, None, Cursor()) as feed:
        for batch in given:
            of_file = feed.next()
            assert of_file is not None
            assert batch.row_ids.tolist() == of_file.row_ids.tolist()
            assert batch.record_batch.equals(of_file.record_batch)
        assert feed.next() is None
    assert sum(len(batch.row_ids) for batch in given) == 592  # 600 less a last, short batch
    assert np.array_equal(np.stack(given[3].record_batch["x"].to_pylist()), rows["x"][given[3].row_ids])


def test_a_column_that_is_not_there_is_refused_as_in_a_run() -> None:
    with pytest.raises(DataError, match='column "z"'):
        memory_feed(table(), columns=["z"])


def test_random_rows_have_the_types_asked_for_and_are_the_same_each_time() -> None:
    columns = {
        "tokens": pa.list_(pa.int32(), 6),
        "image": pa.list_(pa.list_(pa.uint8(), 2), 3),
        "label": pa.int64(),
        "flag": pa.bool_(),
        "text": pa.string(),
        "boxes": pa.list_(pa.float32()),
        "half": pa.float16(),
    }
    made = random_rows(columns, rows=10)
    assert {field.name: field.type for field in made.schema} == columns
    assert made.num_rows == 10
    assert made.equals(random_rows(columns, rows=10))
    with pytest.raises(TypeError, match="no random values are made of the type date32"):
        random_rows({"day": pa.date32()})


def test_a_hook_is_called_with_a_context_and_a_batch(tmp_path: Path) -> None:
    batch = next(memory_rows(table(), batch_size=4))
    ctx = make_context(Good, batch=batch, params={"width": 3}, step=7, folder=tmp_path)
    assert (ctx.params.width, ctx.step, ctx.world_size, ctx.device) == (3, 7, 1, torch.device("cpu"))
    assert ctx.row_ids.tolist() == batch.row_ids.tolist()
    assert ctx.samples_dir.is_dir()
    assert ctx.samples_dir.is_relative_to(tmp_path)
    prepared = Good().transform(batch.record_batch, ctx)
    assert prepared["x"].shape == (4, 4)
    step = Good().loss(Good().build(ctx), prepared)
    assert step.count == 4
    assert step.loss.requires_grad


def test_steps_are_those_of_a_real_run(tmp_path: Path) -> None:
    ran = run_steps(ByHand, table(), 6, folder=tmp_path)
    assert [line["step"] for line in ran.lines] == [1, 2, 3, 4, 5, 6]
    assert ran.progress.step == 6
    assert (tmp_path / "runs/run/checkpoints/last.pt").exists()
    assert ran.ending.status == "completed"


def test_a_bad_batch_ends_a_run_before_its_update_or_is_left_out() -> None:
    with pytest.raises(NumericalInstability) as caught:
        run_steps(Good, table(), 6, faults=[bad_batch(3)])
    assert (caught.value.step, caught.value.field) == (3, "train_loss")
    ran = run_steps(Good, table(), 6, spec={"guard": {"policy": "skip"}}, faults=[bad_batch(3, column="y")])
    assert (ran.progress.step, ran.progress.gates.skips) == (6, 1)
    with pytest.raises(TypeError, match="expected a column of floating point numbers, found x, y"):
        run_steps(Good, table(), 2, faults=[bad_batch(1, column="z")])


def test_the_path_of_a_spec_brings_its_own_data_and_trainer(tmp_path: Path) -> None:
    write_rows(table(), tmp_path / "rows.parquet")
    (tmp_path / "its_own.py").write_text("from testing.trainers import Good as Mine\n")
    (tmp_path / "spec.yaml").write_text(
        "{config_version: 1, trainer: 'its_own:Mine', dataset: {parquet_paths: [rows.parquet], batch_size: 4},"
        " seed: 1, device: cpu, precision: none, ddp: false, epochs: 2}"
    )
    ran = run_steps(None, steps=3, spec=tmp_path / "spec.yaml")
    assert (len(ran.lines), ran.ctx.plan.dataset.batch_size) == (3, 4)
