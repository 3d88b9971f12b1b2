"""What a feed does when something breaks: errors that name a place, and a thread that always ends."""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trn.errors import DataError
from trn.feed import Cursor, Dataset, Feed, Order, open_dataset, read_sequential
from trn.feed.blocks import ParquetBlocks

WriteParquet = Callable[..., str]


def order_of(dataset: Dataset, batch_size: int = 4, *, shuffle: bool = True, passes: int | None = 1) -> Order:
    return Order(dataset.fingerprint, dataset.block_rows, 7, batch_size, 2, shuffle, passes=passes)


def take_all(feed: Feed) -> None:
    with feed:
        while feed.next() is not None:
            pass


def damage(path: str, row_group: int) -> None:
    """Overwrite the compressed pages of a row group of an open file, in place."""
    chunk = pq.read_metadata(path).row_group(row_group).column(0)
    start = min(one for one in (chunk.dictionary_page_offset, chunk.data_page_offset) if one)
    with open(path, "r+b") as stream:
        stream.seek(start)
        stream.write(b"\xff" * chunk.total_compressed_size)


@pytest.mark.parametrize("readahead", [0, 2])
def test_a_row_group_damaged_while_running_is_named_at_the_batch_that_needs_it(
    write: WriteParquet, readahead: int
) -> None:
    path = write("a.parquet", [100] * 6)
    dataset = open_dataset([path], columns=["id"])
    order = order_of(dataset, batch_size=50, shuffle=False)
    with Feed(dataset, order, None, Cursor(), readahead=readahead) as feed:
        assert feed.next() is not None
        damage(path, 4)
        for _ in range(7):
            assert feed.next() is not None
        for _ in range(2):
            with pytest.raises(DataError, match=r"a\.parquet, row group 4: the row group cannot be read"):
                feed.next()
        assert feed.cursor == order.cursor_at(8)


@pytest.mark.parametrize("readahead", [0, 2])
def test_an_error_in_the_middle_of_a_batch_loses_nothing(write: WriteParquet, readahead: int) -> None:
    path = write("a.parquet", [3] * 4)
    dataset = open_dataset([path], columns=["id"])
    damage(path, 2)
    with Feed(dataset, order_of(dataset, shuffle=False), None, Cursor(), readahead=readahead) as feed:
        assert feed.next() is not None
        for _ in range(3):
            with pytest.raises(DataError, match="row group 2"):
                feed.next()


def test_a_file_shortened_while_running_is_named(write: WriteParquet) -> None:
    path = write("a.parquet", [1000] * 8)
    dataset = open_dataset([path], columns=["id"])
    with Feed(dataset, order_of(dataset, batch_size=1000, shuffle=False), None, Cursor(), readahead=0) as feed:
        assert feed.next() is not None
        os.truncate(path, os.stat(path).st_size // 4)
        with pytest.raises(DataError, match=r"a\.parquet, row group \d: the row group cannot be read"):
            take_all(feed)


@pytest.mark.parametrize("readahead", [0, 2])
def test_a_file_that_vanishes_before_it_is_read_is_named(write: WriteParquet, readahead: int) -> None:
    paths = [write("a.parquet", [4]), write("b.parquet", [4], first=4)]
    dataset = open_dataset(paths, columns=["id"])
    os.unlink(paths[1])
    with Feed(dataset, order_of(dataset, shuffle=False), None, Cursor(), readahead=readahead) as feed:
        assert feed.next() is not None
        with pytest.raises(DataError, match=r"b\.parquet: the file does not exist"):
            feed.next()


def test_a_file_replaced_before_it_is_read_is_named(write: WriteParquet) -> None:
    paths = [write("a.parquet", [4]), write("b.parquet", [4], first=4)]
    dataset = open_dataset(paths, columns=["id"])
    write("b.parquet", [4, 4], first=4)
    feed = Feed(dataset, order_of(dataset, shuffle=False), None, Cursor())
    with pytest.raises(DataError, match=r"b\.parquet: the file has changed"):
        take_all(feed)


def test_page_checksums_are_verified_where_a_file_has_them(write: WriteParquet) -> None:
    path = write("a.parquet", [4], compression="none", use_dictionary=False, write_page_checksum=True)
    dataset = open_dataset([path], columns=["id"])
    data = Path(path).read_bytes()
    chunk = pq.read_metadata(path).row_group(0).column(0)
    # the last place is the page's; the ones before it are statistics in its header
    at = data.rindex((3).to_bytes(8, "little"), 0, chunk.data_page_offset + chunk.total_compressed_size)
    Path(path).write_bytes(data[:at] + b"\x09" + data[at + 1 :])
    with Feed(dataset, order_of(dataset), None, Cursor()) as feed, pytest.raises(DataError, match="row group 0"):
        feed.next()


def feed_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "trn-feed"]


def test_closing_ends_the_thread_and_can_be_repeated(dataset: Dataset) -> None:
    feed = Feed(dataset, order_of(dataset, passes=None), None, Cursor())
    feed.next()
    assert len(feed_threads()) == 1
    feed.close()
    feed.close()
    assert feed_threads() == []
    with pytest.raises(ValueError, match="closed"):
        feed.next()


def test_a_forgotten_feed_ends_its_thread(dataset: Dataset) -> None:
    feed = Feed(dataset, order_of(dataset, passes=None), None, Cursor())
    feed.next()
    del feed
    gc.collect()
    assert feed_threads() == []


def test_abandoned_sequential_reading_ends_its_thread(dataset: Dataset) -> None:
    for _ in read_sequential(dataset, None, batch_size=1):
        break
    gc.collect()
    assert feed_threads() == []


def run_with_a_feed(dataset: Dataset, ending: str) -> subprocess.CompletedProcess[str]:
    """A process of its own that has taken one batch of endless data when it comes to `ending`."""
    source = (
        "import json, os, sys\n"
        "from trn.feed import *\n"
        "dataset = Dataset.from_json(json.loads(sys.stdin.read()))\n"
        "order = Order(dataset.fingerprint, dataset.block_rows, seed=1, batch_size=2, passes=None)\n"
        "feed = Feed(dataset, order, None, Cursor())\n"
        "feed.next()\n"
        f"{ending}\n"
    )
    return subprocess.run(
        [sys.executable, "-c", source], input=json.dumps(dataset.to_json()), text=True, capture_output=True, timeout=60
    )


@pytest.mark.parametrize("ending", ["pass", "raise SystemExit(3)", "raise KeyError('of the user')", "feed.close()"])
def test_the_interpreter_ends_with_a_feed_in_use(dataset: Dataset, ending: str) -> None:
    done = run_with_a_feed(dataset, ending)
    assert done.returncode == {"raise SystemExit(3)": 3, "raise KeyError('of the user')": 1}.get(ending, 0)
    assert "terminate" not in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_feed_says_that_it_cannot_be_used_in_a_forked_child(dataset: Dataset) -> None:
    ending = (
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try:\n"
        "        while True: feed.next()\n"
        "    except RuntimeError as error:\n"
        "        os._exit(7)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    assert run_with_a_feed(dataset, ending).returncode == 7


def test_reading_leaves_global_random_state_alone(dataset: Dataset) -> None:
    def draws() -> tuple[float, float]:
        return random.random(), float(np.random.random())

    random.seed(5)
    np.random.seed(5)
    expected = draws()
    random.seed(5)
    np.random.seed(5)
    take_all(Feed(dataset, order_of(dataset, passes=3), None, Cursor()))
    assert draws() == expected


def test_the_room_works_without_torch() -> None:
    source = "import sys, trn.feed, trn.feed.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source], timeout=60).returncode == 0


class Held:
    """Blocks that come once somebody lets them."""

    def __init__(self, dataset: Dataset) -> None:
        self._blocks = ParquetBlocks(dataset, ["id"])
        self.schema = self._blocks.schema
        self.let_go = threading.Event()

    def read(self, block: int) -> pa.Table:
        self.let_go.wait()
        return self._blocks.read(block)

    def close(self) -> None:
        self._blocks.close()


def test_a_wait_for_rows_can_be_given_up_and_taken_up_again(dataset: Dataset) -> None:
    reader, asked = Held(dataset), threading.Event()
    order = Order(dataset.fingerprint, dataset.block_rows, seed=1, batch_size=4)
    with Feed(dataset, order, None, Cursor(), reader=reader, give_up=asked.is_set) as feed:
        asked.set()
        assert feed.next() is None
        assert feed.cursor == Cursor()
        asked.clear()
        reader.let_go.set()
        batch = feed.next()
    with Feed(dataset, order, ["id"], Cursor()) as feed:
        expected = feed.next()
    assert batch is not None
    assert expected is not None
    assert batch.record_batch == expected.record_batch
