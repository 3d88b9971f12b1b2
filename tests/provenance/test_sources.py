"""Config sources are kept verbatim, unless they hold a secret; then nothing of it is kept."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
from ruamel.yaml import YAML

from trn.provenance.redact import MASK, Redactor
from trn.provenance.sources import KeptSource, keep_sources, read_sources


def _keep(data: bytes, path: str = "/specs/a.yaml", **environ: str) -> KeptSource:
    sources = read_sources([(path, data)])
    redactor = Redactor.knowing(environ, [], *(source.value for source in sources))
    return keep_sources(sources, redactor)[0]


def _yaml(data: bytes) -> Any:
    return YAML(typ="safe", pure=True).load(data)


def test_sources_are_named_by_their_place_and_keep_their_suffix() -> None:
    given = [("/s/train.YML", b"a: 1\n"), ("/s/b.json", b"{}"), ("/s/c.toml", b"x = 1\n"), ("/s/d.yaml", b"e: 1\n")]
    kept = keep_sources(read_sources(given), Redactor())
    assert [source.name for source in kept] == [
        "config_source.YML",
        "base_config_source.json",
        "base_config_source-2.toml",
        "base_config_source-3.yaml",
    ]
    assert [source.data for source in kept] == [data for _, data in given]
    assert [source.path for source in kept] == [path for path, _ in given]


@pytest.mark.parametrize("name", ["x.y/z", "x.a b", "x", "x.\u00e9", "x.averylongsuffix", "x."])
def test_a_strange_suffix_is_left_out(name: str) -> None:
    assert _keep(b"a: 1\n", f"/specs/{name}").name == "config_source"


VERBATIM = [
    (b"# note\ntokenizer: tok   # keep\n\ndataset: {columns: [tokens]}\nx: .nan\n", ".yaml"),
    (b'{"tokenizer": "tok",\n "n": 1e-3}', ".json"),
    (b"# c\ntokens_seen = 3\n", ".toml"),
    (b"not: [a document", ".yaml"),
    (b"\xff\xfe no text\r\n", ".yaml"),
    (b"anything at all", ".ini"),
    (b"", ".yaml"),
]


@pytest.mark.parametrize(("data", "suffix"), VERBATIM)
def test_a_source_without_secrets_is_kept_byte_for_byte(data: bytes, suffix: str) -> None:
    kept = _keep(data, f"/specs/a{suffix}")
    assert (kept.data, kept.form) == (data, "verbatim")


MASKED = [
    (b"# me\npassword: hunter2  # old: hunter1\nlr: 1e-3\n", f'# me\npassword: "{MASK}"  # old: hunter1\nlr: 1e-3\n'),
    (b"x: &a s3cret-one\ny: [s3cret-one, 1]\npassword: s3cret-one\n", None),
    (b"note: ghp_s3cretabcdefghijklmnop # keep\n", f'note: "{MASK}" # keep\n'),
    (b"- ghp_s3cretabcdefghijklmnop\r\n- a\r\n", f'- "{MASK}"\r\n- a\r\n'),
    (b"a: {api_key: 'x y', lr: 1}\n", f"a: {{api_key: '{MASK}', lr: 1}}\n"),
    (b"url: https://u:pw@h/x\nn: 1\n", f"url: https://u:{MASK}@h/x\nn: 1\n"),
    (b"# token: abcdef\nn: 1\n", f'# token: "{MASK}"\nn: 1\n'),
    (b"args: [run, --set, a.api_key=xyz]\n", None),
]  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), MASKED)
def test_a_secret_is_masked_in_its_place_and_the_rest_stays(data: bytes, expected: str | None) -> None:
    kept = _keep(data)
    if expected is not None:
        assert (kept.data.decode(), kept.form) == (expected, "masked")
    assert kept.form != "verbatim"


def test_a_secret_of_the_environment_is_masked_wherever_it_stands() -> None:
    kept = _keep(b"note: uses long-secret-1 here\n# long-secret-1\n", HF_TOKEN="long-secret-1")
    assert (kept.data.decode(), kept.form) == (f"note: uses {MASK} here\n# {MASK}\n", "masked")


READERS: dict[str, Callable[[bytes], Any]] = {
    ".yaml": _yaml,
    ".json": json.loads,
    ".toml": lambda data: tomllib.loads(data.decode()),
}

HARD = [
    (b"api_keys:\n  - s3cret-one\n  - s3cret-two\nlr: 1\n", ".yaml", {"api_keys": [MASK, MASK], "lr": 1}),
    (b"password: |\n  s3cret-one\n  s3cret-two\nlr: 1\n", ".yaml", {"password": MASK, "lr": 1}),
    (b"password: >-\n  s3cret-one\n", ".yaml", {"password": MASK}),
    (b"credentials:\n  user: s3cret-one\n  file: /run/x\n", ".yaml", {"credentials": {"user": MASK, "file": "/run/x"}}),
    (b"x: &a s3cret-one\npassword: *a\n", ".yaml", {"x": MASK, "password": MASK}),
    (b"note: ghp_s3cretabcdefghijklmnop\n", ".yaml", {"note": MASK}),
    (b'"p\\u0061ssword": s3cret-one\n', ".yaml", {"password": MASK}),
    (b"{\n password: s3cret-one,\n lr: 1}\n", ".yaml", {"password": MASK, "lr": 1}),
    (b"password:\n  s3cret-one\n  s3cret-two\n", ".yaml", {"password": MASK}),
    (b"password: 's3cret-one\n  # s3cret-two'\nlr: 1\n", ".yaml", {"password": MASK, "lr": 1}),
    (b"password: |\n  # s3cret-one\nlr: 1\n", ".yaml", {"password": MASK, "lr": 1}),
    (b"password: &a 'x # s3cret-one'\nlr: 1\n", ".yaml", {"password": MASK, "lr": 1}),
    (b"env:\n- {name: HF_TOKEN, value: s3cret-one}\n", ".yaml", {"env": [{"name": "HF_TOKEN", "value": MASK}]}),
    (b'{"api_keys": ["s3cret-one",\n "s3cret-two"], "n": 1.5}', ".json", {"api_keys": [MASK, MASK], "n": 1.5}),
    (b'{"password": 31337313373, "n": null}', ".json", {"password": MASK, "n": None}),
    (b'[credentials]\nuser = "s3cret-one"\n[a]\nb = [1, 2.5, true]\n', ".toml",
     {"credentials": {"user": MASK}, "a": {"b": [1, 2.5, True]}}),
    (b'password = """\ns3cret-one\n"""\nn = "a\\"b"\n', ".toml", {"password": MASK, "n": 'a"b'}),
    (b"token = 31337313373\n", ".toml", {"token": MASK}),
]  # fmt: skip


@pytest.mark.parametrize(("data", "suffix", "expected"), HARD)
def test_what_is_kept_reads_back_as_the_redacted_value(data: bytes, suffix: str, expected: dict[str, Any]) -> None:
    kept = _keep(data, f"/specs/a{suffix}")
    for secret in (b"s3cret", b"31337"):
        assert secret not in kept.data
    assert READERS[suffix](kept.data) == expected
    assert kept.form in ("masked", "rewritten")


def test_the_path_of_a_source_is_redacted_too() -> None:
    assert _keep(b"a: 1\n", "/specs/token=abc/x.yaml").path == f"/specs/token={MASK}"
