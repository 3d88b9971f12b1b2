"""A batch of tensors cut into micro-batches by its rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["split_batch"]

Batch = Mapping[str, Tensor]


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Consecutive rows in so many parts of about the same size; parts without a row are left out.

    A column of lists of varying length, `NAME` with `NAME_offsets` as `ctx.tensors` gives it, is cut where its rows
    are, and its offsets begin at 0 in each part.
    """
    if parts == 1:
        return [batch] if batch else []
    rows = _rows_of(batch) if batch else 0
    edges = [rows * part // parts for part in range(parts + 1)]
    return [_cut(batch, low, high) for low, high in itertools.pairwise(edges) if high > low]


def _rows_of(batch: Batch) -> int:
    name = next(iter(batch))
    name = values if (values := name.removesuffix("_offsets")) in batch else name
    offsets = _offsets_of(batch, name)
    return len(batch[name]) if offsets is None else len(offsets) - 1


def _cut(batch: Batch, low: int, high: int) -> Batch:
    cut = {name: tensor[low:high] for name, tensor in batch.items()}
    for name in batch:
        if (offsets := _offsets_of(batch, name)) is not None:
            some = offsets[low : high + 1]
            cut[name] = batch[name][int(some[0]) : int(some[-1])]
            cut[f"{name}_offsets"] = some - some[0]
    return cut


def _offsets_of(batch: Batch, name: str) -> Tensor | None:
    """Where the rows of `name` begin and end among its values; None for a column that is no such list."""
    found = batch.get(f"{name}_offsets")
    if found is None or found.dim() != 1 or found.dtype != torch.int64 or not len(found):
        return None
    return found if int(found[0]) == 0 and int(found[-1]) == len(batch[name]) else None
