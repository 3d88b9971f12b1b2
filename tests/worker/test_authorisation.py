"""Tokens: the right one, and every way in which one is not."""

from __future__ import annotations

import base64
import hmac
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from support.orchestrator import EXAMPLE
from trn.errors import TrnError, Unauthorized
from trn.worker.authorisation import Capability, authorise, read_token
from trn.worker.refusal import StartupRefused

NOW = 1_800_000_000.0
CLAIMS: dict[str, Any] = {"owner": "acme", "release": "acme/table:v1", "scope": "trn.run", "exp": NOW + 3600}


def pem(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo))


def private_pem(key: Any) -> bytes:
    return bytes(key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption()))


ED = ed25519.Ed25519PrivateKey.generate()
OTHER = ed25519.Ed25519PrivateKey.generate()
P256 = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)
PUBLIC = pem(ED)


def minted(key: Any = ED, algorithm: str = "EdDSA", head: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token; a claim that is None is left out."""
    told = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode(told, key, algorithm=algorithm, headers=head)


def asked(token: str | None, key: bytes | None = PUBLIC, **given: Any) -> Capability | None:
    settings: dict[str, Any] = {
        "owner": "acme",
        "release_ref": "acme/table:v1",
        "run_id": "exp01",
        "is_orchestrated": True,
        "now": NOW,
    }
    return authorise(token, key, **{**settings, **given})


def refused(token: str | None, key: bytes | None = PUBLIC, **given: Any) -> str:
    """The line of the refusal, which is one line, ends in 77 and says nothing of the token."""
    with pytest.raises(TrnError) as caught:
        asked(token, key, **given)
    line = str(caught.value)
    assert isinstance(caught.value, Unauthorized | StartupRefused)
    assert caught.value.exit_status == 77
    assert "\n" not in line
    for part in (token or "").split("."):
        assert len(part) < 10 or part not in line
    return line


def test_a_token_of_the_right_owner_and_release_is_a_capability() -> None:
    assert asked(minted()) == Capability("acme", "acme/table:v1", ("trn.run",), None, NOW + 3600)
    found = asked(minted(scope=["trn.read", "trn.run"], run_id="exp01", aud=["trn", "hub"], iat=NOW, nbf=NOW))
    assert found == Capability("acme", "acme/table:v1", ("trn.read", "trn.run"), "exp01", NOW + 3600)


@pytest.mark.parametrize(("key", "algorithm"), [(ED, "EdDSA"), (P256, "ES256"), (RSA, "RS256")])
def test_each_kind_of_key_verifies_its_own_algorithm(key: Any, algorithm: str) -> None:
    assert asked(minted(key, algorithm), pem(key)) is not None
    for other, name in ((ED, "EdDSA"), (P256, "ES256"), (RSA, "RS256")):
        if name != algorithm:
            assert f"alg: expected {algorithm}" in refused(minted(other, name), pem(key))


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"exp": None}, "claim exp: expected a time, found none."),
        ({"exp": NOW - 31}, "claim exp: expected a time ahead, found 2027-01-15T07:59:29Z. Ask for a new token."),
        ({"exp": NOW - 86400}, "claim exp: expected a time ahead"),
        ({"exp": str(int(NOW) + 60)}, "claim exp: expected seconds since 1970, found '1800000060'."),
        ({"exp": True}, "claim exp: expected seconds since 1970, found True."),
        ({"exp": 1e300}, "claim exp: expected seconds since 1970, found 1e+300."),
        ({"exp": 10**400}, "claim exp: expected seconds since 1970, found 1000"),
        ({"exp": -1}, "claim exp: expected seconds since 1970, found -1."),
        ({"nbf": NOW + 31}, "claim nbf: expected a time behind, found 2027-01-15T08:00:31Z. Is this clock right?"),
        ({"iat": NOW + 3000}, "claim iat: expected a time behind"),
        ({"owner": "other"}, "claim owner: expected the job's owner, 'acme', found 'other'."),
        ({"owner": None}, "claim owner: expected the job's owner, 'acme', found none."),
        ({"owner": ["acme"]}, "claim owner: expected the job's owner, 'acme', found ['acme']."),
        ({"release": "acme/table:v2"}, "claim release: expected the job's release_ref, 'acme/table:v1', found"),
        ({"release": None}, "claim release: expected the job's release_ref"),
        ({"scope": None}, "claim scope: expected trn.run among its words, found none."),
        ({"scope": "trn.read"}, "claim scope: expected trn.run among its words, found 'trn.read'."),
        ({"scope": "trn.runner xtrn.run"}, "claim scope: expected trn.run among its words"),
        ({"scope": {"trn.run": 1}}, "claim scope: expected trn.run among its words"),
        ({"scope": ["trn.run", 1]}, "claim scope: expected trn.run among its words"),
        ({"run_id": "exp02"}, "claim run_id: expected this run, 'exp01', found 'exp02'."),
        ({"run_id": ""}, "claim run_id: expected this run, 'exp01', found ''."),
        ({"aud": "hub"}, "claim aud: expected trn among its words, found 'hub'."),
    ],
)
def test_a_claim_that_does_not_fit_is_named(claims: dict[str, Any], message: str) -> None:
    line = refused(minted(**claims))
    assert line.startswith("authorisation error [unauthorized] at TRAINER_CAPABILITY_TOKEN: ")
    assert message in line


def test_a_null_where_a_claim_may_be_left_out_is_no_way_around_it() -> None:
    token = jwt.encode({**CLAIMS, "run_id": None}, ED, algorithm="EdDSA")
    assert "claim run_id: expected this run" in refused(token)


def test_clocks_may_differ_by_half_a_minute() -> None:
    assert asked(minted(exp=NOW - 29, iat=NOW + 29, nbf=NOW + 29)) is not None


def test_a_job_without_owner_or_release_is_not_authorised_by_anything() -> None:
    assert "the job names none" in refused(minted(owner=""), owner="")
    assert "the job names none" in refused(minted(release=None), release_ref=None)


# signatures


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_a_token_without_signature_is_refused() -> None:
    unsigned = jwt.encode(CLAIMS, None, algorithm="none")
    assert "alg: expected EdDSA, as the key is one for that, found 'none'." in refused(unsigned)
    for name in ("None", "NONE", "nOnE", "", None, ["EdDSA"], 7):
        assert "unauthorized" in refused(f"{encoded({'alg': name, 'typ': 'JWT'})}.{encoded(CLAIMS)}.")
    assert "signature" in refused(f"{encoded({'alg': 'EdDSA'})}.{encoded(CLAIMS)}.")
    assert "unauthorized" in refused(minted().rpartition(".")[0] + ".")


@pytest.mark.parametrize("key", [ED, P256, RSA])
@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_the_public_key_is_no_shared_secret(key: Any, algorithm: str) -> None:
    """A token signed with what everybody knows; by hand, as the library refuses to make one."""
    signed = f"{encoded({'alg': algorithm, 'typ': 'JWT'})}.{encoded(CLAIMS)}"
    mac = hmac.digest(pem(key), signed.encode(), f"sha{algorithm[2:]}")
    token = f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    assert f"found '{algorithm}'" in refused(token, pem(key))


def test_every_changed_letter_is_noticed() -> None:
    token = minted()
    for place in range(0, len(token) - 1, 7):  # the last letter has bits that mean nothing
        letter = "A" if token[place] != "A" else "B"
        assert "unauthorized" in refused(f"{token[:place]}{letter}{token[place + 1 :]}")


def test_a_token_of_somebody_else_is_refused() -> None:
    assert "the signature is not of this key" in refused(minted(OTHER))


@pytest.mark.parametrize(
    "token",
    [
        "", ".", "..", "a.b.c", "a" * 20_000, "a.b", "a.b.c.d", "e30.e30.e30", "\0", "ü.ü.ü", "a b.c.d", "." * 16_000,
        f"{encoded([1])}.{encoded(CLAIMS)}.AAAA", f"{encoded('x')}.{encoded(CLAIMS)}.AAAA",
    ],
)  # fmt: skip
def test_what_is_no_token_is_refused(token: str) -> None:
    refused(token)


def test_a_head_that_asks_for_an_extension_is_refused() -> None:
    assert "its head" in refused(minted(head={"crit": ["exp"], "exp": 1}))


def test_a_key_that_the_token_brings_along_is_not_believed() -> None:
    brought = json.loads(OKPAlgorithm.to_jwk(OTHER.public_key()))
    assert "the signature is not of this key" in refused(minted(OTHER, head={"jwk": brought, "jku": "https://x.test/"}))


def test_claims_that_are_no_strict_json_are_refused_although_signed() -> None:
    jws = jwt.PyJWS()
    twice = b'{"owner":"acme","owner":"acme","release":"acme/table:v1","scope":"trn.run","exp":1800003600}'
    assert "no strict JSON" in refused(jws.encode(twice, ED, algorithm="EdDSA"))
    assert "no strict JSON" in refused(jws.encode(b'{"exp":NaN}', ED, algorithm="EdDSA"))
    assert "no JSON object" in refused(jws.encode(b"[1]", ED, algorithm="EdDSA"))
    assert "no strict JSON" in refused(jws.encode(b"[" * 5000, ED, algorithm="EdDSA"))


# keys


def jwks(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(entries)}).encode()


def entry(key: Any, **more: Any) -> dict[str, Any]:
    kinds: tuple[tuple[type, Callable[[Any], str]], ...] = (
        (ed25519.Ed25519PrivateKey, OKPAlgorithm.to_jwk),
        (ed448.Ed448PrivateKey, OKPAlgorithm.to_jwk),
        (ec.EllipticCurvePrivateKey, ECAlgorithm.to_jwk),
        (rsa.RSAPrivateKey, RSAAlgorithm.to_jwk),
    )
    [write] = [write for kind, write in kinds if isinstance(key, kind)]
    return {**json.loads(write(key.public_key())), **more}


def test_the_kid_of_a_token_names_its_key_in_a_set() -> None:
    known = jwks(entry(OTHER, kid="old"), entry(ED, kid="new"), entry(P256, kid="p"), entry(RSA, kid="r", use="sig"))
    assert asked(minted(head={"kid": "new"}), known) is not None
    assert asked(minted(P256, "ES256", head={"kid": "p"}), known) is not None
    assert asked(minted(RSA, "RS256", head={"kid": "r"}), known) is not None
    assert asked(minted(), known) is not None  # without one, each that fits is tried
    assert "the signature is not of this key" in refused(minted(head={"kid": "old"}), known)
    assert "kid: expected that of a known key, found 'newer'" in refused(minted(head={"kid": "newer"}), known)
    assert "alg: expected ES256" in refused(minted(head={"kid": "p"}), known)
    assert asked(minted(head={"kid": "any"}), json.dumps(entry(ED)).encode()) is not None  # a single key, without one


def test_keys_of_a_set_that_are_for_something_else_do_not_count() -> None:
    unfit = [
        entry(ED, use="enc"),
        entry(ED, key_ops=["encrypt"]),
        entry(ED, alg="RS256"),
        entry(ed448.Ed448PrivateKey.generate()),
        entry(ec.generate_private_key(ec.SECP384R1())),
        entry(rsa.generate_private_key(65537, 1024)),
        {"kty": "oct", "k": base64.urlsafe_b64encode(PUBLIC).decode()},
        {"kty": "new"},
        {"kty": ["OKP"]},
        entry(ED, key_ops=7),
        {},
    ]
    for one in unfit:
        assert "found no such key to verify with" in refused(minted(), jwks(one))
    assert asked(minted(), jwks(*unfit, entry(ED))) is not None


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (b"", "expected a public key as PEM, or a JWKS"),
        (b"junk", "expected a public key as PEM, or a JWKS"),
        (PUBLIC[:60], "expected a public key as PEM, or a JWKS"),
        (private_pem(ED), "expected a public key, found a private one. A worker has no use for it"),
        (pem(ed448.Ed448PrivateKey.generate()), "expected Ed25519, P-256, or RSA from 2048 bits"),
        (pem(ec.generate_private_key(ec.SECP384R1())), "expected Ed25519, P-256, or RSA from 2048 bits"),
        (pem(rsa.generate_private_key(65537, 1024)), "expected Ed25519, P-256, or RSA from 2048 bits"),
        (b"{", "found no strict JSON"),
        (b'{"keys": 7}', "with a list of keys"),
        (b'{"keys": [7]}', "with a list of keys"),
        (b'{"keys": []}', "found no such key"),
        (jwks(*[{}] * 65), "expected at most 64 keys, found 65"),
        (jwks({"kty": "OKP", "crv": "Ed25519", "x": "AA"}), "cannot be read"),
        (jwks({"kty": "RSA", "n": 7, "e": []}), "cannot be read"),
        (jwks({**json.loads(OKPAlgorithm.to_jwk(ED))}), "expected public keys, found a private one"),
        (b" " * (257 << 10), "expected at most"),
    ],
    ids=str.split("empty junk cut private ed448 p384 rsa1024 brace number member none many short kinds ours large"),
)
def test_a_key_file_that_is_none_is_said_to_be_the_trouble(key: bytes, message: str) -> None:
    line = refused(minted(), key)
    assert "at TRAINER_PUBLIC_KEY_FILE: " in line
    assert message in line


# when a token is asked for


def test_without_orchestrator_and_key_nobody_asks() -> None:
    assert asked(None, None, is_orchestrated=False) is None
    assert asked("opaque", None, is_orchestrated=False) is None


def test_a_missing_token_has_a_code_of_its_own() -> None:
    for key, is_orchestrated in ((PUBLIC, True), (None, True), (PUBLIC, False)):
        line = refused(None, key, is_orchestrated=is_orchestrated)
        assert "[startup.missing_capability_token]" in line


def test_an_orchestrated_job_needs_a_key_to_check_the_token_with() -> None:
    assert "at TRAINER_PUBLIC_KEY_FILE: the job is orchestrated" in refused(minted(), None)


def test_a_key_is_used_without_an_orchestrator_too() -> None:
    assert asked(minted(), is_orchestrated=False) is not None
    assert "claim owner" in refused(minted(owner="other"), is_orchestrated=False)


# where a token comes from


def test_a_token_comes_from_the_environment_or_from_a_file_that_may_change(tmp_path: Path) -> None:
    assert read_token({})() is None
    assert read_token({"TRAINER_CAPABILITY_TOKEN": "", "TRAINER_CAPABILITY_TOKEN_FILE": " "})() is None
    assert read_token({"TRAINER_CAPABILITY_TOKEN": " one \n"})() == "one"
    file = tmp_path / "token"
    file.write_text("first\n")
    token = read_token({"TRAINER_CAPABILITY_TOKEN_FILE": str(file)})
    assert token() == "first"
    file.write_text("second")
    assert token() == "second"
    file.write_text("")  # being replaced
    assert token() == "second"
    file.unlink()
    assert token() == "second"
    file.write_text("third")
    assert token() == "third"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the file cannot be read (No such file or directory)"),
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"one two", "one word of printable ASCII"),
        (b"one\r\nX-Evil: 1", "one word of printable ASCII"),
        ("tökén".encode(), "one word of printable ASCII"),
        (b"\xff\xfe", "one word of printable ASCII"),
        (b"x" * (17 << 10), "at most 16384 bytes"),
    ],
)
def test_a_file_without_a_token_is_unauthorized(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    with pytest.raises(Unauthorized) as caught:
        read_token({"TRAINER_CAPABILITY_TOKEN_FILE": str(tmp_path / "token")})()
    assert message in str(caught.value)
    assert "at TRAINER_CAPABILITY_TOKEN_FILE" in str(caught.value)
    assert "Evil" not in str(caught.value)


def test_a_pipe_or_a_folder_is_no_token_file_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("pipe", "expected a file"), ("", "cannot be read")):
        with pytest.raises(Unauthorized, match=message):
            read_token({"TRAINER_CAPABILITY_TOKEN_FILE": str(tmp_path / name)})()


def test_two_tokens_are_one_too_many() -> None:
    with pytest.raises(Unauthorized, match="found both"):
        read_token({"TRAINER_CAPABILITY_TOKEN": "one", "TRAINER_CAPABILITY_TOKEN_FILE": "/two"})


def test_a_file_that_others_can_read_is_warned_of(tmp_path: Path) -> None:
    file, said = tmp_path / "token", list[str]()
    file.write_text("one")
    for mode, lines in ((0o600, 0), (0o400, 0), (0o640, 1), (0o604, 2)):
        file.chmod(mode)
        read_token({"TRAINER_CAPABILITY_TOKEN_FILE": str(file)}, said.append)
        assert len(said) == lines
    assert "chmod 600" in said[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "message"),
    [
        (minted(exp=time.time() - 60, owner="example", release="example/squares:1.0.0"), "claim exp:"),
        (jwt.encode({}, None, algorithm="none"), "alg: expected EdDSA"),
        ("", "[startup.missing_capability_token]"),
    ],
)
def test_a_worker_ends_with_77_before_it_asks_anybody_anything(tmp_path: Path, token: str, message: str) -> None:
    """The orchestrator is a port that counts who comes."""
    (tmp_path / "key").write_bytes(PUBLIC)
    with socket.create_server(("127.0.0.1", 0)) as server:
        environ = {
            **os.environ,
            "WORKER_MODE": "trainer",
            "TRAINER_JOB_SPEC_PATH": str(EXAMPLE / "job.json"),
            "TRAINER_PLUGIN": "squares.trainer:Squares",
            "TRAINER_ARTIFACTS_DIR": str(tmp_path / "out"),
            "TRAINER_ORCHESTRATOR_URL": f"http://127.0.0.1:{server.getsockname()[1]}",
            "TRAINER_PUBLIC_KEY_FILE": str(tmp_path / "key"),
            "TRAINER_CAPABILITY_TOKEN": token,
        }
        command = [sys.executable, "-m", "trn.worker"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
        server.settimeout(0.0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert done.returncode == 77, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    events = [json.loads(line) for line in (tmp_path / "out/metrics/events.jsonl").read_text().splitlines()]
    terminals = [(one["event"], one["outcome"], one["exit_code"]) for one in events if "exit_code" in one]
    assert terminals == [("failed", "unauthorized", 77)]
    for path in tmp_path.rglob("*"):
        assert not (token and path.is_file() and token.encode() in path.read_bytes()), path
