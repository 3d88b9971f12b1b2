"""How fast batches come as tensors, beside their floors and their peers: one process, one core, the same rows.

    python benchmarks/feed.py [--rounds 5] [--quick] [--folder .]

Token rows (1,024 int32, batches of 8) from parquet in windows against pyarrow's scanner, which shuffles nothing; from
the mapped cache, fully shuffled, against a gather from a numpy memory map (it has no thread: with `readahead: 0` ours
has none either); against grain, the DataLoader over Hugging Face datasets, and litdata, where they are installed
(`pip install -e '.[bench]'`). Tables of 32 floats in batches of 1,024. And the time to the first batch after a resume
within an epoch of 2 million rows against that of a fresh start.

In each round every contender, a process of its own, opens its data anew and reads so many batches, one contender after
the other; all of it counts for ours, only what comes after the first batch for the peers. A round before the first one
does not count: in it, memory is new to the process. The scanner is given views without a copy, the memory map one index
of numpy a batch.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import torch

from trn.devices import keep_freed_memory
from trn.feed import Cursor, Dataset, Feed, Order, make_cache, open_cache, open_dataset
from trn.feed.tensors import to_tensors

TOKENS, BATCH, TABLE_BATCH, FLOATS = 1024, 8, 1024, 32
WINDOW = 8
SCANNER, PARQUET, PARQUET_THREADLESS = "pyarrow scanner", "trn, parquet, shuffled", "trn, parquet, no readahead"
MEMMAP, CACHE, CACHE_THREADLESS = "numpy memmap", "trn, cache, all shuffled", "trn, cache, no readahead"
MEMMAP_64, CACHE_64, CACHE_64_THREADLESS = "memmap, 64", "trn, cache, 64", "trn, cache, 64, no readahead"
PASSES = 3
"""Over the mapped rows, of which a pass takes a tenth of a second."""
Batches = Callable[[], Iterator[Any]]
Contender = tuple[Batches, int, int, int]
"""Its batches, the rows of a batch, the most batches of a round, and how many batches do not count."""
Rates = dict[str, list[float]]


def write_tokens(folder: Path, files: int) -> list[str]:
    generator = np.random.default_rng(0)
    paths = []
    for index in range(files):
        path = folder / f"tokens-{index}.parquet"
        with pq.ParquetWriter(path, pa.schema([("tokens", pa.list_(pa.int32(), TOKENS))])) as writer:
            for _ in range(16):
                values = pa.array(generator.integers(0, 50257, 1024 * TOKENS, dtype=np.int32))
                writer.write_table(pa.table({"tokens": pa.FixedSizeListArray.from_arrays(values, TOKENS)}))
        paths.append(str(path))
    return paths


def write_floats(path: Path, rows: int, group_rows: int, *, as_list: bool) -> str:
    generator = np.random.default_rng(0)
    writer = None
    for _ in range(rows // group_rows):
        values = generator.standard_normal((group_rows, FLOATS), np.float32)
        if as_list:
            table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), FLOATS)})
        else:
            table = pa.table({f"x{index}": values[:, index] for index in range(FLOATS)})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=group_rows)
    assert writer is not None, "some rows are asked for"
    writer.close()
    return str(path)


def scanned(paths: list[str], batch: int) -> Iterator[torch.Tensor]:
    """Batches as views of what the scanner decodes, in the order of the files."""
    scanner = pads.dataset(paths).scanner(columns=["tokens"], use_threads=False)
    for decoded in scanner.to_batches():
        tokens = torch.from_dlpack(decoded.column(0).flatten()).view(-1, TOKENS)
        yield from tokens.split(batch)


def by_trn(
    dataset: Dataset, batch: int, *, window: int, readahead: int = 2, cache: Path | None = None, passes: int = 1
) -> Iterator[Any]:
    columns = list(dataset.columns)
    order = Order(dataset.fingerprint, dataset.block_rows, seed=1, batch_size=batch, window=window, passes=passes)
    rows = None if cache is None else open_cache(dataset, columns, cache)
    with Feed(dataset, order, columns, Cursor(), readahead=readahead, cache=rows) as feed:
        while (raw := feed.next()) is not None:
            yield to_tensors(raw.record_batch, columns)


def gathered(path: Path, batch: int) -> Iterator[torch.Tensor]:
    """Rows picked from a memory map in random order, as one would write it by hand."""
    rows = np.load(path, mmap_mode="r")
    for index in range(PASSES):
        order = np.random.default_rng(index).permutation(len(rows))
        for start in range(0, len(order) - batch + 1, batch):
            yield torch.from_numpy(rows[order[start : start + batch]])


def by_grain(grain: Any, path: Path) -> Iterator[Any]:
    class Rows:
        def __init__(self) -> None:
            self.rows = np.load(path, mmap_mode="r")

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> Any:
            return self.rows[index]

    data = grain.MapDataset.source(Rows()).shuffle(seed=1).batch(BATCH)
    for batch in data.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)):
        yield torch.from_numpy(batch)


def by_datasets(datasets: Any, paths: list[str], folder: Path) -> Iterator[Any]:
    data = datasets.Dataset.from_parquet(paths, cache_dir=str(folder / "datasets")).with_format("torch")
    for batch in torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True):
        yield batch["tokens"]


def write_for_litdata(litdata: Any, path: Path, folder: Path) -> None:
    from litdata.streaming.item_loader import TokensLoader

    tokens = np.load(path, mmap_mode="r")
    pieces = [(str(path), start, start + 1024) for start in range(0, len(tokens), 1024)]
    litdata.optimize(
        fn=litdata_tokens,
        inputs=pieces,
        output_dir=str(folder),
        chunk_bytes="64MB",
        item_loader=TokensLoader(block_size=TOKENS),
        num_workers=1,
    )


def litdata_tokens(piece: tuple[str, int, int]) -> Iterator[torch.Tensor]:
    path, start, end = piece
    yield torch.from_numpy(np.load(path, mmap_mode="r")[start:end].reshape(-1).copy())


def by_litdata(litdata: Any, folder: Path) -> Iterator[Any]:
    from litdata.streaming.item_loader import TokensLoader

    data = litdata.StreamingDataset(str(folder), item_loader=TokensLoader(block_size=TOKENS), shuffle=True)
    yield from litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=0)


def rate(batches: Batches, rows: int, limit: int, *, skip: int) -> float:
    """Rows a second over at most `limit` batches; the first `skip` are not counted, nor is the opening then."""
    began_s = time.perf_counter()
    iterator = batches()
    for _ in itertools.islice(iterator, skip):
        began_s = time.perf_counter()
    count = sum(1 for _ in itertools.islice(iterator, limit))
    elapsed_s = time.perf_counter() - began_s
    iterator.close()  # type: ignore[attr-defined]  # all of them are generators
    return count * rows / elapsed_s


def measure(contenders: dict[str, Contender], rounds: int) -> Rates:
    """Each in a process of its own, in another order each round.

    In one process and one order, what a contender left in the memory of the process and the caches of the processor
    moved the ratio of the two after it by a tenth.
    """
    context = multiprocessing.get_context("fork")
    rates: Rates = {name: [] for name in contenders}
    asked: dict[str, Connection] = {}
    for name, contender in contenders.items():
        asked[name], answers = context.Pipe()
        context.Process(target=run_rounds, args=(answers, contender, rounds), daemon=True).start()
        answers.close()
    for index in range(1 + rounds):
        for name in random.Random(index).sample(sorted(asked), len(asked)):
            asked[name].send("go")
            found = asked[name].recv()
            if index > 0:
                rates[name].append(found)
    for name, values in rates.items():
        print(f"  {name:28} {spread([value / 1e3 for value in values], '9.1f')}   k rows/s", flush=True)
    return rates


def run_rounds(asked: Connection, contender: Contender, rounds: int) -> None:
    batches, rows, limit, skip = contender
    for _ in range(1 + rounds):
        asked.recv()
        asked.send(rate(batches, rows, limit, skip=skip))


def show_ratio(rates: Rates, name: str, other: str, goal: float) -> None:
    """Taken round by round, since a floor moves with the machine."""
    if name in rates and other in rates:
        values = [one / by for one, by in zip(rates[name], rates[other], strict=True)]
        print(f"    {name} / {other}: {spread(values, '.2f')}   (goal: at least {goal})", flush=True)


def spread(values: list[float], form: str) -> str:
    return " / ".join(format(one, form) for one in (min(values), statistics.median(values), max(values)))


def measure_tokens(folder: Path, files: int, rounds: int) -> None:
    paths = write_tokens(folder, files)
    dataset = open_dataset(paths, columns=["tokens"])
    cache, flat = folder / "cache", folder / "tokens.npy"
    make_cache(dataset, ["tokens"], cache)
    np.save(flat, np.concatenate([_rows(path) for path in paths]))
    every = dataset.rows // BATCH

    def by_cache(batch: int, readahead: int) -> Batches:
        options = {"window": len(dataset.blocks), "readahead": readahead, "cache": cache, "passes": PASSES}
        return lambda: by_trn(dataset, batch, **options)

    contenders: dict[str, Contender] = {
        SCANNER: (lambda: scanned(paths, BATCH), BATCH, every, 0),
        PARQUET: (lambda: by_trn(dataset, BATCH, window=WINDOW), BATCH, every, 0),
        PARQUET_THREADLESS: (lambda: by_trn(dataset, BATCH, window=WINDOW, readahead=0), BATCH, every, 0),
        MEMMAP: (lambda: gathered(flat, BATCH), BATCH, PASSES * every, 0),
        CACHE: (by_cache(BATCH, 2), BATCH, PASSES * every, 0),
        CACHE_THREADLESS: (by_cache(BATCH, 0), BATCH, PASSES * every, 0),
        MEMMAP_64: (lambda: gathered(flat, 64), 64, PASSES * every, 0),
        CACHE_64: (by_cache(64, 2), 64, PASSES * every, 0),
        CACHE_64_THREADLESS: (by_cache(64, 0), 64, PASSES * every, 0),
    }
    peers = add_peers(contenders, paths, flat, folder)
    print(f"\nTokens: {dataset.rows:,} rows of {TOKENS} int32, batches of {BATCH}; min / median / max")
    print(f"(the cache and the memory map {PASSES} times over, all of it in one window)")
    rates = measure(contenders, rounds)
    show_ratio(rates, PARQUET, SCANNER, 0.75)
    for name in (CACHE_THREADLESS, CACHE):
        show_ratio(rates, name, MEMMAP, 0.9)
    for name in (CACHE_64_THREADLESS, CACHE_64):
        show_ratio(rates, name, MEMMAP_64, 0.9)
    for name, goal in peers.items():
        show_ratio(rates, CACHE, name, goal)
        show_ratio(rates, PARQUET, name, goal)


def _rows(path: str) -> np.ndarray[Any, Any]:
    column = pq.read_table(path)["tokens"].combine_chunks()
    return column.flatten().to_numpy().reshape(-1, TOKENS)


def add_peers(contenders: dict[str, Contender], paths: list[str], flat: Path, folder: Path) -> dict[str, float]:
    """Those that are installed, a few batches each since they are slow, and the goals against them."""
    goals: dict[str, float] = {}
    if grain := found("grain"):
        contenders["grain"] = (lambda: by_grain(grain, flat), BATCH, 1500, 1)
        goals["grain"] = 5
    if datasets := found("datasets"):
        datasets.disable_progress_bars()
        contenders["datasets + DataLoader"] = (lambda: by_datasets(datasets, paths, folder), BATCH, 1000, 1)
        goals["datasets + DataLoader"] = 10
    if litdata := found("litdata"):
        try:
            write_for_litdata(litdata, flat, folder / "litdata")
        except Exception as error:  # noqa: BLE001 - a peer that fails to prepare is a line, not the end of the others
            print(f"litdata is left out: {type(error).__name__}: {error}".splitlines()[0][:200])
        else:
            contenders["litdata"] = (lambda: by_litdata(litdata, folder / "litdata"), BATCH, 1500, 1)
            goals["litdata"] = 5
    return goals


def found(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"{name} is left out: {error}")
        return None


def measure_tables(folder: Path, rows: int, rounds: int) -> None:
    print(f"\nTables: {rows:,} rows of {FLOATS} float32, batches of {TABLE_BATCH:,}, parquet, shuffled")
    rates: Rates = {}
    for name, as_list in (("one column of lists", True), (f"{FLOATS} columns", False)):
        path = write_floats(folder / f"floats-{as_list}.parquet", rows, 16_384, as_list=as_list)
        dataset = open_dataset([path], columns=None)
        batches = lambda dataset=dataset: by_trn(dataset, TABLE_BATCH, window=WINDOW)  # noqa: E731
        rates |= measure({f"trn, {name}": (batches, TABLE_BATCH, rows // TABLE_BATCH, 0)}, rounds)
    for name, values in rates.items():
        print(f"    {name}: {spread([one / 1e6 for one in values], '.2f')} M rows/s   (goal: at least 2)")


def measure_resume(folder: Path, rows: int, rounds: int) -> None:
    path = write_floats(folder / "long.parquet", rows, 10_000, as_list=True)
    planned = open_dataset([path], columns=None).to_json()
    print(f"\nFirst batch of {BATCH} rows, of an epoch of {rows:,}, ms; min / median / max")
    for window, cached in ((WINDOW, False), (WINDOW, True), (10**6, True)):
        cache = folder / "long" if cached else None
        if cache is not None:
            make_cache(Dataset.from_json(planned), ["x"], cache)
        name = f"{'cache' if cached else 'parquet'}, window {'all' if window > WINDOW else window}"
        times: Rates = {}
        for _ in range(rounds):
            for part in (0.0, 0.1, 0.5, 0.9):
                times.setdefault(f"{part:.0%}", []).append(first_batch_s(planned, part, window, cache))
        for part, values in times.items():
            print(f"  {name:24} {part:>4} {spread([value * 1e3 for value in values], '7.1f')}", flush=True)
        values = [late / fresh for late, fresh in zip(times["50%"], times["0%"], strict=True)]
        print(f"    50% / fresh: {spread(values, '.2f')}   (goal: at most 1.5)", flush=True)


def first_batch_s(planned: Any, part: float, window: int, cache: Path | None) -> float:
    """From a plan and a cursor to the batch, which is checked to be the right one."""
    began_s = time.perf_counter()
    dataset = Dataset.from_json(planned)
    order = Order(dataset.fingerprint, dataset.block_rows, seed=1, batch_size=BATCH, window=window)
    cursor = order.cursor_at(int(order.batches_per_pass * part))
    rows = None if cache is None else open_cache(dataset, ["x"], cache)
    with Feed(dataset, order, ["x"], cursor, cache=rows) as feed:
        batch = feed.next()
        elapsed_s = time.perf_counter() - began_s
    expected = order.batch(cursor)
    assert batch is not None, "there is a batch"
    assert expected is not None, "there is a batch"
    assert batch.row_ids.tolist() == expected.rows.tolist(), "not the right batch"
    return elapsed_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a fifth of the rows, two rounds")
    parser.add_argument("--folder", type=Path, default=Path(), help="where to write; a temporary folder in it")
    args = parser.parse_args()
    rounds = 2 if args.quick else args.rounds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # gigabytes are not left behind
    warnings.simplefilter("ignore")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    torch.set_num_threads(1)
    keep_freed_memory()  # as the runner does, and for every contender
    with tempfile.TemporaryDirectory(dir=args.folder, prefix=".bench-") as name:
        folder = Path(name)
        measure_tokens(folder, 2 if args.quick else 7, rounds)
        measure_tables(folder, 196_608 if args.quick else 983_040, rounds)
        measure_resume(folder, 400_000 if args.quick else 2_000_000, rounds)


if __name__ == "__main__":
    main()
