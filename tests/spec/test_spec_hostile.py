"""Hostile specs: each is refused within a second of CPU, by a line and not by a traceback."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trn.errors import Problem, SpecError
from trn.spec import load_spec
from trn.spec.sources import MAX_BYTES

Refuse = Callable[..., list[Problem]]

SIZE = MAX_BYTES - 100


def fill(text: str, head: str = "", tail: str = "") -> str:
    """`text` as often as the size of a spec allows."""
    return head + text * ((SIZE - len(head) - len(tail)) // len(text.encode())) + tail


def laughs() -> str:
    lines = ["a0: &a0 [" + ",".join(["1"] * 10) + "]"]
    lines += [f"a{n}: &a{n} [" + ",".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, 20)]
    return "\n".join(lines)


def ladder() -> str:
    """Aliases that add depth one by one."""
    return "a0: &a0 [1]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 1000))


YAML = {
    "laughs": laughs(),
    "ladder": ladder(),
    "many aliases": fill("*a,", "a: &a [1,2,3]\nb: [", "]"),
    "deep flow list": fill("["),
    "deep flow mapping": fill("{a: "),
    "deep block list": fill("- "),
    "deep block mapping": "\n".join(" " * n + "a:" for n in range(700)),
    "deep keys": fill("? "),
    "deep and closed": "[" * (SIZE // 2) + "]" * (SIZE // 2),
    "many values": fill("1,", "a: [", "]"),
    "many lines": fill("- 1\n"),
    "many keys": "\n".join(f"key{n}: 1" for n in range(9000)),
    "many keys in hyperparams": "hyperparams:\n" + "\n".join(f"  key{n}: .nan" for n in range(9000)),
    "the same key": fill("seed: 1\n"),
    "long key": fill("x", "'", "': 1"),
    "long plain key": fill("x", "", ": 1"),
    "long text": fill("x", "owner: "),
    "long words": fill("x ", "owner: "),
    "long quoted": fill("x", 'owner: "', '"'),
    "many escapes": fill("\\n", 'owner: "', '"'),
    "many breaks": fill("\n", 'owner: "', '"'),
    "block text": fill(" x\n", "owner: |\n"),
    "folded text": fill(" x\n", "owner: >\n"),
    "huge number": fill("9", "seed: "),
    "huge float": fill("9", "seed: 1."),
    "huge exponent": fill("9", "seed: 1e"),
    "huge hex": fill("f", "seed: 0x"),
    "huge version": fill("1", "%YAML ", "\n---\na: 1"),
    "many directives": fill("%TAG ! x\n", "", "---\na: 1"),
    "long tag": fill("a", "a: !", " x"),
    "verbatim tag": fill("a", "a: !<", "> x"),
    "escaped tag": fill("%41", "a: !<", "> x"),
    "many tags": fill("!a ", "a: "),
    "many exclamations": fill("!"),
    "long anchor": fill("a", "a: &", " x"),
    "many anchors": fill("&a 1,", "a: [", "]"),
    "many colons": fill(": "),
    "many commas": fill(",", "a: [", "]"),
    "many documents": fill("---\n"),
    "many comments": fill("#\n"),
    "one comment": fill("x", "#"),
    "blank lines": fill("\n", "", "a: 1"),
    "many profiles": "profiles:\n" + "\n".join(f"  p{n}: {{a{n}: 1}}" for n in range(3000)),
    "wide profiles": "profiles:\n"
    + "\n".join(f"  p{n}: {{" + ", ".join(f"seet{k}: 1" for k in range(140)) + "}" for n in range(32)),
    "many bases": fill("x.yaml,", "extends: [", "]"),
    "tabs": fill("\t", "a:\n", "b: 1"),
    "control characters": fill("\x1b"),
    "line separators": fill("\u2028", "a: 1"),
    "right to left": fill("\u202e", "owner: "),
}
JSON = {
    "deep": fill("["),
    "deep and closed": "[" * (SIZE // 2) + "]" * (SIZE // 2),
    "deep objects": fill('{"a":'),
    "many values": fill("1,", '{"a":[', "1]}"),
    "the same key": fill('"a":1,', "{", '"a":1}'),
    "huge number": fill("9", '{"seed":', "}"),
    "huge negative number": fill("9", '{"seed":-', "}"),
    "huge float": fill("9", '{"seed":0.', "}"),
    "long text": fill("x", '{"owner":"', '"}'),
    "many escapes": fill("\\n", '{"owner":"', '"}'),
    "torn text": fill("x", '{"owner":"'),
    "white space": fill(" ", "{", "}"),
    "nan": '{"seed": NaN, "threads": -Infinity, "hyperparams": {"a": Infinity}}',
}
TOML = {
    "dotted key": ".".join(["a"] * (SIZE // 2)) + " = 1",
    "spaced dotted key": " . ".join(["a"] * (SIZE // 4)) + " = 1",
    "quoted dotted key": ".".join(['"a"'] * (SIZE // 4)) + " = 1",
    "dotted key in a table": "x = {" + ".".join(["a"] * (SIZE // 2)) + " = 1}",
    "dotted header": "[" + ".".join(["a"] * (SIZE // 2)) + "]",
    "many dotted keys": "\n".join(".".join(["a"] * 31) + f".b{n} = 1" for n in range(3500)),
    "deep lists": fill("[", "a = "),
    "deep and closed": "a = " + "[" * (SIZE // 2 - 4) + "]" * (SIZE // 2 - 4),
    "deep tables": fill("{a=", "a = "),
    "many tables": "\n".join(f"[a{n}]" for n in range(20_000)),
    "many table lists": fill("[[a]]\n"),
    "many keys": "\n".join(f"a{n}=1" for n in range(20_000)),
    "many values": fill("1,", "a = [", "]"),
    "huge number": fill("9", "seed = "),
    "huge hex": fill("f", "seed = 0x"),
    "long key": fill("a", "", " = 1"),
    "long text": fill("x", 'owner = "', '"'),
    "quotes": fill('"'),
    "nan": "seed = nan\nthreads = -inf",
}
HOSTILE = [
    (name, text, suffix)
    for suffix, table in ((".yaml", YAML), (".json", JSON), (".toml", TOML))
    for name, text in table.items()
]


@pytest.mark.parametrize(
    ("name", "text", "suffix"), HOSTILE, ids=[f"{suffix[1:]}: {name}" for name, _, suffix in HOSTILE]
)
def test_a_hostile_spec_is_refused_within_a_second(
    tmp_path: Path, refuse: Refuse, name: str, text: str, suffix: str
) -> None:
    path = tmp_path / f"spec{suffix}"
    path.write_text(text, encoding="utf-8")
    assert path.stat().st_size <= MAX_BYTES
    before = time.process_time()
    problems = refuse(path)
    assert time.process_time() - before < 1.0
    assert problems
    assert len(problems) <= 101
    for problem in problems:
        assert problem.file == str(path)
        assert str(problem).isprintable()
        assert len(str(problem)) < 1000


def test_bases_that_all_extend_each_other_are_refused_within_a_second(tmp_path: Path, refuse: Refuse) -> None:
    body = "hyperparams: {" + ", ".join(f"k{n}: 1" for n in range(500)) + "}\n"
    for number in range(30):
        below = ", ".join(f"{other}.yaml" for other in range(number))
        (tmp_path / f"{number}.yaml").write_text(f"extends: [{below}]\n{body}")
    before = time.process_time()
    refuse(tmp_path / "29.yaml")
    assert time.process_time() - before < 1.0


def message_of(folder: Path, data: bytes, suffix: str, sets: Sequence[str] = ()) -> str:
    """What a spec is refused with, "" for one that loads; any other error is the test's failure."""
    path = folder / f"fuzz{suffix}"
    path.write_bytes(data)
    try:
        load_spec(path, sets=sets)
    except SpecError as error:
        return "".join(map(str, error.problems))
    return ""


PIECES = st.sampled_from(
    [
        *"[]{}:,-?&*!|>%@`'\"#\\\n\t .~<=",
        *(
            "&a ",
            "*a",
            "<<: ",
            "!!str ",
            "---\n",
            "...\n",
            "%YAML 1.1\n",
            "\\x",
            "\\ud800",
            "seed: 1\n",
            "dataset:\n  ",
        ),
        *("[dataset]\n", '"a": ', "a = ", "1e999", ".nan", "null", "\x00", "\x85", "\u2028"),
    ]
)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pieces=st.lists(PIECES, max_size=30), suffix=st.sampled_from([".yaml", ".json", ".toml"]))
def test_no_text_escapes_as_another_error(tmp_path: Path, pieces: list[str], suffix: str) -> None:
    assert message_of(tmp_path, "".join(pieces).encode(), suffix).isprintable()


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=60), suffix=st.sampled_from([".yaml", ".json", ".toml"]))
def test_no_bytes_escape_as_another_error(tmp_path: Path, data: bytes, suffix: str) -> None:
    assert message_of(tmp_path, data, suffix).isprintable()


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pieces=st.lists(PIECES, max_size=12))
def test_no_set_escapes_as_another_error(tmp_path: Path, pieces: list[str]) -> None:
    sets = ["hyperparams.a=" + "".join(pieces), "".join(pieces)]
    assert message_of(tmp_path, b"seed: 1\n", ".yaml", sets).isprintable()
