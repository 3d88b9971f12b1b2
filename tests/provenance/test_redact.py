"""Secrets are masked wherever they stand; what only looks like one stays."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trn.provenance.redact import MASK, Redactor, encodable, redact, secret_paths
from trn.provenance.secret_names import is_secret_name

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.s5Xb0hV3xw-Qm"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7\n-----END RSA PRIVATE KEY-----"

SECRET_NAMES = [
    "token", "hf_token", "HF_TOKEN", "hfToken", "--hf-token", "hyperparams.api_token", "SLURM_JWT", "GITHUB_TOKEN",
    "TRAINER_CAPABILITY_TOKEN", "TOKEN_1", "HF_TOKEN_PROD", "auth_tokens", "refresh_tokens", "SLACK_BOT_TOKEN",
    "secret", "client_secret", "secrets", "SECRET_VALUE", "clientSecret", "aws_secret_access_key", "MYSECRET",
    "password", "PGPASSWORD", "db_password", "password_2", "passwd", "MYSQL_PWD", "passphrase", "smtp_pass",
    "api_key", "apiKey", "APIKEY", "X-Api-Key", "wandb_api_key", "access_key", "accessKeyId", "private_key",
    "signing_key", "AccountKey", "SharedAccessKey", "session_key", "ssh_key", "encryption_key",
    "authorization", "Authorization", "Proxy-Authorization", "credential", "credentials", "session", "session_id",
    "cookie", "Set-Cookie", "auth", "basic_auth", "bearer", "jwt", "otp", "connection_string", "github_pat",
    "credentials.user",
]  # fmt: skip

ORDINARY_NAMES = [
    "tokenizer", "tokens", "tokens_seen", "tokens_per_sec", "max_tokens", "max_new_tokens", "token_dim", "token_count",
    "token_ids", "hyperparams.token_dim", "pad_token", "eos_token", "bos_token_id", "mask_token", "image_token",
    "tokenizer_path", "vocab_tokens", "num_key_value_heads", "key", "keys", "keypoints", "keyword", "primary_key",
    "key_dim", "monkey", "public_key", "author", "authors", "secretary", "session_length_s", "sessions", "passes",
    "pass_index", "pass", "PWD", "OLDPWD", "token_file", "password_env", "SECRET_NAME", "private_key_path",
    "package_set_sha256", "code_sha256", "signature", "patience", "pattern", "compass", "token_type", "password_policy",
    "", ".", "123",
]  # fmt: skip

# text, and the part of it that must be gone
SECRET_TEXTS = [
    ("clone with ghp_abcdefghijklmnopqrstuvwxyz0123456789", "ghp_abcdefghijklmnopqrstuvwxyz0123456789"),
    ("github_pat_11ABCDEFG0abcdefghijkl_mnop", "github_pat_11ABCDEFG0abcdefghijkl_mnop"),
    ("glpat-abcDEF12345_67890xyz", "glpat-abcDEF12345_67890xyz"),
    ("hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345", "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"),
    ("sk-proj-AbCdEf0123456789AbCdEf", "sk-proj-AbCdEf0123456789AbCdEf"),
    ("sk-ant-api03-AbCdEf0123-456789_AbCdEf", "AbCdEf0123"),
    ("sk_live_51AbCdEfGhIjKl", "sk_live_51AbCdEfGhIjKl"),
    ("id AKIAIOSFODNN7EXAMPLE here", "AKIAIOSFODNN7EXAMPLE"),
    ("xoxb-123456789012-abcdefghij", "xoxb-123456789012-abcdefghij"),
    (f"jwt {JWT}", JWT),
    ("AIzaSyA1234567890abcdefghijklmnopqrstuv", "AIzaSyA1234567890"),
    ("SG.abcdefghijklmnopqrst.uvwxyz0123456789", "uvwxyz0123456789"),
    (f"key:\n{PEM}\nend", "MIIEpAIBAAKCAQEA7"),
    ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNza", "b3BlbnNza"),
    ("https://alice:hunter2@example.com/x", "hunter2"),
    ("redis://:pa/ss@host:6379/0", "pa/ss"),
    ("postgres://u:p@ss@db.example.com/x", "p@ss"),
    ("https://abc123def@sentry.example.com/1", "abc123def"),
    ("user alice:hunter2@db.example.com:5432", "hunter2"),
    ("https://host/p?token=abcdef&x=1", "abcdef"),
    ("https://s3.example.com/b?X-Amz-Signature=0a1b2c3d&X-Amz-Expires=60", "0a1b2c3d"),
    ("https://blob.example.net/c?sv=2020&sig=Zm9vYmFy%3D", "Zm9vYmFy"),
    ("https://maps.example.com/?key=abcdefg", "abcdefg"),
    ("https://hooks.slack.com/services/T0/B0/xyzzy", "xyzzy"),
    ("Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
    ("sent Bearer abcdefgh12345678XYZ along", "abcdefgh12345678XYZ"),
    ("X-Api-Key: abc", "abc"),
    ("x-api-key:abc", "abc"),
    ("Server=db;User=sa;Password=p;w;Timeout=3", "p;w"),
    ("DefaultEndpointsProtocol=https;AccountKey=Zm9v==;E=1", "Zm9v"),
    ("password: correct horse battery staple", "horse"),
    ("  # old password: hunter2", "hunter2"),
    ('{"api_key": "a\\"b c", "x": 1}', "b c"),
    ("{'secret': 'x y'}", "x y"),
    ('cfg = "{\\"password\\": \\"abc\\"}"', "abc"),
    ("{password: ab, lr: 1}", "ab"),
    ("HF_TOKEN=abc python train.py", "abc"),
    ("optimizers[0].api_key=abc", "abc"),
    ("--db.password=abc", "abc"),
    ("secret => abc", "abc"),
]  # fmt: skip

ORDINARY_TEXTS = [
    "tokenizer: runs/tok", "columns: [tokens]", "tokens_seen=12 tokens_per_sec: 3.5", "hyperparams.token_dim=4",
    "trainer: my_token:Trainer", "org/repo:latest", "image repo:tag@sha256:0a1b2c", "git@github.com:org/repo.git",
    "http://localhost:8080/path@v1", "https://example.com/a?b=c&page=2", "s3://user@bucket/x", "sk-learn-pipelines",
    "sk-learn-classification-pipelines", "task-12345678901234567890", "hf_home", "hf_transfer_enabled", "akia",
    "epoch 3: val_loss=2.1", "0123456789abcdef0123456789abcdef01234567", "pad_token: <pad>", "use_auth: true",
    "password: null", "token: ${HF_TOKEN}", "api_key=$API_KEY", "token: env:HF_TOKEN", "password_file: /run/secrets/db",
    "user_token: <|user|>", "sep: [SEP]", "monkey: 3", "a: b: c", "=", ":", "Basic training of a model", "", "x",
]  # fmt: skip


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_name_that_promises_a_secret_is_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ORDINARY_NAMES)
def test_an_ordinary_name_is_not_taken_for_a_secret(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(("text", "secret"), SECRET_TEXTS)
def test_a_secret_in_text_is_masked(text: str, secret: str) -> None:
    assert secret in text
    assert secret not in redact.text(text)
    assert MASK in redact.text(text)
    assert redact.argv(["run", text]) != ["run", text]


@pytest.mark.parametrize("text", ORDINARY_TEXTS)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert redact.text(text) == text
    assert redact.value({"note": text}) == {"note": text}
    assert redact.argv([text]) == [text]


def test_what_stands_around_a_secret_stays() -> None:
    assert redact.text("https://alice:hunter2@example.com/x?a=1") == f"https://alice:{MASK}@example.com/x?a=1"
    assert redact.text("https://h/p?token=abc&x=1#f") == f"https://h/p?token={MASK}&x=1#f"
    assert redact.text("password: hunter2  # mine") == f"password: {MASK}  # mine"
    assert redact.text('{"api_key": "k", "lr": 1}') == f'{{"api_key": "{MASK}", "lr": 1}}'
    assert redact.text("A=1 HF_TOKEN=abc python x.py") == f"A=1 HF_TOKEN={MASK} python x.py"


def test_a_sentence_in_a_value_is_not_a_pair() -> None:
    prompt = {"prompt": "Predict the next token: a baseline. The secret: none."}
    assert redact.value(prompt) == prompt


ARGV_CASES = [
    (["--token", "abc"], ["--token", MASK]),
    (["--token=abc"], [f"--token={MASK}"]),
    (["--token", "--verbose"], ["--token", "--verbose"]),
    (["--password", "-x1"], ["--password", MASK]),
    (["--set", "a.api_key=x,y z"], ["--set", f"a.api_key={MASK}"]),
    (["--set=b.password=a b = c"], [f"--set=b.password={MASK}"]),
    (["--set", "p={token: abc, n: 1}"], ["--set", f"p={{token: {MASK}, n: 1}}"]),
    (["-H", "Authorization: Bearer abc"], ["-H", f"Authorization: {MASK}"]),
    (["--hf-token", "${HF_TOKEN}"], ["--hf-token", "${HF_TOKEN}"]),
    (["--token-file", "/run/t"], ["--token-file", "/run/t"]),
    (["--tokenizer", "tok", "--max-tokens", "5"], ["--tokenizer", "tok", "--max-tokens", "5"]),
    (["--set", "hyperparams.token_dim=4"], ["--set", "hyperparams.token_dim=4"]),
    (["run", "", "--", "-"], ["run", "", "--", "-"]),
    ([], []),
]


@pytest.mark.parametrize(("given", "shown"), ARGV_CASES)
def test_arguments_are_masked_one_for_one(given: list[str], shown: list[str]) -> None:
    assert redact.argv(given) == shown


def test_a_value_keeps_its_shape_and_loses_its_secrets() -> None:
    value = {
        "tokenizer": "tok",
        "columns": ["tokens"],
        "hyperparams": {"token_dim": 4, "pad_token": "[PAD]", "use_auth": True, "api_key": None},
        "api_key": "k",
        "password": 12345,
        "credentials": {"user": "a", "nested": [{"x": "y"}], "file": "/run/c", "valid": True},
        "env": [{"name": "HF_TOKEN", "value": "abc"}, {"name": "LANG", "value": "C"}],
        "command": ("x", "--token", "abc"),
        "url": "https://u:pw@h/",
    }
    assert redact.value(value) == {
        "tokenizer": "tok",
        "columns": ["tokens"],
        "hyperparams": {"token_dim": 4, "pad_token": "[PAD]", "use_auth": True, "api_key": None},
        "api_key": MASK,
        "password": MASK,
        "credentials": {"user": MASK, "nested": [{"x": MASK}], "file": "/run/c", "valid": True},
        "env": [{"name": "HF_TOKEN", "value": MASK}, {"name": "LANG", "value": "C"}],
        "command": ["x", "--token", MASK],
        "url": f"https://u:{MASK}@h/",
    }


def test_a_secret_that_is_a_key_is_masked_and_no_entry_is_lost() -> None:
    value = {"ghp_abcdefghijklmnop1234": 1, "ghp_abcdefghijklmnop5678": 2}
    assert redact.value(value) == {MASK: 1, f"{MASK}*": 2}


def test_the_places_of_secrets_are_told_without_their_values() -> None:
    value = {"a": {"api_key": "k", "list": [{"n": 1}, {"password": 2}]}, "url": "https://u:pw@h/", "x": 1}
    assert secret_paths(value) == ["a.api_key", "a.list[1].password", "url"]


def test_a_value_known_from_elsewhere_is_masked_wherever_it_stands() -> None:
    redactor = Redactor.knowing(
        {"HF_TOKEN": "opaque-value/1+2", "LANG": "C.UTF-8"},
        ["--password", "s3cret99", "--set", "a.api_key=fromset77"],
        {"credentials": {"user": "someone-else9"}, "password": 987654321},
    )
    text = "opaque-value/1+2 opaque-value%2F1%2B2 s3cret99 fromset77 someone-else9 987654321 C.UTF-8"
    assert redactor.text(text) == " ".join([MASK] * 6 + ["C.UTF-8"])
    assert redactor.value({"note": "x s3cret99"}) == {"note": f"x {MASK}"}
    assert redactor.argv(["fromset77"]) == [MASK]


@pytest.mark.parametrize("value", ["prod", "disabled", "auto", "/home/someone", "./secrets", "a1b2", "${HF_TOKEN}"])
def test_a_short_or_ordinary_value_is_not_masked_elsewhere(value: str) -> None:
    redactor = Redactor.knowing({"MY_SECRET": value})
    assert redactor.text(f"see {value} here") == f"see {value} here"
    assert Redactor.knowing({"PWD": "/a1/b2", "OLDPWD": "/c3"}).known == ()


def test_a_short_known_value_is_not_cut_out_of_a_digest() -> None:
    redactor = Redactor.knowing({"MY_TOKEN": "abc123", "MY_SECRET": "0123456789abcdef"})
    assert redactor.text("sha ffabc123ff and abc123, 550123456789abcdef") == f"sha ffabc123ff and {MASK}, 55{MASK}"


@given(st.text(max_size=60), st.sampled_from([text for text, _ in SECRET_TEXTS]), st.text(max_size=20))
@settings(max_examples=300, deadline=None)
def test_redacting_twice_changes_nothing_more(before: str, secret: str, after: str) -> None:
    text = before + secret + after
    assert redact.text(redact.text(text)) == redact.text(text)
    assert redact.value(redact.value([text])) == redact.value([text])
    assert redact.argv(redact.argv([text])) == redact.argv([text])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*SECRET_NAMES[:8], "a", "b"]), inner),
    max_leaves=12,
)


@given(json_values)
@settings(max_examples=200, deadline=None)
def test_any_json_value_is_redacted_once_and_for_all(value: object) -> None:
    shown = redact.value(value)
    assert redact.value(shown) == shown


def test_bytes_that_are_no_text_can_be_written() -> None:
    assert encodable("a\udcff") == "a�"
    assert encodable("\ud800") == "�"
    assert encodable("é ok") == "é ok"


HOSTILE = ["-", "a", "a.b-", "sk-", "a://b:", "token:", '{"token":"abc"},', "x@", "eyJ", "-----BEGIN PRIVATE KEY-----",
           "a:b@", "a= ", " ", 'token="', "token: {", "\\\"'", "bearer "]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_text_takes_no_more_than_its_length(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    began = time.process_time()
    redact.text(text)
    redact.value(text)
    assert time.process_time() - began < 10  # linear: below 1 s; quadratic: minutes
