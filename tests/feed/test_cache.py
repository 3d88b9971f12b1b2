"""The cache: the same batches as from parquet, bit for bit, and never one that is torn, stale or changed meanwhile."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trn.errors import DataError
from trn.feed import (
    Cursor,
    Dataset,
    Feed,
    Order,
    RawBatch,
    cache,
    has_cache,
    make_cache,
    open_cache,
    open_dataset,
)
from trn.feed.cache import find_cache, find_cache_at, open_cache_at, verify_cache
from trn.feed.manifest import write_manifest
from trn.feed.mapped import MappedRows
from trn.feed.order import Remainder
from trn.feed.tensors import to_tensors
from trn.files import Lock

WriteParquet = Callable[..., str]
COLUMNS = ["id", "pair", "name"]
EMPTY = pa.record_batch({"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def order_of(dataset: Dataset, **changes: Any) -> Order:
    settings = {"seed": 7, "batch_size": 4, "window": 2, "passes": 2} | changes
    return Order(dataset.fingerprint, dataset.block_rows, **settings)


def take(feed: Feed) -> Iterator[RawBatch]:
    with feed:
        while (batch := feed.next()) is not None:
            yield batch


def content(feed: Feed) -> list[tuple[Any, ...]]:
    return [(b.record_batch.to_pydict(), b.row_ids.tolist(), b.row_passes.tolist(), *b[3:]) for b in take(feed)]


@pytest.mark.parametrize("remainder", ["carry", "drop", "keep"])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("readahead", [0, 2])
def test_batches_from_the_cache_are_those_from_parquet(
    dataset: Dataset, folder: Path, remainder: Remainder, shuffle: bool, readahead: int
) -> None:
    make_cache(dataset, COLUMNS, folder)
    order = order_of(dataset, remainder=remainder, shuffle=shuffle)
    expected = content(Feed(dataset, order, COLUMNS, Cursor()))
    mapped = open_cache(dataset, COLUMNS, folder)
    assert content(Feed(dataset, order, COLUMNS, Cursor(), cache=mapped, readahead=readahead)) == expected
    for index, batch in enumerate(expected):
        later = Feed(dataset, order, COLUMNS, order.cursor_at(index), cache=open_cache(dataset, COLUMNS, folder))
        assert next(take(later)).row_ids.tolist() == batch[1]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_batches_of_the_cache_as_of_parquet(dataset: Dataset, folder: Path, world_size: int) -> None:
    make_cache(dataset, ["pair"], folder)
    order = order_of(dataset, window=99)
    for rank in range(world_size):
        share = {"rank": rank, "world_size": world_size}
        mapped = open_cache(dataset, ["pair"], folder)
        assert content(Feed(dataset, order, ["pair"], Cursor(), cache=mapped, **share)) == content(
            Feed(dataset, order, ["pair"], Cursor(), **share)
        )


def test_every_type_comes_out_of_the_cache_as_it_went_in(tmp_path: Path, folder: Path) -> None:
    rows = 40
    numbers = np.arange(rows * 6)
    table = pa.table(
        {
            "i8": pa.array(numbers[:rows] % 100, pa.int8()),
            "f64": numbers[:rows] / 3,
            "odd": pa.FixedSizeListArray.from_arrays(pa.array(numbers[: rows * 3].astype(np.int16)), 3),
            "image": pa.FixedSizeListArray.from_arrays(
                pa.FixedSizeListArray.from_arrays(pa.array(numbers.astype(np.float32)), 3), 2
            ),
            "bit": [one % 3 == 0 for one in range(rows)],
            "hole": [None if one % 5 == 0 else one for one in range(rows)],
            "text": ["x" * (one % 7) for one in range(rows)],
            "many": [list(range(one % 4)) for one in range(rows)],
            "day": pa.array(numbers[:rows].astype(np.int32), pa.date32()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    dataset = open_dataset([str(tmp_path / "a.parquet")], columns=None)
    columns = list(dataset.columns)
    make_cache(dataset, columns, folder)
    mapped = open_cache(dataset, columns, folder)
    rows_asked = np.array([39, 0, 7, 7, 21, 6], np.int64)
    assert mapped.take(rows_asked).to_pylist() == [table.to_pylist()[row] for row in rows_asked.tolist()]
    mapped.close()


def test_rows_of_many_pieces_are_found(dataset: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_PIECE_BYTES", 1)
    make_cache(dataset, COLUMNS, folder)
    mapped = open_cache(dataset, COLUMNS, folder)
    backwards = np.arange(dataset.rows)[::-1].astype(np.int64)
    taken = mapped.take(backwards)
    assert taken.column("id").to_pylist() == backwards.tolist()
    assert taken.column("name").to_pylist() == [f"row {row}" for row in backwards.tolist()]
    mapped.close()


@pytest.mark.parametrize("sizes", [[5], [4, 4, 4], [4, 4, 3], [4, 4, 5], [3, 4, 4], [4, 2, 4], [0, 4, 4, 0, 1]])
def test_rows_are_found_in_pieces_of_any_sizes(sizes: list[int], tmp_path: Path) -> None:
    path, rows = tmp_path / "rows.arrow", sum(sizes)
    table = pa.table({"id": np.arange(rows), "text": [str(row) for row in range(rows)]})
    with pa.ipc.new_file(path, table.schema) as writer:
        for size, end in zip(sizes, itertools.accumulate(sizes), strict=True):
            writer.write_batch(table.slice(end - size, size).combine_chunks().to_batches()[0] if size else EMPTY)
    mapped = MappedRows(path, ["id", "text"], size_bytes=path.stat().st_size)
    asked = np.array([*range(rows), *reversed(range(rows))], np.int64)
    taken = mapped.take(asked).to_pydict()
    assert taken == {"id": asked.tolist(), "text": [str(row) for row in asked.tolist()]}
    mapped.close()


def test_writing_to_a_batch_changes_neither_the_file_nor_another_batch(dataset: Dataset, folder: Path) -> None:
    found = make_cache(dataset, ["id"], folder)
    order = order_of(dataset, shuffle=False)
    for batch in take(Feed(dataset, order, ["id"], Cursor(), cache=open_cache(dataset, ["id"], folder))):
        assert batch.record_batch.column("id").to_pylist() == batch.row_ids.tolist()
        to_tensors(batch.record_batch, ["id"])["id"].fill_(-1)
    verify_cache(found)


def test_a_cache_is_made_once_and_bound_to_data_and_columns(
    dataset: Dataset, write: WriteParquet, folder: Path
) -> None:
    one = make_cache(dataset, ["id"], folder)
    before = one.path.stat().st_mtime_ns
    assert make_cache(dataset, ["id"], folder).path == one.path
    assert one.path.stat().st_mtime_ns == before
    assert make_cache(dataset, ["id", "pair"], folder).path != one.path
    assert make_cache(dataset, ["pair", "id"], folder).path != one.path
    other = open_dataset([write("other.parquet", [9])], columns=["id"])
    assert not has_cache(other, ["id"], folder)
    assert make_cache(other, ["id"], folder).path != one.path


def spoil_size(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


@pytest.mark.parametrize("suffix", ["arrow", "json"])
def test_a_torn_cache_is_not_used_and_made_again(dataset: Dataset, folder: Path, suffix: str) -> None:
    path = make_cache(dataset, ["id"], folder).path.with_suffix(f".{suffix}")
    spoil_size(path)
    with pytest.raises(DataError, match="not a whole cache"):
        open_cache(dataset, ["id"], folder)
    verify_cache(make_cache(dataset, ["id"], folder))


def test_a_cache_without_its_manifest_is_none(dataset: Dataset, folder: Path) -> None:
    make_cache(dataset, ["id"], folder).path.with_suffix(".json").unlink()
    with pytest.raises(DataError, match="there is no cache of this data set"):
        open_cache(dataset, ["id"], folder)


def test_a_manifest_of_another_data_set_is_refused(dataset: Dataset, write: WriteParquet, folder: Path) -> None:
    other = open_dataset([write("other.parquet", [9])], columns=["id"])
    mine, its = make_cache(dataset, ["id"], folder).path, make_cache(other, ["id"], folder).path
    for suffix in (".json", ".arrow"):
        mine.with_suffix(suffix).write_bytes(its.with_suffix(suffix).read_bytes())
    with pytest.raises(DataError, match="it describes another data set"):
        open_cache(dataset, ["id"], folder)


def test_changed_bytes_are_found_when_all_is_read(dataset: Dataset, folder: Path) -> None:
    found = make_cache(dataset, ["id"], folder)
    data = bytearray(found.path.read_bytes())
    data[len(data) // 2] ^= 1
    found.path.write_bytes(data)
    with pytest.raises(DataError, match="its manifest says"):
        verify_cache(find_cache(dataset, ["id"], folder))


@pytest.mark.parametrize("how", ["cut", "grown", "rewritten"])
def test_a_file_that_changes_while_it_is_mapped_is_an_error_and_no_garbage(
    dataset: Dataset, folder: Path, how: str
) -> None:
    path = make_cache(dataset, ["id"], folder).path
    feed = Feed(dataset, order_of(dataset, passes=None), ["id"], Cursor(), cache=open_cache(dataset, ["id"], folder))
    with feed:
        assert feed.next() is not None
        size = path.stat().st_size
        if how == "rewritten":
            os.utime(path, ns=(1, 1))
        else:
            os.truncate(path, 8 if how == "cut" else size + 1)
        with pytest.raises(DataError, match=r"the cache was (changed|touched or written to) while it was read"):
            all(feed.next() for _ in range(1000))


def test_what_a_crashed_maker_left_is_swept_and_not_used(dataset: Dataset, folder: Path) -> None:
    def crash(rows: int) -> None:
        os._exit(9) if rows else None

    pid = os.fork()
    if pid == 0:
        make_cache(dataset, ["id"], folder, each_block=crash)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert [name for name in os.listdir(folder) if ".tmp-" in name]
    assert not has_cache(dataset, ["id"], folder)
    verify_cache(make_cache(dataset, ["id"], folder))
    assert not [name for name in os.listdir(folder) if ".tmp-" in name]


def test_what_the_caller_raises_ends_the_making_and_leaves_nothing(dataset: Dataset, folder: Path) -> None:
    def refuse(rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_cache(dataset, ["id"], folder, each_block=refuse)
    assert os.listdir(folder) == [".trn-cache.lock"]


def test_whoever_comes_second_waits_and_is_asked_meanwhile(dataset: Dataset, folder: Path) -> None:
    folder.mkdir()

    def give_up(rows: int) -> None:
        assert rows == 0
        raise TimeoutError

    with Lock(folder / ".trn-cache.lock"), pytest.raises(TimeoutError):
        make_cache(dataset, ["id"], folder, each_block=give_up)


@pytest.mark.slow
def test_processes_that_make_the_same_cache_make_one(dataset: Dataset, folder: Path) -> None:
    source = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from trn.feed import Dataset, make_cache\n"
        "dataset = Dataset.from_json(json.loads(sys.argv[1]))\n"
        "print(make_cache(dataset, ['id', 'name'], Path(sys.argv[2])).sha256)\n"
    )
    command = [sys.executable, "-c", source, json.dumps(dataset.to_json()), str(folder)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = {process.communicate(timeout=120)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0] * 4
    assert said == {find_cache(dataset, ["id", "name"], folder).sha256}


def test_a_dictionary_column_is_refused(tmp_path: Path, folder: Path) -> None:
    words = pa.array(["a", "b"]).dictionary_encode()
    columns = {
        "w": words,
        "list": pa.ListArray.from_arrays([0, 1, 2], words),
        "struct": pa.StructArray.from_arrays([words], ["w"]),
        "map": pa.MapArray.from_arrays([0, 1, 2], pa.array([1, 2]), words),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=1)
    dataset = open_dataset([str(tmp_path / "a.parquet")], columns=None)
    for name in columns:
        with pytest.raises(DataError, match=f'column "{name}" is a dictionary or holds one'):
            make_cache(dataset, [name], folder)


def test_maps_come_out_of_the_cache_though_their_entries_have_other_names(tmp_path: Path, folder: Path) -> None:
    tags = pa.array([[("a", 1)], [], [("b", 2), ("c", 3)]], pa.map_(pa.string(), pa.int32()))
    inside = pa.StructArray.from_arrays([tags, pa.array([1, 2, 3])], ["deep", "x"])
    pq.write_table(pa.table({"tags": tags, "inside": inside}), tmp_path / "a.parquet")
    dataset = open_dataset([str(tmp_path / "a.parquet")], columns=None)
    made = make_cache(dataset, ["tags", "inside"], folder)
    for mapped in (open_cache(dataset, ["tags", "inside"], folder), open_cache_at(made.path, dataset, ["inside"])):
        taken = mapped.take(np.array([2, 0])).column("inside").to_pylist()
        assert taken == [{"deep": [("b", 2), ("c", 3)], "x": 3}, {"deep": [("a", 1)], "x": 1}]
        mapped.close()


@pytest.mark.parametrize("readahead", [0, 1])
def test_a_rank_may_have_a_share_of_the_short_batch_alone(write: WriteParquet, folder: Path, readahead: int) -> None:
    dataset = open_dataset([write("a.parquet", [9])], columns=["id"])
    make_cache(dataset, ["id"], folder)
    order = order_of(dataset, batch_size=5, remainder="keep", passes=1)
    shares = {"rank": 3, "world_size": 7, "readahead": readahead}
    feed = Feed(dataset, order, ["id"], Cursor(), cache=open_cache(dataset, ["id"], folder), **shares)
    assert [batch.record_batch.num_rows for batch in take(feed)] == [0, 1]


def test_the_file_is_arrow_ipc_that_anybody_reads(dataset: Dataset, folder: Path) -> None:
    found = make_cache(dataset, COLUMNS, folder)
    with pa.memory_map(str(found.path)) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table.column("id").to_pylist() == list(range(23))
    assert found.rows == 23


@pytest.mark.parametrize("beside", [[], ["label"], ["label", "text"]])
def test_the_values_of_each_piece_begin_at_a_multiple_of_the_row(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, beside: list[str]
) -> None:
    monkeypatch.setattr(cache, "_PIECE_BYTES", 1)
    path, rows = tmp_path / "x.parquet", 40
    tokens = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(rows * 1024, dtype=np.int32)), 1024)
    whole = {"label": list(range(rows)), "text": [str(row) * row for row in range(rows)], "tokens": tokens}
    columns = [*beside, "tokens"]
    pq.write_table(pa.table({name: whole[name] for name in columns}), path, row_group_size=7)
    dataset = open_dataset([str(path)], columns=None)
    made = make_cache(dataset, columns, folder)
    buffer = pa.py_buffer(made.path.read_bytes())
    reader = pa.ipc.open_file(pa.BufferReader(buffer))
    pieces = [reader.get_batch(index) for index in range(1, reader.num_record_batches)]
    assert [piece.num_rows for piece in pieces] == [7, 7, 7, 7, 7, 5]
    begins = [piece.column("tokens").values.buffers()[1].address - buffer.address for piece in pieces]
    assert [begin % 4096 for begin in begins] == [0] * len(pieces)
    mapped = open_cache(dataset, columns, folder)
    places = {name: address for name, address, _ in mapped.places()}
    assert places["tokens"] % 4096 == 0, "a row of 4,096 bytes lies in one page"
    taken = mapped.take(np.array([39, 0, 8])).column("tokens")
    assert taken.values.buffers()[1].address % 64 == 0, "and is copied by whole cache lines"
    assert taken.to_pylist() == [whole["tokens"][row].as_py() for row in (39, 0, 8)]
    mapped.close()


def test_a_cache_is_not_used_for_other_data_of_the_same_size_and_footer(tmp_path: Path) -> None:
    path, folder = tmp_path / "x.parquet", tmp_path / "cache"
    for seed in (1, 2):
        values = np.random.default_rng(seed).integers(0, 256, 64 * 768, np.uint8)
        images = pa.FixedSizeListArray.from_arrays(pa.array(values), 768)
        pq.write_table(pa.table({"x": images}), path, compression="none")
        plain, indexed = open_dataset([str(path)], columns=None), write_manifest([str(path)], tmp_path / "dataset.json")
        for dataset in (plain, indexed):
            assert not has_cache(dataset, ["x"], folder)
            make_cache(dataset, ["x"], folder)
            rows = open_cache(dataset, ["x"], folder)
            found = rows.take(np.arange(64)).column("x").values.to_numpy()
            assert np.array_equal(found, values)
            rows.close()


def test_a_cache_is_named_after_the_files_as_they_were_when_it_was_made(tmp_path: Path, folder: Path) -> None:
    def written(middle: int, changed_s: int) -> Dataset:
        pq.write_table(pa.table({"x": [1, middle, 9]}), tmp_path / "x.parquet", compression="none")
        os.utime(tmp_path / "x.parquet", (changed_s, changed_s))
        return open_dataset([str(tmp_path / "x.parquet")], columns=None)

    def rows_of(dataset: Dataset) -> list[int]:
        make_cache(dataset, ["x"], folder)
        mapped = open_cache(dataset, ["x"], folder)
        found: list[int] = mapped.take(np.arange(3)).column("x").to_pylist()
        mapped.close()
        return found

    planned = written(5, 1_000_000_000)
    assert written(7, 1_100_000_000).fingerprint == planned.fingerprint, "of sizes and footers, which are the same"
    assert rows_of(planned) == [1, 7, 9], "what parquet would give now"
    written(5, 1_000_000_000)
    assert not has_cache(planned, ["x"], folder)
    assert rows_of(planned) == [1, 5, 9]


def test_a_file_that_changes_while_it_is_decoded_makes_no_cache(
    dataset: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_PIECE_BYTES", 1)
    with pytest.raises(DataError, match=r"c\.parquet: the file was changed while it was decoded"):
        make_cache(dataset, ["id"], folder, each_block=lambda rows: os.utime(dataset.files[2].path, (1, 1)))
    assert [path.name for path in folder.iterdir()] == [".trn-cache.lock"]


def test_a_cache_leaves_alone_what_is_not_its_own(tmp_path: Path) -> None:
    path, folder = tmp_path / "x.parquet", tmp_path / "cache"
    pq.write_table(pa.table({"x": [1, 2, 3]}), path)
    (folder / ".packed.tmp-123").mkdir(parents=True)
    (folder / ".dataset.json.tmp-9").write_text("under way")
    make_cache(open_dataset([str(path)], columns=None), ["x"], folder)
    assert (folder / ".packed.tmp-123").is_dir()
    assert (folder / ".dataset.json.tmp-9").read_text() == "under way"


@pytest.mark.parametrize("columns", [["name"], ["pair", "id"], ["name", "id", "pair"]])
def test_a_file_that_is_handed_over_gives_some_of_its_columns_in_any_order(
    write: WriteParquet, folder: Path, columns: list[str]
) -> None:
    path = write("a.parquet", [5, 3, 6])
    whole = open_dataset([path], columns=None)
    made = make_cache(whole, list(whole.columns), folder)
    dataset = open_dataset([path], columns=columns)
    assert find_cache_at(made.path, dataset, columns) == made
    mapped = open_cache_at(made.path, dataset, columns)
    assert all(address and size_bytes for _, address, size_bytes in mapped.places())
    with_cache = Feed(dataset, order_of(dataset), columns, Cursor(), cache=mapped)
    assert content(with_cache) == content(Feed(dataset, order_of(dataset), columns, Cursor()))


def test_a_file_that_is_handed_over_is_that_of_the_data_or_refused(write: WriteParquet, folder: Path) -> None:
    path = write("a.parquet", [5, 3, 6])
    dataset = open_dataset([path], columns=COLUMNS)
    made = make_cache(dataset, COLUMNS[:2], folder)
    with pytest.raises(DataError, match='it has no column "name" of type string'):
        open_cache_at(made.path, dataset, COLUMNS)
    for nowhere in (Path("/"), folder, made.path.with_suffix(""), made.path.with_suffix(".parquet")):
        with pytest.raises(DataError):
            open_cache_at(nowhere, dataset, COLUMNS[:2])
    other = open_dataset([write("b.parquet", [5, 3, 7])], columns=COLUMNS)
    with pytest.raises(DataError, match="not decoded from the data of this run"):
        open_cache_at(made.path, other, COLUMNS[:2])
