"""The three formats: which values they give, where they say things stand, what they refuse."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trn.errors import Problem, SpecError
from trn.spec import load_spec
from trn.spec.documents import read_document, read_value, yaml_scalar
from trn.spec.nodes import MAX_ALIASES, MAX_DEPTH, MAX_NODES, Refusal, lookup, plain

Write = Callable[..., Path]
Refuse = Callable[..., list[Problem]]


def value_of(text: str, suffix: str = ".yaml") -> object:
    document = read_document(text, suffix, "f")
    assert document.problems == []
    assert document.root is not None
    return plain(document.root)


def refusal_of(text: str, suffix: str = ".yaml") -> str:
    with pytest.raises(Refusal) as caught:
        read_document(text, suffix, "f")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1e3", 1000.0),
        ("5.0e-5", 5e-5),
        (".5", 0.5),
        ("1.", 1.0),
        ("+7", 7),
        ("-0", 0),
        ("012", 12),
        ("0o14", 12),
        ("0x1F", 31),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("True", True),
        ("FALSE", False),
        ("", None),
        ("~", None),
        ("Null", None),
        ("none", "none"),
        ("2026-11-21", "2026-11-21"),
        ("12:30:45", "12:30:45"),
        ("-.inf", -math.inf),
        (".INF", math.inf),
        ("inf", "inf"),
        ("nan", "nan"),
        ("1e999", math.inf),
        ("9" * 401, math.inf),
        ("-" + "9" * 401, -math.inf),
        ("9" * 30, int("9" * 30)),
        ("٣", "٣"),
        ("+", "+"),
        (".", "."),
        ("e3", "e3"),
    ],
)
def test_plain_scalars_mean_what_yaml_1_2_says(text: str, value: object) -> None:
    got = yaml_scalar(text)
    assert got == value
    assert type(got) is type(value)


def test_nan_is_a_number_that_the_schema_refuses() -> None:
    assert math.isnan(float(str(yaml_scalar(".NaN"))))


def test_quoted_scalars_are_text() -> None:
    assert value_of("a: '1'\nb: \"true\"\nc: |-\n  null\n") == {"a": "1", "b": "true", "c": "null"}


def test_the_same_document_reads_the_same_in_three_formats() -> None:
    yaml = "a: {b: [1, 2.5, true]}\nc: 'x\\y\"é'\n"
    json = '{"a": {"b": [1, 2.5, true]},\n "c": "x\\\\y\\"\\u00e9"}'
    toml = "c = 'x\\y\"é'\n[a]\nb = [1, 2.5, true]\n"
    assert value_of(yaml) == value_of(json, ".json") == value_of(toml, ".toml")


def test_json_reads_pairs_of_surrogates_as_one_character() -> None:
    assert value_of('{"a": "\\ud83d\\ude00"}', ".json") == {"a": "\U0001f600"}


@pytest.mark.parametrize(
    ("text", "suffix", "path", "line"),
    [
        ("a:\n  b:\n    - 1\n    - 2\n", ".yaml", ("a", "b", 1), 4),
        ("a:\n  b:\n    - 1\n", ".yaml", ("a", "b"), 2),
        ('# c\n"a" :\n   |\n   text\n', ".yaml", ("a",), 2),
        ("{a: 1,\n b: {\n c: 2}}", ".yaml", ("b", "c"), 3),
        ("x: &x\n  y: 1\nz: *x\n", ".yaml", ("z",), 3),
        ("x: &x\n  y: 1\nz: *x\n", ".yaml", ("z", "y"), 2),
        ('{\n"a": [\n1,\n{"b": "\\n{"}]}', ".json", ("a", 0), 3),
        ('{\n"a": [\n1,\n{"b": "\\n{"}]}', ".json", ("a", 1, "b"), 4),
        ("a = 1\n", ".toml", ("a",), None),
    ],
)
def test_a_node_knows_the_line_of_its_key(
    text: str, suffix: str, path: tuple[str | int, ...], line: int | None
) -> None:
    root = read_document(text, suffix, "f").root
    assert root is not None
    node = lookup(root, path)
    assert node is not None
    assert (node.file, node.line) == ("f", line)


def test_aliases_stand_for_what_their_anchor_holds() -> None:
    assert value_of("a: &a [1, 2]\nb: *a\nc: {d: *a}") == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}


@pytest.mark.parametrize(
    ("text", "suffix", "message"),
    [
        ("a: *b", ".yaml", "f:1: a: alias *b has no anchor that ends before it"),
        ("a: &a [*a]", ".yaml", "f:1: a[0]: alias *a has no anchor"),
        ("? [a]\n: 1", ".yaml", "f:1: expected a key, which is text, found a mapping or a list"),
        ("&a x: 1\n*a : 2", ".yaml", "found an alias"),
        ("a: 1\n---\nb: 1", ".yaml", "f:2: expected one document"),
        ("%YAML 1.1\n---\na: 1", ".yaml", "expected YAML 1.2"),
        ("a: !!python/object:os.system x", ".yaml", "tags are not read, found '!!python/object:os.system'"),
        ("a: !!str 1", ".yaml", "tags are not read, found '!!str'"),
        ("a: !env X", ".yaml", "tags are not read, found '!env'"),
        ("a: [1", ".yaml", "f:1: a[1]: not YAML: while parsing a flow sequence"),
        ("a: 1\n\tb: 2", ".yaml", "f:2"),
        ("a: b: c", ".yaml", "f:1: not YAML: mapping values are not allowed here"),
        ("a: 1\nb: \x00", ".yaml", "f:2"),
        ('a: "\\UFFFFFFFF"', ".yaml", "not YAML: an escape or a version"),
        ('a: "\\ud800"', ".yaml", "f:1: a: text with half of a surrogate pair"),
        ('{"a": "\\ud800"}', ".json", "f:1: a: text with half of a surrogate pair"),
        ('{"\\udfff": 1}', ".json", "surrogate"),
        ("{'a': 1}", ".json", "f:1: not JSON: Expecting property name enclosed in double quotes"),
        ('{"a": 1,\n}', ".json", "not JSON"),
        ('{"a": 1} x', ".json", "f:1: not JSON: Extra data"),
        ("# c\n{}", ".json", "f:1: not JSON"),
        ("a = 1\na = 2", ".toml", "f: not TOML: Cannot overwrite a value"),
        ("a = ", ".toml", "f: not TOML: Invalid value"),
        ("a = 2026-11-21", ".toml", "f: a: expected text, a number"),
        ("a = " + "9" * 5000, ".toml", "a number with more digits"),
    ],
)
def test_what_is_no_document_is_refused_in_one_line(text: str, suffix: str, message: str) -> None:
    got = refusal_of(text, suffix)
    assert message in got
    assert "\n" not in got


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_nesting_is_bounded(suffix: str) -> None:
    value_of("[" * MAX_DEPTH + "]" * MAX_DEPTH, suffix)
    assert f"deeper than {MAX_DEPTH}" in refusal_of("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), suffix)


def test_nesting_by_aliases_is_bounded() -> None:
    half = "[" * 20 + "]" * 20
    assert f"deeper than {MAX_DEPTH}" in refusal_of(f"a: &a {half}\nb: {'[' * 20}*a{']' * 20}")


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_the_number_of_values_is_bounded(suffix: str) -> None:
    value_of("[" + ",".join(["1"] * (MAX_NODES - 1)) + "]", suffix)
    assert f"more than {MAX_NODES} keys and values" in refusal_of("[" + ",".join(["1"] * MAX_NODES) + "]", suffix)


def test_aliases_are_bounded_by_what_they_expand_to() -> None:
    value_of("a: &a 1\nb: [" + ",".join(["*a"] * MAX_ALIASES) + "]")
    assert f"more than {MAX_ALIASES} aliases" in refusal_of(
        "a: &a 1\nb: [" + ",".join(["*a"] * (MAX_ALIASES + 1)) + "]"
    )
    big = "a: &a [" + ",".join(["1"] * 2000) + "]\nb: [*a, *a, *a, *a, *a]"
    assert f"more than {MAX_NODES} keys and values" in refusal_of(big)


@pytest.mark.parametrize(
    ("more", "path", "line", "message"),
    [
        ("seed: 1\n", "seed", 9, "the key stands here twice (first in line 4); remove one"),
        ("optimizer:\n  lr: 1\n  lr: 2\n", "optimizer.lr", 11, "(first in line 10)"),
        ("hyperparams: {1: 2}\n", "hyperparams.1", 9, "expected a key, which is text, found 1; put it in quotes"),
        ("hyperparams: {true: 2}\n", "hyperparams.true", 9, "found true"),
        ("hyperparams: {<<: {a: 1}}\n", "hyperparams.'<<'", 9, "merge keys are not read"),
    ],
)
def test_what_can_be_passed_over_is_one_problem_among_others(
    write: Write, refuse: Refuse, more: str, path: str, line: int, message: str
) -> None:
    problems = refuse(write(more + "threads: -1\n"))
    assert {problem.path for problem in problems} == {path, "threads"}
    (problem,) = (problem for problem in problems if problem.path == path)
    assert problem.line == line
    assert message in problem.message


def test_duplicate_keys_in_json_are_refused(write: Write, refuse: Refuse) -> None:
    problems = refuse(write('{"seed": 1,\n"seed": 2}', "spec.json", good=False))
    (problem,) = (problem for problem in problems if problem.path == "seed")
    assert problem.line == 2
    assert problem.message == "the key stands here twice (first in line 1); remove one"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("no", "no"),
        ("", None),
        ("  ", None),
        ("null", None),
        ("a:b", "a:b"),
        ("'1'", "1"),
        ('""', ""),
        ("'a # b'", "a # b"),
        ("[a, {b: 1}]", ["a", {"b": 1}]),
        ("{a: [1]}", {"a": [1]}),
        (" x y ", "x y"),
        ("https://a/b?c=d", "https://a/b?c=d"),
    ],
)
def test_a_value_on_the_command_line_is_a_yaml_scalar_or_flow(text: str, value: object) -> None:
    assert plain(read_value(text, "--set")) == value


@pytest.mark.parametrize(
    "text", ["a: b", "- a", "#5", "a # b", "&x 3", "|\n a", "---", "!!str 3", "[1", "'a", "*x", "? a", "a\n b", "%A"]
)
def test_a_value_of_which_yaml_reads_less_is_refused(text: str) -> None:
    with pytest.raises(Refusal):
        read_value(text, "--set")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"  \n\t\n", "the file is empty"),
        (b"# only a comment\n", "expected a mapping (key: value), found an empty document"),
        (b"---\n", "found an empty document"),
        (b"- a\n- b\n", "found a list of 2"),
        (b"just text", "found 'just text'"),
        (b"\xef\xbb\xbfseed: 1\n", "starts with a byte order mark"),
        (b"owner: \xff\n", "expected UTF-8, found the byte 0xff"),
        ("seed: 1\n".encode("utf-16"), "expected UTF-8"),
        (b"a: " + b"x" * (256 << 10), "may have 256 KiB"),
    ],
)
def test_a_file_that_holds_no_spec_is_refused(write: Write, refuse: Refuse, data: bytes, message: str) -> None:
    path = write(data)
    (problem,) = refuse(path)
    assert problem.file == str(path)
    assert problem.path == ""
    assert message in problem.message


def test_not_utf_8_is_shown_with_its_line(write: Write, refuse: Refuse) -> None:
    (problem,) = refuse(write(b"a: 1\nb: \xe9\n"))
    assert problem.line == 2


def test_places_that_hold_no_file_are_refused(tmp_path: Path, refuse: Refuse) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "circle.yaml").symlink_to("circle.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    expected = {
        "pipe.yaml": "found a pipe, socket or device",
        "zero.yaml": "found a pipe, socket or device",
        "folder.yaml": "found a folder",
        "missing.yaml": "no such file",
        "circle.yaml": "cannot be read: Too many levels of symbolic links",
        "a" * 300 + ".yaml": "cannot be read: File name too long",
        "nul\0.yaml": "cannot hold a NUL",
        "spec.txt": "expected a file that ends in .yaml, .yml, .json or .toml",
        "spec": "expected a file that ends in",
    }
    for name, message in expected.items():
        (problem,) = refuse(tmp_path / name)
        assert message in problem.message, name
        assert "\0" not in str(problem)


def test_a_file_that_may_not_be_read_is_refused(write: Write, refuse: Refuse) -> None:
    path = write()
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything: look at it as nobody
    try:
        (problem,) = refuse(path)
    finally:
        os.seteuid(user)
    assert "cannot be read: Permission denied" in problem.message


def test_the_suffix_decides_and_its_case_does_not(write: Write) -> None:
    assert load_spec(write(name="SPEC.YML")).spec.seed == 42


def test_toml_and_json_specs_load(write: Write) -> None:
    toml = (
        'config_version = 1\ntrainer = "lm"\nseed = 1\ndevice = "cpu"\nprecision = "none"\nddp = false\nepochs = 2\n'
        '[dataset]\nparquet_paths = ["a.parquet"]\n'
    )
    json = (
        '{"config_version": 1, "trainer": "lm", "seed": 1, "device": "cpu", "precision": "none", "ddp": false,'
        ' "epochs": 2, "dataset": {"parquet_paths": ["a.parquet"]}}'
    )
    from_toml = load_spec(write(toml, "a.toml", good=False)).spec
    assert from_toml == load_spec(write(json, "a.json", good=False)).spec


def test_file_names_in_messages_have_no_control_characters(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "a\x1b[31m\n\u202e.yaml")
    assert str(caught.value).isprintable()


def test_a_spec_knows_its_sources_verbatim(write: Write) -> None:
    path = write("# a comment\n")
    loaded = load_spec(path)
    assert [source.path for source in loaded.sources] == [path]
    assert loaded.sources[0].data == path.read_bytes()
    assert loaded.folder == path.parent
