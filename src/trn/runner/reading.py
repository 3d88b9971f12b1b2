"""What a rank reads: its rows of the training's batches from where the run stands, and of the validation's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trn.errors import Stopped
from trn.feed import (
    Cursor,
    Dataset,
    Feed,
    MappedRows,
    find_cache_at,
    has_cache,
    make_cache,
    open_cache,
    open_cache_at,
    read_sequential,
)
from trn.loop.progress import Progress
from trn.loop.stop import StopRequest
from trn.plan import plan_order
from trn.ranks import World
from trn.runner.company import Company
from trn.runner.console import say
from trn.spec.plan_model import Plan

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["open_feed", "require_handed_over", "validation_of"]


def open_feed(plan: Plan, progress: Progress, company: Company, stop: StopRequest) -> Feed:
    """This rank's rows, from the batch that comes next; where a cache is wanted and not there, it is made first.

    What was handed over decoded is read from there, and from nowhere else.
    Raises DataError; Stopped where that was asked for while the cache was made.
    """
    part, world = plan.dataset, company.world
    dataset = Dataset.from_json(part.data)
    cursor = Cursor() if progress.cursor is None else progress.cursor
    return Feed(
        dataset,
        plan_order(plan),
        part.columns,
        cursor,
        rank=world.rank,
        world_size=world.world_size,
        readahead=part.readahead,
        cache=_decoded(plan, dataset, company, stop),
        fills=part.fills,
        # one of several ranks cannot stop alone: they agree before each step
        give_up=stop.requested if world.world_size == 1 else None,
    )


def require_handed_over(plan: Plan, company: Company) -> None:
    """Raise DataError where decoded data were handed over that are not those of the plan."""
    if company.arrow is not None:
        find_cache_at(company.arrow, Dataset.from_json(plan.dataset.data), plan.dataset.columns)


def _decoded(plan: Plan, dataset: Dataset, company: Company, stop: StopRequest) -> MappedRows | None:
    """The rows decoded before; None: they are decoded from parquet as they are read."""
    part = plan.dataset
    if company.arrow is not None:
        return open_cache_at(company.arrow, dataset, part.columns)
    return None if part.cache is None else _cached(dataset, part.columns, Path(part.cache), company, stop)


def _cached(dataset: Dataset, columns: Sequence[str], folder: Path, company: Company, stop: StopRequest) -> MappedRows:
    if not has_cache(dataset, columns, folder):
        speaks = company.world.rank == 0  # whichever of the ranks makes it
        if speaks:
            say(f"trn: decoding {dataset.rows:,} rows into the cache {folder}, once")

        def each_block(rows: int) -> None:
            company.watchdog.step_ended()
            if stop.requested():
                raise Stopped(
                    stop.outcome or "preempted", f"{stop.reason}, while the data were decoded into the cache."
                )

        made = make_cache(dataset, columns, folder, each_block=each_block)
        if speaks:
            say(f"trn: the cache is there: {made.size_bytes:,} bytes")
    return open_cache(dataset, columns, folder)


def validation_of(plan: Plan, world: World) -> Callable[[], Iterable[pa.RecordBatch]] | None:
    """This rank's rows of each validation batch, from the first; None without validation."""
    part = plan.validation
    if part is None:
        return None
    dataset = Dataset.from_json(part.data)
    return lambda: read_sequential(
        dataset,
        part.columns,
        part.batch_size,
        part.max_batches,
        rank=world.rank,
        world_size=world.world_size,
        fills=plan.dataset.fills,
    )
