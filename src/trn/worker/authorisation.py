"""Whether this worker may run this job: a capability token, checked offline with a public key.

    owner, release    must be the job's             scope     must have trn.run
    run_id            where there is one, the run's aud       where there is one, must have trn
    exp               must be there, and ahead      nbf, iat  where there are some, behind

A token is a JWT, signed by Ed25519 (EdDSA), P-256 (ES256) or RSA from 2048 bits (RS256); which of them, the key says
and the token does not. The key is a PEM file, or a JWKS with several, of which the token's `kid` names one. Whatever
is wrong is `unauthorized`, with the claim's name and never with the token. Not here: where it is sent (transfer).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trn.errors import Unauthorized, UsageError
from trn.records import JsonError, from_json
from trn.worker.refusal import StartupRefused

__all__ = ["SCOPE", "TOKEN", "TOKEN_FILE", "Capability", "authorise", "read_token"]

TOKEN, TOKEN_FILE = "TRAINER_CAPABILITY_TOKEN", "TRAINER_CAPABILITY_TOKEN_FILE"
SCOPE = "trn.run"
_AUDIENCE = "trn"
_KEY = "TRAINER_PUBLIC_KEY_FILE"
_LEEWAY_S = 30.0
_MOST_TOKEN_BYTES = 16 << 10
_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Capability:
    """What a token that was verified allows; it never holds the token."""

    owner: str
    release: str
    scopes: tuple[str, ...]
    run_id: str | None
    expires_s: float
    """Seconds since 1970."""


def read_token(environ: Mapping[str, str], say: Callable[[str], None] = lambda line: None) -> Callable[[], str | None]:
    """Gives the token of the environment, or of the file that it names, whose content may change while this runs.

    Where the file cannot be read *any more*, or is empty, the token before is given: it may be on its way to be
    replaced. Calls raise Unauthorized where there never was one to read. Through `say`, a warning about the file.
    """
    token, name = environ.get(TOKEN, "").strip(), environ.get(TOKEN_FILE, "").strip()
    if token and name:
        raise Unauthorized(f"expected one of {TOKEN} and {TOKEN_FILE}, found both.", where=TOKEN)
    if not name:
        checked = _checked(token, TOKEN) if token else None
        return lambda: checked
    path = Path(name)
    if warning := _too_open(path):
        say(warning)
    before: str | None = None

    def read() -> str | None:
        nonlocal before
        try:
            before = _read(path)
        except Unauthorized:
            if before is None:
                raise
        return before

    return read


def _read(path: Path) -> str:
    try:
        with open(path, "rb", opener=_without_waiting) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise Unauthorized("expected a file, which can be read again and again.", where=TOKEN_FILE)
            text = stream.read(_MOST_TOKEN_BYTES + 1).decode().strip()
    except OSError as error:
        raise Unauthorized(f"the file cannot be read ({error.strerror}).", where=TOKEN_FILE) from None
    except UnicodeDecodeError:
        text = "\0"
    return _checked(text, TOKEN_FILE)


def _without_waiting(path: str, flags: int) -> int:
    """Opens a pipe too at once: nobody may ever write into it, and a signal would not end the wait."""
    return os.open(path, flags | os.O_NONBLOCK)


def _checked(token: str, where: str) -> str:
    if not token:
        raise Unauthorized("expected a token, and it is empty.", where=where)
    if len(token) > _MOST_TOKEN_BYTES:
        raise Unauthorized(f"expected a token of at most {_MOST_TOKEN_BYTES} bytes.", where=where)
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise Unauthorized("expected a token, one word of printable ASCII.", where=where)
    return token


def _too_open(path: Path) -> str | None:
    """A warning where others may read the file; none where it is mounted read-only, as platforms do with secrets."""
    try:
        mode, is_read_only = path.stat().st_mode, os.statvfs(path).f_flag & os.ST_RDONLY
    except OSError:
        return None
    if not mode & (stat.S_IRGRP | stat.S_IROTH) or is_read_only:
        return None
    return f"trn: {TOKEN_FILE}: other users may read the file; `chmod 600` it."


def authorise(
    token: str | None,
    key: bytes | None,
    *,
    owner: str | None,
    release_ref: str | None,
    run_id: str,
    is_orchestrated: bool,
    now: float,
) -> Capability | None:
    """What the token allows; None where there is no key and nobody who asks for one.

    `key` is the content of the key file, `owner` and `release_ref` are the job's, `now` is in seconds since 1970.
    Raises Unauthorized, and StartupRefused where a token is missing.
    """
    if token is None and (is_orchestrated or key is not None):
        why = "the job is orchestrated" if is_orchestrated else f"{_KEY} is set"
        raise StartupRefused(
            "missing_capability_token", f"{why}, and there is no token.", where=TOKEN, hint=f"Set it, or {TOKEN_FILE}."
        )
    if token is None:
        return None
    if key is None:
        if not is_orchestrated:
            return None
        raise Unauthorized(
            "the job is orchestrated, and there is no key to check its token with.", where=_KEY, hint="Name the key."
        )
    claims = _verified(token, key)
    _require_time(claims, now)
    _require_equal(claims, "owner", owner, "the job's owner")
    _require_equal(claims, "release", release_ref, "the job's release_ref")
    if "run_id" in claims:
        _require_equal(claims, "run_id", run_id, "this run")
    if "aud" in claims:
        _require_word(claims, "aud", _AUDIENCE)
    scopes = _require_word(claims, "scope", SCOPE)
    return Capability(claims["owner"], claims["release"], scopes, claims.get("run_id"), float(claims["exp"]))


def _verified(token: str, key: bytes) -> dict[str, Any]:
    """The claims of a token that the key has signed."""
    try:
        import jwt  # of the extra `worker`: only for whoever has a token to check

        from trn.worker.keys import keys_of
    except ImportError as error:
        raise UsageError(
            "to check a token takes PyJWT with cryptography, not installed.",
            where=_KEY,
            hint="pip install 'trn-runtime[worker]'",
        ) from error
    if len(token) > _MOST_TOKEN_BYTES or not _JWT.fullmatch(token):
        raise _refused("expected a JWT, three parts with dots between them.")
    try:
        head = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, RecursionError):
        raise _refused("its head cannot be read.") from None
    if "crit" in head:
        raise _refused("its head has `crit`, and no such extension is known.")
    for public in keys_of(key, head.get("kid"), head.get("alg")):
        try:
            payload = jwt.PyJWS().decode(token, public.key, algorithms=[public.algorithm])
            claims = from_json(payload)
        except jwt.PyJWTError:
            continue
        except JsonError as error:
            raise _refused(f"its claims are no strict JSON ({error}).") from None
        if not isinstance(claims, dict):
            raise _refused("its claims are no JSON object.")
        return claims
    raise _refused("the signature is not of this key, or the token was changed.")


def _require_time(claims: Mapping[str, Any], now: float) -> None:
    expires_s = _seconds(claims, "exp")
    if expires_s is None:
        raise _refused("claim exp: expected a time, found none.")
    if now >= expires_s + _LEEWAY_S:
        raise _refused(f"claim exp: expected a time ahead, found {_date(expires_s)}.", "Ask for a new token.")
    for name in ("nbf", "iat"):
        seconds = _seconds(claims, name)
        if seconds is not None and now < seconds - _LEEWAY_S:
            raise _refused(f"claim {name}: expected a time behind, found {_date(seconds)}.", "Is this clock right?")


def _seconds(claims: Mapping[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:
        raise _refused(f"claim {name}: expected seconds since 1970, found {_shown(value)}.")
    return float(value)


def _require_equal(claims: Mapping[str, Any], name: str, expected: str | None, what: str) -> None:
    if not expected:
        raise _refused(f"claim {name}: expected {what}, and the job names none.", "Put it into the job.")
    found = claims.get(name)
    if found != expected:
        told = f"found {_shown(found)}" if name in claims else "found none"
        raise _refused(f"claim {name}: expected {what}, {_shown(expected)}, {told}.")


def _require_word(claims: Mapping[str, Any], name: str, expected: str) -> tuple[str, ...]:
    """The words of a claim that is a text with spaces, or a list; `expected` must be among them."""
    found = claims.get(name)
    words = found.split() if isinstance(found, str) else found
    if not isinstance(words, list) or expected not in words or not all(isinstance(word, str) for word in words):
        told = f"found {_shown(found)}" if name in claims else "found none"
        raise _refused(f"claim {name}: expected {expected} among its words, {told}.")
    return tuple(words)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refused(message: str, hint: str | None = None) -> Unauthorized:
    return Unauthorized(message, where=TOKEN, hint=hint)
