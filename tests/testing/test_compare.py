"""What differs first is named, to the bit; and nothing that is the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from trn.testing import assert_same_end, differences, run_steps

from .trainers import Good, table


@dataclass
class Pair:
    left: Any
    right: Any


SAME = [
    {"a": [1, (2.0, "x", None)], "b": torch.arange(3)},
    torch.zeros(0, 3),
    torch.tensor([1.0, float("nan")], dtype=torch.bfloat16),
    Pair(np.arange(3), pa.array([1, None])),
    object(),
]
OTHER = [
    ({"a": {"b": 1.0}}, {"a": {"b": 2.0}}, ".a.b: expected 1.0, found 2.0"),
    (0.0, -0.0, ": expected 0.0, found -0.0"),
    (1, True, ": expected 1, found True"),
    ([1], [1, 2], ": expected 1 items, found 2 items"),
    ({"a": 1}, {}, ".a: expected 1, found nothing"),
    ({}, {"a": 1}, ".a: expected nothing, found 1"),
    (torch.zeros(2, 3), torch.tensor([[0.0, 0, 0], [0, -0.0, 0]]), "[1, 1]: expected 0.0, found -0.0"),
    (torch.zeros(2), torch.zeros(3), ": expected a tensor float32 [2], found a tensor float32 [3]"),
    (torch.zeros(2), torch.zeros(2).double(), ": expected a tensor float32 [2], found a tensor float64 [2]"),
    (torch.tensor(3), torch.tensor(4), ": expected 3, found 4"),
    (Pair(1, "a"), Pair(1, "b"), ".right: expected 'a', found 'b'"),
    (pa.array([1]), pa.array([2]), ": expected"),
]


@pytest.mark.parametrize("tree", SAME)
def test_what_is_the_same_differs_nowhere(tree: Any) -> None:
    assert differences(tree, tree) == []


@pytest.mark.parametrize(("expected", "found", "says"), OTHER)
def test_what_differs_is_named_with_both_values(expected: Any, found: Any, says: str) -> None:
    (only,) = differences(expected, found)
    assert str(only).startswith(says)


def test_two_runs_of_one_plan_end_the_same_and_of_another_seed_do_not(tmp_path: Path) -> None:
    ran = [
        run_steps(Good, table(), 4, spec={"seed": seed}, folder=tmp_path / name).run_dir
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert_same_end(ran[1], ran[0])
    with pytest.raises(AssertionError, match=r"run is not run: train_metrics.jsonl, step 1, train_loss: expected \d"):
        assert_same_end(ran[2], ran[0])


def test_a_weight_that_differs_behind_equal_metrics_is_found(tmp_path: Path) -> None:
    ran = [run_steps(Good, table(), 4, params={"width": 4}, folder=tmp_path / name).run_dir for name in ("a", "b")]
    lines = ran[1] / "reports/train_metrics.jsonl"
    lines.write_text("".join(lines.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(AssertionError, match=r"train_metrics.jsonl, steps: expected 4 items, found 3 items"):
        assert_same_end(ran[1], ran[0])
