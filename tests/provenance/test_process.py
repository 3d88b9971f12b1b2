"""What a process knows to be secret is taken out of names, events and samples; a trainer's own words stay."""

from __future__ import annotations

import pytest

from trn.provenance.process import clean_event, clean_name, clean_sample, process_redactor

SECRET = "planted-in-the-environment-7"
TOKEN = "ghp_plantedABCDEFGHIJKLMNOPQRSTUVWXYZ12"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    clean_name.cache_clear()
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr("sys.argv", ["runner", "--set", "hyperparams.password=planted-argument-1"])


def test_the_environment_is_looked_at_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_redactor().text("late found-later-9") == "late found-later-9"
    monkeypatch.setenv("LATE_SECRET", "found-later-9")
    assert process_redactor().text("late found-later-9") == "late ***"
    assert process_redactor().text("planted-argument-1") == "***"


@pytest.mark.parametrize("name", ["token", "loss/token", "session", "acc@1", "auth:f1", "val_loss", "secret=1", "müll"])
def test_the_name_of_a_metric_promises_nothing(name: str) -> None:
    assert clean_name(name) == name


def test_a_name_that_holds_a_secret_is_masked() -> None:
    assert clean_name(f"m/{SECRET}") == "m/***"
    assert clean_name(TOKEN) == "***"


def test_an_event_is_cleaned_in_its_keys_and_texts_and_nothing_else() -> None:
    event = {
        "token": 0.5,
        "metrics": {f"m/{SECRET}": 1.0, f"m/{TOKEN}": 2, "password": 3},
        "rows": [1, (f"x {TOKEN}", None)],
        "reason": f"password: open {SECRET}",
        "flag": True,
    }
    assert clean_event(event) == {
        "token": 0.5,
        "metrics": {"m/***": 1.0, "m/***" + "*": 2, "password": 3},
        "rows": [1, ["x ***", None]],
        "reason": "password: open ***",
        "flag": True,
    }


@pytest.mark.parametrize(
    "content", ["password = input()\n", "key: value", b"\xff\xd8 binary", "", b"", "x" * (2 << 20), "token: ..."]
)
def test_a_sample_without_a_secret_is_written_as_it_is(content: str | bytes) -> None:
    assert clean_sample(content) == (content.encode() if isinstance(content, str) else content)


def test_a_sample_with_a_secret_is_masked() -> None:
    assert clean_sample(f"a {SECRET} b {TOKEN}") == b"a *** b ***"
    assert clean_sample(f'["{SECRET}"]'.encode()) == b'["***"]'
    assert clean_sample("half \ud800 of a pair") == b"half ? of a pair"


def test_each_long_line_of_a_value_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_KEY", "-----BEGIN\nfirst-line-of-a-key-1\nsecond-line-of-a-key-2\nend\n")
    assert process_redactor().text("x first-line-of-a-key-1 y\nsecond-line-of-a-key-2 end") == "x *** y\n*** end"
