"""Micro-batches are cut where the rows are, lists of varying length too."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pytest
import torch

from trn.feed.tensors import to_tensors
from trn.trainer.micro_batches import split_batch

ROWS = [[1, 2], [], [3], [4, 5, 6], [7]]


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("names", [["y", "x"], ["x", "y"]])
def test_lists_are_cut_with_their_rows(parts: int, names: list[str]) -> None:
    batch = to_tensors(pa.RecordBatch.from_pydict({"x": ROWS, "y": [0, 1, 2, 3, 4]}), names)
    found = []
    for micro in split_batch(batch, parts):
        offsets = micro["x_offsets"].tolist()
        assert offsets[0] == 0
        lists = [micro["x"][low:high].tolist() for low, high in itertools.pairwise(offsets)]
        assert len(lists) == len(micro["y"]) > 0
        found += list(zip(lists, micro["y"].tolist(), strict=True))
    assert found == list(zip(ROWS, range(5), strict=True))


def test_offsets_first_are_no_column_of_rows() -> None:
    batch = {"x_offsets": torch.tensor([0, 1, 3]), "x": torch.tensor([1, 2, 3])}
    assert [micro["x"].tolist() for micro in split_batch(batch, 2)] == [[1], [2, 3]]


def test_two_columns_that_only_sound_like_lists_are_cut_alike() -> None:
    batch = {"x": torch.arange(4), "x_offsets": torch.tensor([5, 6, 7, 8])}
    assert [micro["x_offsets"].tolist() for micro in split_batch(batch, 2)] == [[5, 6], [7, 8]]
    assert split_batch({"x": torch.arange(0)}, 2) == []
    assert split_batch({}, 2) == []
