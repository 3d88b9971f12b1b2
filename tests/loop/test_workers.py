"""Worker processes for `transform`, in one process of the run: order, bounds, errors, ends."""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from support import transforms
from trn.checkpoint import rng
from trn.errors import DataError, TrainerError
from trn.feed import Cursor, Feed, Order, RawBatch, open_dataset
from trn.loop.batches import Batches, Rows, Transformed, transform_seed
from trn.loop.stop import StopRequest
from trn.loop.workers import WorkerBatches, WorkerTraceback

CTX: Any = SimpleNamespace(step=7)
SEED = 3

Opened = Callable[..., WorkerBatches]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """40 rows in row groups of 10; the column `n` is ten times the row's number."""
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"n": pa.array(np.arange(40) * 10)}), path, row_group_size=10)
    return path


def feed_of(path: Path, *, passes: int | None = 1, start: int = 0) -> Feed:
    dataset = open_dataset([str(path)], columns=None)
    order = Order(
        dataset.fingerprint, dataset.block_rows, seed=SEED, batch_size=4, shuffle=True, remainder="keep", passes=passes
    )
    return Feed(dataset, order, None, Cursor(0, start))


@pytest.fixture
def opened(data: Path) -> Iterator[Opened]:
    """Makes WorkerBatches, and closes them at the end."""
    made: list[WorkerBatches] = []

    def make(maker: Any, *, workers: int = 1, stop: StopRequest | None = None, **feed: Any) -> WorkerBatches:
        made.append(WorkerBatches(feed_of(data, **feed), maker, workers=workers, seed=SEED, rank=0, stop=stop))
        return made[-1]

    yield make
    for one in made:
        one.close()


def all_of(batches: Batches) -> list[tuple[RawBatch, Any]]:
    found = []
    while (raw := batches.next()) is not None:
        found.append((raw, batches.ready(raw, CTX)))
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_what_the_loops_own_thread_gives_in_the_same_order(
    data: Path, opened: Opened, workers: int
) -> None:
    before = pickle.dumps(rng.capture())
    found = all_of(opened(transforms.make_rows, workers=workers))
    transform = transforms.make_rows()
    expected = []
    with feed_of(data) as feed:
        while (raw := feed.next()) is not None:
            with rng.isolated(transform_seed(SEED, raw.cursor, 0)):
                expected.append((raw, transform(raw.record_batch, raw.row_ids, raw.row_passes)))
    assert len(found) == 10
    for (raw, ready), (own_raw, own) in zip(found, expected, strict=True):
        assert raw.next_cursor == own_raw.next_cursor
        assert ready["ids"] == own["ids"] == raw.row_ids.tolist()
        assert torch.equal(ready["n"], own["n"])
        assert ready["draws"] == own["draws"]
    assert len({tuple(ready["draws"]) for _, ready in found}) == 10
    assert pickle.dumps(rng.capture()) == before


def test_what_a_batch_draws_depends_on_its_place_and_not_on_where_the_run_began(opened: Opened) -> None:
    straight = all_of(opened(transforms.make_rows))
    resumed = all_of(opened(transforms.make_rows, start=20))
    assert [ready["draws"] for _, ready in resumed] == [ready["draws"] for _, ready in straight[5:]]


def test_a_transform_on_the_loops_own_thread_leaves_the_streams_where_they_were(data: Path) -> None:
    def transform(rows: pa.RecordBatch, ctx: Any) -> Any:
        return transforms.make_rows()(rows, np.zeros(0), np.zeros(0))["draws"]

    before = pickle.dumps(rng.capture())
    trainer = SimpleNamespace(transform=transform)
    batches = Transformed(feed_of(data), trainer, seed=SEED, rank=0, stop=StopRequest())
    draws = [ready for _, ready in all_of(batches)]
    batches.close()
    assert pickle.dumps(rng.capture()) == before
    assert len(set(map(tuple, draws))) == 10


def test_ranks_draw_different_numbers_for_the_same_batch() -> None:
    assert transform_seed(SEED, Cursor(1, 8), 0) != transform_seed(SEED, Cursor(1, 8), 1)


def test_no_more_batches_are_drawn_than_workers_can_have(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    take = Feed.next

    def counted(self: Feed) -> RawBatch | None:
        drawn.append(1)
        return take(self)

    monkeypatch.setattr(Feed, "next", counted)
    batches = opened(transforms.make_rows, workers=2, passes=None)
    for _ in range(3):
        raw = batches.next()
        assert raw is not None
        batches.ready(raw, CTX)
    time.sleep(0.5)
    assert len(drawn) <= 3 + 2 * 2 + 2


def test_a_worker_heeds_no_stopping_signal_watches_its_parent_and_has_its_import_path(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path / "beside-the-spec"))
    batches = opened(transforms.make_about)
    raw = batches.next()
    assert raw is not None
    about = batches.ready(raw, CTX)
    assert {"SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"} <= set(about["blocked"])
    assert "trn-parent" in about["threads"]
    assert str(tmp_path / "beside-the-spec") in about["path"]
    assert about["pid"] != os.getpid()
    assert about["ready"].sum() == 1_000_000


def test_more_workers_than_processors_are_no_warning(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    assert len(all_of(opened(transforms.make_rows, workers=2))) == 10
    assert [str(one.message) for one in recwarn] == []


def test_closing_ends_the_workers_and_the_thread(opened: Opened) -> None:
    batches = opened(transforms.make_about, workers=2, passes=None)
    raw = batches.next()
    assert raw is not None
    pid = batches.ready(raw, CTX)["pid"]
    began_s = time.monotonic()
    batches.close()
    assert time.monotonic() - began_s < 5
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert "trn-workers" not in [thread.name for thread in threading.enumerate()]
    batches.close()


def test_the_end_of_the_data_is_told_again_and_again(opened: Opened) -> None:
    batches = opened(transforms.make_rows)
    assert len(all_of(batches)) == 10
    assert batches.next() is None
    assert batches.next() is None


def test_an_error_of_the_feed_comes_after_the_batches_before_it(data: Path, opened: Opened) -> None:
    content = bytearray(data.read_bytes())
    place = pq.ParquetFile(data).metadata.row_group(3).column(0).data_page_offset
    content[place : place + 40] = b"\xff" * 40
    data.write_bytes(content)
    batches = opened(transforms.make_rows)
    with contextlib.closing(Rows(feed_of(data))) as rows:
        good = until_refused(rows)
    assert until_refused(batches) == good
    with pytest.raises(DataError, match="row group"):
        batches.next()


def until_refused(batches: Batches) -> list[list[int]]:
    """The rows of each batch before the first that cannot be read."""
    found: list[list[int]] = []
    try:
        while (raw := batches.next()) is not None:
            found.append(raw.row_ids.tolist())
    except DataError:
        return found
    raise AssertionError("all could be read")


def test_a_transform_that_returns_what_no_pickle_takes_is_an_error_and_no_hang(opened: Opened) -> None:
    batches = opened(transforms.make_what_no_pickle_takes)
    raw = batches.next()
    assert raw is not None
    with pytest.raises(TrainerError, match=r"^trainer error .* at transform at step 7: \w+: .*pickle") as caught:
        batches.ready(raw, CTX)
    assert isinstance(caught.value.__cause__, WorkerTraceback)
    assert "in a worker process:\nTraceback" in str(caught.value.__cause__)


def test_a_worker_that_cannot_be_set_up_says_so(opened: Opened) -> None:
    batches = opened(transforms.make_nothing)
    raw = batches.next()
    assert raw is not None
    with pytest.raises(TrainerError, match="at setup in a worker at step 7: OSError: the tokenizer is missing"):
        batches.ready(raw, CTX)


def test_a_worker_without_memory_is_out_of_memory(opened: Opened) -> None:
    batches = opened(transforms.make_out_of_memory)
    raw = batches.next()
    assert raw is not None
    with pytest.raises(MemoryError, match="a tensor of 1 TB"):
        batches.ready(raw, CTX)


@pytest.mark.slow
def test_a_stop_that_was_asked_for_ends_the_wait(opened: Opened) -> None:
    stop = StopRequest()
    stop.ask("cancelled", "by a test")
    began_s = time.monotonic()
    batches = opened(transforms.make_slow, stop=stop)
    assert batches.next() is None
    assert time.monotonic() - began_s < 1
