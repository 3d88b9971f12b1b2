"""Strict JSON both ways, ids, and records that refuse what they do not know."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from trn.errors import STATUS, NumericalInstability, Problem, SpecError, StorageError, TrnError
from trn.records import (
    RUN_ID_PATTERN,
    JsonError,
    Outcome,
    canonical_json,
    deterministic_part,
    ending_of,
    flat_line,
    from_json,
    json_line,
    new_job_id,
    new_run_id,
    read_lines,
)

OUTCOME = Outcome(
    status="completed",
    reason="all steps are made",
    step=3,
    run_id="r",
    job_id="j",
    epochs_completed=0,
    plan_fingerprint="f",
    started_at="a",
    ended_at="b",
    resumable=False,
)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b"\xff\xfe",
        b"",
        b"{",
        b'{"a": 1} x',
        b"[" * 100_000,
        b'{"a":' * 70 + b"1" + b"}" * 70,
    ],
)
def test_what_is_not_strict_json_is_refused(data: bytes) -> None:
    with pytest.raises(JsonError):
        from_json(data)


def test_brackets_inside_text_are_no_nesting() -> None:
    assert from_json(canonical_json({"a": "[{" * 500 + '"\\'})) == {"a": "[{" * 500 + '"\\'}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_never_written(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        json_line({"loss": value})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"loss": value})


@pytest.mark.parametrize("value", [0.1, -0.0, 5e-324, 1e22, 10**17, np.float64(1 / 3), True, None, 'a "\u00e9\n"'])
def test_a_flat_line_has_the_bytes_of_any_line(value: object) -> None:
    line = {"step": 1, "loss": value, 'na"m\u00e9': value}
    assert flat_line(line) == json_line(line)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_flat_line_refuses_what_any_line_refuses(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        flat_line({"step": 1, "loss": value})


def test_floats_survive_the_journal_bit_for_bit() -> None:
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 2.3841857910156250e-07]
    read = from_json(json_line({"v": values}))["v"]
    assert [value.hex() for value in read] == [value.hex() for value in values]


def test_a_torn_last_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"a":1}\n{"a":2}\n{"a":')
    assert list(read_lines(path)) == [{"a": 1}, {"a": 2}]
    assert list(read_lines(tmp_path / "none")) == []
    path.write_bytes(b'{"a":1}\nnoise\n')
    with pytest.raises(JsonError, match="lines:2"):
        list(read_lines(path))


def test_ids_are_unique_valid_and_sort_by_time() -> None:
    ids = [new_job_id() for _ in range(200)]
    assert len(set(ids)) == 200
    assert RUN_ID_PATTERN.fullmatch(new_run_id())
    assert new_job_id() > ids[0]


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "../x", "-a", "a" * 65, "a b", "a\n", "é"])
def test_a_run_id_is_never_a_path(bad: str) -> None:
    assert not RUN_ID_PATTERN.fullmatch(bad)


def test_an_outcome_makes_the_round_trip() -> None:
    assert Outcome.from_json(OUTCOME.to_json()) == OUTCOME
    assert OUTCOME.exit_code == 0


@pytest.mark.parametrize(
    "change",
    [
        {"status": "fine"},
        {"exit_code": 1},
        {"step": "3"},
        {"step": True},
        {"resumable": 0},
        {"extra": 1},
        {"artifacts": None},
        {"final": []},
    ],
)
def test_a_changed_outcome_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(JsonError):
        Outcome.from_json(OUTCOME.to_json() | change)


@pytest.mark.parametrize("gone", sorted(OUTCOME.to_json()))
def test_an_outcome_without_one_of_its_keys_is_refused(gone: str) -> None:
    with pytest.raises(JsonError, match="missing"):
        Outcome.from_json({key: value for key, value in OUTCOME.to_json().items() if key != gone})


def test_each_outcome_has_one_kind_of_ending() -> None:
    assert {status: ending_of(status) for status in ("completed", "early_stopped", "preempted", "cancelled")} == {
        "completed": "completed",
        "early_stopped": "completed",
        "preempted": "preempted",
        "cancelled": "cancelled",
    }
    assert ending_of("numerical_instability") == "failed"


def test_the_deterministic_part_has_no_clock_in_it() -> None:
    line = {"step": 1, "train_loss": 0.5, "wall_ms": 1.0, "tokens_per_sec": 2.0, "tokens_seen": 3, "gpu_util_pct": None}
    assert deterministic_part(line) == {"step": 1, "train_loss": 0.5, "tokens_seen": 3}


def _all_errors(kind: type[TrnError]) -> list[type[TrnError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _all_errors(child))]


def test_every_error_of_the_tree_has_a_code_of_the_table() -> None:
    for kind in _all_errors(TrnError)[1:]:
        assert kind.code in STATUS, kind


def test_messages_are_one_line_that_says_where_and_what() -> None:
    error = StorageError("cannot write: No space left.", where="runs/a", hint="Free some space and resume.")
    assert str(error) == "storage error [io_error] at runs/a: cannot write: No space left. Free some space and resume."
    refused = NumericalInstability(step=7, field="train_loss", value=math.nan)
    assert "step 7" in str(refused)
    assert "train_loss is nan" in str(refused)
    two = SpecError([Problem("a.b", "wrong", "s.yaml", 3), Problem("", "empty")])
    assert str(two).splitlines() == [
        "spec error [spec_refused] s.yaml:3: a.b: wrong",
        "spec error [spec_refused] empty",
    ]
    assert two.exit_status == 2
