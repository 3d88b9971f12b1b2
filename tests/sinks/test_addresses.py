"""A target as one line: what is read, what is refused, and that a secret in it goes no further."""

from __future__ import annotations

import pytest

from trn.addresses import absolute_target, parse_target
from trn.errors import UsageError


@pytest.mark.parametrize(
    ("text", "kind", "url", "options"),
    [
        ("-", "stdout", "-", {}),
        ("file:events.jsonl", "file", "file:events.jsonl", {}),
        ("file:///var/events of mine.jsonl", "file", "file:/var/events of mine.jsonl", {}),
        ("redis://db:6379/2?stream=lab&maxlen=10", "redis", "redis://db:6379/2", {"stream": "lab", "maxlen": "10"}),
        ("rediss://db?username=me&password_env=PW", "redis", "rediss://db", {"username": "me", "password_env": "PW"}),
        ("https://h/x?page=1&token_env=T", "webhook", "https://h/x?page=1", {"token_env": "T"}),
        ("https://h/x?monkey=1&author=me", "webhook", "https://h/x?monkey=1&author=me", {}),
        ("http://127.0.0.1:8080/x", "webhook", "http://127.0.0.1:8080/x", {}),
        ("http://[::1]:8080/x", "webhook", "http://[::1]:8080/x", {}),
        ("tensorboard:", "tensorboard", "tensorboard:", {}),
        ("wandb:w?project=p", "wandb", "wandb:w", {"project": "p"}),
        ("mlflow:sqlite:////var/m.db", "mlflow", "mlflow:sqlite:////var/m.db", {}),
        ("prometheus://127.0.0.1:9400", "prometheus", "prometheus://127.0.0.1:9400", {}),
    ],
)
def test_a_target_is_a_kind_an_address_and_options(text: str, kind: str, url: str, options: dict[str, str]) -> None:
    target = parse_target(text)
    assert (target.kind, target.url, dict(target.options), target.text) == (kind, url, options, text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected - or an address beginning with file:, redis:"),
        ("ftp://h/x", "expected - or an address"),
        ("redis://h\n", "expected - or an address"),
        ("file:", "the path of a file"),
        ("file://host/path", "the path of a file"),
        ("redis:", "a host after redis://"),
        ("redis://h/x", "the number of a database"),
        ("redis://h:99999", "an address (port out of range"),
        ("redis://h?maxlen=0", "a whole number from 1 for maxlen"),
        ("redis://h?stram=x", "no option 'stram' (there is: stream, maxlen"),
        ("redis://h?stream=a&stream=b", "one value for the option 'stream'"),
        ("redis://h?stream", "NAME=VALUE"),
        ("redis://h?password_env=A&password_file=b", "one of password_env and password_file"),
        ("http://example.com/x", "https:, as anybody"),
        ("mlflow:", "a tracking URI"),
        ("prometheus://0.0.0.0:9400", "an address of this machine"),
        ("prometheus://127.0.0.1", "an address of this machine and a port"),
    ],
)
def test_what_is_no_target_is_refused_with_what_was_expected(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "redis://:violet@127.0.0.1:6379/0",
        "redis://me:violet@127.0.0.1/0",
        "rediss://violet@db/0",
        "redis://db?password=violet",
        "https://me:violet@h/x",
        "https://h/x?token=violet",
        "https://h/x?page=1&sig=violet",
        "https://h/x?X-Amz-Signature=violet",
        "https://h/x?client_secret=violet",
        "https://h/x?apiToken=violet",
        "mlflow:https://me:violet@h/",
        "redis//me:violet@h",
    ],
)
def test_a_secret_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    assert "violet" not in str(caught.value)


def test_relative_paths_belong_to_whoever_wrote_them() -> None:
    given = {
        "file:out/e.jsonl": "file:/lab/out/e.jsonl",
        "file:/e.jsonl": "file:/e.jsonl",
        "tensorboard:tb": "tensorboard:/lab/tb",
        "tensorboard:": "tensorboard:",
        "mlflow:sqlite:///m.db": "mlflow:sqlite:////lab/m.db",
        "mlflow:https://h/": "mlflow:https://h/",
        "redis://h?password_file=pw&maxlen=3": "redis://h?password_file=/lab/pw&maxlen=3",
        "https://h/x?secret_file=%7Ea": "https://h/x?secret_file=/lab/~a",
        "-": "-",
        "no target": "no target",
    }
    assert {text: absolute_target(text, "/lab") for text in given} == given


def test_the_same_place_has_the_same_digest_however_it_is_sent_to() -> None:
    digest = parse_target("redis://h/0?stream=a").digest
    assert parse_target("redis://h/0?stream=a&maxlen=5&password_env=X").digest == digest
    assert parse_target("redis://h/0?stream=b").digest != digest
    assert parse_target("redis://h/1?stream=a").digest != digest
