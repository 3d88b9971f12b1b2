"""How far outputs lie apart, and how far they may."""

from __future__ import annotations

import numpy as np
import pytest

from trn.export.differences import gap_of, statistics_of, tolerance_of
from trn.export.sets import aligned

F32 = np.float32


def test_differences_are_absolute_and_relative_to_the_larger_value() -> None:
    gap = gap_of(np.array([1.0, 0.0, -4.0], F32), np.array([1.5, 0.0, -2.0], F32))
    assert gap.problem is None
    assert gap.absolute.tolist() == [0.5, 0.0, 2.0]
    assert gap.relative.tolist() == pytest.approx([1 / 3, 0.0, 0.5])


def test_statistics_are_those_of_all_numbers() -> None:
    found = statistics_of(np.arange(101.0))
    assert found == {"max": 100.0, "mean": 50.0, "p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}
    assert set(statistics_of(np.zeros(0)).values()) == {0.0}


@pytest.mark.parametrize(
    ("expected", "found", "problem"),
    [
        (np.zeros((2, 3), F32), np.zeros((3, 2), F32), "shape_mismatch: expected [2, 3], found [3, 2]"),
        (np.zeros(2, F32), np.zeros(2), "dtype_mismatch: expected float32, found float64"),
        (np.zeros(2, F32), np.array([0, np.nan], F32), "non_finite"),
        (np.array([np.nan, 0], F32), np.array([np.nan, 0], F32), "non_finite"),
        (np.array([np.inf, 0], F32), np.array([-np.inf, 0], F32), "non_finite"),
    ],
)
def test_what_cannot_be_compared_is_a_problem_with_its_reason(
    expected: np.ndarray, found: np.ndarray, problem: str
) -> None:
    assert (gap_of(expected, found).problem or "").startswith(problem)


def test_infinities_of_one_sign_at_one_place_are_equal() -> None:
    masked = np.array([1.0, -np.inf], F32)
    assert gap_of(masked, masked.copy()).absolute.tolist() == [0.0, 0.0]


def test_whole_numbers_beyond_the_precision_of_a_float_still_differ() -> None:
    assert gap_of(np.array([2**60]), np.array([2**60 + 1])).absolute.tolist() == [1.0]


def test_the_tolerance_follows_from_the_gap_of_the_model_itself() -> None:
    ours = np.array([2.0, -8.0], F32)
    wide = np.array([2.0, -8.0 + 4e-6])
    found = tolerance_of([ours], [wide], None)
    assert (found.rule, found.scale) == ("own_gap", 8.0)
    assert found.atol == pytest.approx(4e-5, rel=1e-3)


def test_a_gap_that_is_small_by_luck_is_not_taken_for_exactness() -> None:
    ours = np.array([4.0], F32)
    assert tolerance_of([ours], [ours.astype(float)], None).atol == 16 * np.finfo(F32).eps * 4.0


def test_a_model_that_jumps_does_not_excuse_everything() -> None:
    ours = np.array([1.0, 2.0], F32)
    found = tolerance_of([ours], [np.array([2.0, 1.0])], None)
    assert found.atol == pytest.approx(2e-3)
    assert found.note is not None
    assert "Export.sets" in found.note


def test_without_float64_the_type_decides_and_says_so() -> None:
    found = tolerance_of([np.array([2.0], F32)], None, None, "the model does not run in float64")
    assert (found.atol, found.rule, found.own_gap) == (pytest.approx(2e-4), "type", None)
    assert found.note == "the model does not run in float64"


def test_a_tolerance_that_is_given_is_taken_and_whole_numbers_have_none() -> None:
    assert tolerance_of([np.array([2.0], F32)], None, 0.5).atol == 0.5
    assert tolerance_of([np.array([2])], [np.array([2])], 0.5).atol == 0.0


def test_the_k_best_are_brought_into_order_together() -> None:
    rng = np.random.default_rng(0)
    scores, boxes = rng.random((2, 5)).astype(F32), rng.random((2, 5, 4)).astype(F32)
    scores[:, 3] = scores[:, 1]  # a tie
    order = np.array([0, 3, 2, 1, 4])
    noise = F32(1e-7)
    found = {"scores": scores[:, order] + noise, "boxes": boxes[:, order] + noise, "sum": scores.sum(1)}
    result = aligned({"scores": scores, "boxes": boxes, "sum": scores.sum(1)}, found, {"scores": 1, "boxes": 1})
    assert np.abs(result["boxes"] - boxes).max() < 1e-6
    assert np.abs(result["scores"] - scores).max() < 1e-6
    assert result["sum"] is found["sum"]


def test_a_wrong_row_of_a_set_stays_wrong() -> None:
    boxes = np.arange(12, dtype=F32).reshape(1, 3, 4)
    other = boxes.copy()
    other[0, 1, 2] += 0.25
    result = aligned({"boxes": boxes}, {"boxes": other[:, ::-1]}, {"boxes": 1})
    assert np.abs(result["boxes"] - boxes).max() == 0.25


def test_each_row_of_a_set_is_taken_once() -> None:
    boxes = np.array([[[0.0], [1.0]]], F32)
    twice = np.array([[[0.0], [0.0]]], F32)
    assert np.abs(aligned({"b": boxes}, {"b": twice}, {"b": 1})["b"] - boxes).max() == 1.0


@pytest.mark.parametrize("fill", [-1e9, float(np.finfo(F32).min)])
def test_a_mask_does_not_set_the_scale_of_the_others(fill: float) -> None:
    ours = np.array([fill, 2.0, fill, -1.0, 0.0, -np.inf], F32)
    wide = np.array([-1.8e308 if fill < -1e30 else fill, 2.0, fill, -1.0, 0.0, -np.inf])
    found = tolerance_of([ours], [wide], None)
    assert (found.scale, found.atol) == (2.0, 32 * np.finfo(F32).eps)
    assert found.allowed(ours)[1] == found.atol
    assert 0 < found.allowed(ours)[0] <= 1e-3 * abs(ours[0])
    assert tolerance_of([ours], [wide], 0.5).allowed(ours).tolist() == [0.5] * 6


def test_numbers_of_many_sizes_are_one_class() -> None:
    for values in ([1e-9, 1e-3, 1.0], [0.0, 1.0, 999.0], [10.0, 1e3, 1e5], [2e6], [0.0, 0.0]):
        assert tolerance_of([np.array(values, F32)], None, None).far_from is None
