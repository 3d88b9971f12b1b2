"""What stands in the place of the feed where a loop brings its own data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from trn.feed import Cursor, RawBatch
from trn.loop.batches import Batches

__all__ = ["NoData"]


class NoData(Batches):
    """For a loop that brings its own data: a step, and no rows."""

    is_raw = True

    def __init__(self) -> None:
        none = Cursor()
        self._nothing = RawBatch(
            pa.record_batch([], names=[]), np.empty(0, np.int64), np.empty(0, np.int32), none, none, 0, False, 0
        )

    def next(self) -> RawBatch | None:
        return self._nothing

    def ready(self, raw: RawBatch, ctx: Any) -> Any:
        return raw.record_batch

    def close(self) -> None:
        """There is nothing to end."""
