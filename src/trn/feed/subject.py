"""What `trn data inspect`, `validate` and `cache` look at: data as a spec or a command line names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trn.feed.dataset import Dataset, open_dataset
from trn.feed.manifest import open_manifest
from trn.feed.nulls import Fills
from trn.feed.order import Order, Remainder

__all__ = ["Named", "Subject", "named"]


@dataclass(frozen=True)
class Named:
    """Files, folders, globs and URLs; or one manifest."""

    paths: tuple[str, ...] = ()
    manifest: str | None = None

    def open(self, columns: Sequence[str] | None, fills: Fills | None) -> Dataset:
        """The data set, as a run opens it. Raises DataError for the first thing that is wrong."""
        if self.manifest is not None:
            return open_manifest(self.manifest, columns, fills)
        return open_dataset(self.paths, columns=columns, fills=fills)


def named(paths: Sequence[str]) -> Named:
    """Paths of a command line; a single one that ends in .json is a manifest."""
    if len(paths) == 1 and paths[0].endswith(".json"):
        return Named(manifest=paths[0])
    return Named(paths=tuple(paths))


@dataclass(frozen=True)
class Subject:
    """Training data with the settings that a run reads them by, and the validation data where there are some."""

    training: Named
    validation: Named | None = None
    columns: tuple[str, ...] | None = None
    """None: all of them."""
    fills: Fills | None = field(default_factory=dict)
    seed: int = 0
    batch_size: int = 32
    readahead: int = 2
    shuffle: bool = True
    window: int | Literal["all"] = 8
    remainder: Remainder = "carry"
    passes: int | None = 1
    cache: Path | None = None
    is_planned: bool = False
    """Whether the settings are somebody's, and not the defaults of a command line."""

    def order(self, dataset: Dataset) -> Order:
        """The order in which a run with these settings reads. Raises DataError where no batch could be made."""
        return Order(
            fingerprint=dataset.fingerprint,
            block_rows=dataset.block_rows,
            seed=self.seed,
            batch_size=self.batch_size,
            window=len(dataset.blocks) if self.window == "all" else self.window,
            shuffle=self.shuffle,
            remainder=self.remainder,
            passes=self.passes,
        )
