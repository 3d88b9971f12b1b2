"""`trn data inspect`: what a data set is, the order in which a run reads it, and how fast it comes, measured here."""

from __future__ import annotations

import statistics
import time
from typing import Any

from trn.feed.cache import has_cache, open_cache
from trn.feed.dataset import Dataset
from trn.feed.feed import Feed
from trn.feed.order import Cursor, Order
from trn.feed.subject import Subject

__all__ = ["inspect_data", "inspection_lines"]

_BATCHES_SHOWN = 3
_ROWS_SHOWN = 8


def inspect_data(subject: Subject, *, seconds: float) -> dict[str, Any]:
    """The report, as JSON values; reads for about `seconds`, at most a pass. Raises DataError."""
    dataset = subject.training.open(subject.columns, subject.fills)
    order = subject.order(dataset)
    sizes = dataset.block_rows
    return {
        "files": [
            {"path": file.path, "rows": file.rows, "row_groups": len(file.row_groups), "size_bytes": file.size_bytes}
            for file in dataset.files
        ],
        "rows": dataset.rows,
        "row_groups": len(sizes),
        "row_group_rows": {"min": min(sizes), "median": int(statistics.median(sizes)), "max": max(sizes)},
        "size_bytes": sum(file.size_bytes for file in dataset.files),
        "columns": [{"name": name, "type": kind} for name, kind in dataset.columns.items()],
        "fingerprint": dataset.fingerprint,
        "has_digests": all(file.digests is not None for file in dataset.files),
        "order": {
            "seed": order.seed,
            "shuffle": order.shuffle,
            "window": order.window,
            "batch_size": order.batch_size,
            "remainder": order.remainder,
            "batches_per_pass": order.batches_per_pass,
            "first_batches": _first_batches(order),
        },
        "reading": _measure(subject, dataset, order, seconds),
    }


def _first_batches(order: Order) -> list[list[int]]:
    """Row numbers of the first batches; the first few of each."""
    found: list[list[int]] = []
    cursor = Cursor()
    while len(found) < _BATCHES_SHOWN and (batch := order.batch(cursor)) is not None:
        found.append(batch.rows[:_ROWS_SHOWN].tolist())
        cursor = batch.span.next_cursor
    return found


def _measure(subject: Subject, dataset: Dataset, order: Order, seconds: float) -> dict[str, Any]:
    """How fast batches come when nothing is done with them, from the cache where there is one."""
    columns = list(dataset.columns)
    cached = subject.cache is not None and has_cache(dataset, columns, subject.cache)
    began_s = time.perf_counter()
    rows = batches = size_bytes = 0
    first_s = elapsed_s = 0.0
    cache = open_cache(dataset, columns, subject.cache) if cached and subject.cache is not None else None
    with Feed(dataset, order, columns, Cursor(), readahead=subject.readahead, cache=cache, fills=subject.fills) as feed:
        while batches < max(order.batches_per_pass, 1) and (not batches or elapsed_s < seconds):
            batch = feed.next()
            if batch is None:
                break
            elapsed_s = time.perf_counter() - began_s
            first_s = first_s or elapsed_s
            batches += 1
            rows += batch.record_batch.num_rows
            size_bytes += batch.record_batch.nbytes
    after_s = max(elapsed_s - first_s, 1e-9)
    is_long = batches > 1
    return {
        "source": "cache" if cached else "parquet",
        "batches": batches,
        "rows": rows,
        "seconds": round(elapsed_s, 6),
        "first_batch_seconds": round(first_s, 6) if batches else None,
        "rows_per_second": round((rows - rows / batches) / after_s) if is_long else None,
        "bytes_per_second": round((size_bytes - size_bytes / batches) / after_s) if is_long else None,
        "seconds_per_batch": round(after_s / (batches - 1), 9) if is_long else None,
    }


def inspection_lines(report: dict[str, Any]) -> list[str]:
    """The report for people."""
    order, reading, groups = report["order"], report["reading"], report["row_group_rows"]
    lines = [
        f"{report['rows']:,} rows in {report['row_groups']:,} row groups of {len(report['files']):,} files,"
        f" {report['size_bytes']:,} bytes, fingerprint {report['fingerprint'][:16]}",
        f"rows of a row group: {groups['min']:,} to {groups['max']:,}, median {groups['median']:,}",
        *(f"  {column['name']}: {column['type']}" for column in report["columns"]),
        f"{_how(order)}; {order['batches_per_pass']:,} batches of {order['batch_size']:,} rows a pass",
    ]
    for index, rows in enumerate(order["first_batches"]):
        more = " ..." if order["batch_size"] > len(rows) else ""
        lines.append(f"  batch {index + 1}: rows {', '.join(map(str, rows))}{more}")
    if reading["first_batch_seconds"] is None:
        return [*lines, f"there is no batch of {order['batch_size']:,} rows: what is read has fewer"]
    lines.append(f"first batch after {reading['first_batch_seconds'] * 1e3:,.1f} ms, from the {reading['source']}")
    if reading["seconds_per_batch"] is None:
        return [*lines, "too few batches to measure a speed"]
    wait_ms = reading["seconds_per_batch"] * 1e3
    lines.append(
        f"{reading['rows_per_second']:,} rows/s, {reading['bytes_per_second'] / 1e6:,.0f} MB/s:"
        f" a step that computes for {wait_ms:,.3f} ms or longer does not wait for data, a shorter one waits the rest"
    )
    return lines


def _how(order: dict[str, Any]) -> str:
    if not order["shuffle"]:
        return "read as it lies in the files"
    return f"shuffled by seed {order['seed']} in windows of {order['window']:,} row groups"
