"""StepResult.debug: strict JSON whatever is in it, never more than 16 kB, or refused with the step."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import pytest
import torch

from trn.errors import TrainerError
from trn.loop.debug import MOST_BYTES, debug_fields
from trn.records import canonical_json, from_json


def told(debug: dict[Any, Any]) -> Any:
    fields = debug_fields(3, debug, {"step": 3})
    assert from_json(canonical_json(fields)) == fields, "strict JSON"
    return fields


def test_plain_values_stand_as_they_are() -> None:
    debug = {"a": 1, "b": [1.5, None, True, {"c": "text"}], "d": {}}
    assert told(debug) == {"debug": debug}


def test_numbers_that_are_not_finite_are_text() -> None:
    found = told({"a": math.nan, "b": [math.inf, -math.inf], "t": torch.tensor(math.nan)})["debug"]
    assert found == {"a": "nan", "b": ["inf", "-inf"], "t": "nan"}


def test_numbers_of_numpy_and_torch_become_plain_and_tuples_lists() -> None:
    found = told({"n": np.float32(0.5), "i": np.int64(3), "t": torch.tensor(2), "b": np.bool_(True), "s": (1, 2)})
    assert json.dumps(found["debug"]) == '{"n": 0.5, "i": 3, "t": 2, "b": true, "s": [1, 2]}'


def test_half_a_character_does_not_break_the_line() -> None:
    assert told({"a\ud800": "b\udfff"})["debug"] == {"a\ufffd": "b\ufffd"}


@pytest.mark.parametrize(
    ("debug", "says"),
    [
        ({"a": b"bytes"}, r"step 3, debug\['a'\]: a bytes; expected null"),
        ({"a": {"b": [object()]}}, r"debug\['a'\]\['b'\]\[0\]: a object"),
        ({"a": torch.zeros(3)}, "expected one number, found a tensor of several"),
        ({1: "a"}, "expected text as a name, found 1"),
        ({"a": {None: 1}}, "expected text as a name, found None"),
        ({"a": 1 << 64}, "a number of more than 64 bits"),
    ],
)
def test_what_json_has_no_word_for_is_refused_with_its_place(debug: dict[Any, Any], says: str) -> None:
    with pytest.raises(TrainerError, match=says) as error:
        told(debug)
    assert "\n" not in str(error.value)


def test_what_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TrainerError, match="nested deeper than 16, or holds itself"):
        told({"a": loop})


def test_a_metric_of_the_same_name_is_refused() -> None:
    with pytest.raises(TrainerError, match="a metric of the same name"):
        debug_fields(3, {"a": 1}, {"step": 3, "debug": 0.5})


def test_what_does_not_fit_is_left_out_whole_and_said_so() -> None:
    debug = {"first": 1, "big": "x" * MOST_BYTES, "many": list(range(100_000)), "last": 2}
    assert told(debug) == {"debug": {"first": 1, "last": 2}, "debug_truncated": True}


def test_the_whole_is_never_more_than_16_kb_and_fills_them() -> None:
    fields = told({f"key {number}": "x" * 90 for number in range(1000)})
    size = len(canonical_json(fields["debug"]))
    assert MOST_BYTES - 200 < size <= MOST_BYTES
    assert fields["debug_truncated"] is True


def test_a_million_values_cost_milliseconds() -> None:
    debug = {f"{number}": [0.5] * 1000 for number in range(10_000)}
    began_s = time.perf_counter()
    told(debug)
    assert time.perf_counter() - began_s < 1.0
