"""Where the loop's batches come from: the feed's rows as they are, or transformed, here or in worker processes.

    feed ──rows──────────────────────────────────────────> prepare_batch      Rows: no transform of the trainer's own
    feed ──rows──> transform ────────────────────────────> prepare_batch      Transformed: on the loop's thread
    feed ──rows──> [ transform | transform ... ] ──order─> prepare_batch      trn.loop.workers: in processes

All three give the same batches, bit for bit: a transform runs with streams of its batch's own (`transform_seed`), and
what a run has consumed is the `next_cursor` of the batch that was handed to a step, whatever was prepared ahead of it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from trn.checkpoint import rng
from trn.errors import TrainerError, TrnError
from trn.feed import Cursor, Feed, RawBatch

if TYPE_CHECKING:
    from trn.loop.stop import StopRequest
    from trn.trainer import Context

__all__ = ["Batches", "Rows", "Transformed", "transform_seed"]


class Batches(ABC):
    """The batches of a run, in order. Used from the loop's thread; closing it closes the feed."""

    is_raw: bool = False
    """Whether `prepare_batch` takes the rows themselves: then `ready` is not asked."""

    @abstractmethod
    def next(self) -> RawBatch | None:
        """The rows of the next batch; None after the last one, and where a stop was asked for during the wait.

        Raises DataError.
        """

    @abstractmethod
    def ready(self, raw: RawBatch, ctx: Context) -> Any:
        """What `prepare_batch` is given for the rows that `next` gave last. Raises TrainerError."""

    @abstractmethod
    def close(self) -> None:
        """End whatever prepares ahead. Can be called again."""


class Rows(Batches):
    """The feed's rows as they are."""

    is_raw = True

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def next(self) -> RawBatch | None:
        return self._feed.next()

    def ready(self, raw: RawBatch, ctx: Context) -> Any:
        return raw.record_batch

    def close(self) -> None:
        self._feed.close()


class Transformed(Batches):
    """Rows that the trainer's `transform` goes over when their step has come."""

    def __init__(self, feed: Feed, trainer: Any, *, seed: int, rank: int, stop: StopRequest) -> None:
        self._feed = feed
        self._transform = trainer.transform
        self._seed, self._rank = seed, rank
        self._stop = stop

    def next(self) -> RawBatch | None:
        return self._feed.next()

    def ready(self, raw: RawBatch, ctx: Context) -> Any:
        try:
            with self._stop.breaking_off(), rng.isolated(transform_seed(self._seed, raw.cursor, self._rank)):
                return self._transform(raw.record_batch, ctx)
        except (TrnError, MemoryError):
            raise
        except BaseException as error:
            raise TrainerError(f"{type(error).__name__}: {error}", where=f"transform at step {ctx.step}") from error

    def close(self) -> None:
        self._feed.close()


def transform_seed(seed: int, cursor: Cursor, rank: int) -> int:
    """Where the global random streams begin for one batch: 63 bits of a sha256 over seed, place in the data, rank.

    The place and not the step, which moves where a batch was left out.
    """
    text = f"{seed}/transform/{cursor.pass_index}/{cursor.offset}/{rank}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
