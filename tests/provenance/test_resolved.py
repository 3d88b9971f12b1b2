"""config_resolved.yaml reads back as the plan."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from trn.provenance.resolved import config_resolved_yaml, plain_yaml


def _read(data: bytes | str, version: str = "1.2") -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.version = version
    return yaml.load(data)


def test_the_plan_reads_back_equal_and_in_its_order(plan: dict[str, Any]) -> None:
    data = config_resolved_yaml(plan)
    assert _read(data) == plan
    assert list(_read(data)) == list(plan)
    assert data.decode().splitlines()[:3] == [
        "# The plan of this run, for people. The run itself obeys resolved_config.json.",
        "schema_version: 1",
        "config_path: /specs/train.yaml",
    ]


def test_sections_are_blocks_and_empty_ones_are_seen() -> None:
    value = {"a": {"b": [1, {"c": [], "d": {}}, [2, [3]]], "e": None}, "f": "", "g": True}
    assert plain_yaml(value) == (
        "a:\n  b:\n    - 1\n    - c: []\n      d: {}\n    - - 2\n      - - 3\n  e: null\nf: \"\"\ng: true\n"
    )  # fmt: skip
    assert plain_yaml({}) == "{}\n"


AMBIGUOUS = [
    *("no", "Yes", "on", "y", "null", "~", "nan", "true", ".inf", ".nan", "<<", "=", "---", "...", "é", "😀"),
    *("1e-3", "012", "0x1f", "1_000", "12:30:00", "2024-01-01", "+1", "-", "1.", "0o7", "0b1", "1e5"),
    *("- a", "a: b", "a #b", "#a", "*a", "&a", "!a", "%a", "@a", "`a", "{a", "[a", "|", ">", "?", ":", ",", "a,b"),
    *("'", '"', "\\", "a\nb", " a", "a ", "a  b", "\t", "\r", "\0", "\x7f", "\x85", "\u2028", "\ufeff", "\ufffe"),
]


@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_text_stays_text_for_readers_of_either_version(version: str) -> None:
    value = {"values": AMBIGUOUS, "keys": {text: index for index, text in enumerate(AMBIGUOUS)}}
    assert _read(plain_yaml(value), version) == value


@pytest.mark.parametrize("version", ["1.1", "1.2"])
@pytest.mark.parametrize("number", [1e-05, 1e22, -1.5e-300, 5e-324, 0.1, -0.0, 1.0, 10**30, -7, 1e16])
def test_numbers_stay_what_they_are_for_readers_of_either_version(number: float, version: str) -> None:
    read = _read(plain_yaml({"x": number}), version)["x"]
    assert (type(read), repr(read)) == (type(number), repr(number))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=5))
@settings(max_examples=100, deadline=None)
def test_any_json_object_reads_back_equal(value: dict[str, Any]) -> None:
    assert _read(plain_yaml(value)) == value
