"""Public keys, out of a PEM file or a JWKS, each with the one algorithm that it is used with.

Which algorithm, the key decides: a token that names another is signed by nobody known. So `none` is nobody's, and a
public key is never taken for a shared secret. Needs the extra `worker`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from trn.errors import Unauthorized
from trn.records import JsonError, from_json

__all__ = ["PublicKey", "keys_of"]

Key: TypeAlias = Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey

_WHERE = "TRAINER_PUBLIC_KEY_FILE"
_EXPECTED = "expected Ed25519, P-256, or RSA from 2048 bits"
_MOST_BYTES = 256 << 10
_MOST_KEYS = 64
_LEAST_RSA_BITS = 2048


@dataclass(frozen=True)
class PublicKey:
    key_id: str | None
    algorithm: str
    key: Key


def keys_of(data: bytes, key_id: object, algorithm: object) -> Sequence[PublicKey]:
    """The keys in `data` that may have signed a token with this `kid` and `alg`: one at least.

    Raises Unauthorized: there is none, or the file is not one of public keys.
    """
    if len(data) > _MOST_BYTES:
        raise _unfit(f"expected at most {_MOST_BYTES} bytes, found {len(data)}.")
    known = _of_set(data) if data.lstrip().startswith(b"{") else [_of_pem(data)]
    if isinstance(key_id, str) and any(key.key_id is not None for key in known):
        named = [key for key in known if key.key_id == key_id]
        if not named:
            raise _wrong(f"kid: expected that of a known key, found {key_id!r:.80}.")
        known = named
    fit = [key for key in known if key.algorithm == algorithm]
    if not fit:
        expected = " or ".join(sorted({key.algorithm for key in known}))
        raise _wrong(f"alg: expected {expected}, as the key is one for that, found {algorithm!r:.80}.")
    return fit


def _of_pem(data: bytes) -> PublicKey:
    if b"PRIVATE KEY" in data:
        raise _unfit(
            "expected a public key, found a private one.", "A worker has no use for it: give it the public one."
        )
    try:
        found = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise _unfit("expected a public key as PEM, or a JWKS.") from None
    key = _public_key(None, found)
    if key is None:
        raise _unfit(f"{_EXPECTED}, found another kind of key.")
    return key


def _of_set(data: bytes) -> list[PublicKey]:
    """Those of a set that are of use here; what else is in it is for others."""
    try:
        document = from_json(data)
    except JsonError as error:
        raise _unfit(f"expected a JWKS, found no strict JSON ({error}).") from None
    entries = document.get("keys", [document]) if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _unfit("expected a JWKS, a JSON object with a list of keys.")
    if len(entries) > _MOST_KEYS:
        raise _unfit(f"expected at most {_MOST_KEYS} keys, found {len(entries)}.")
    found = [key for entry in entries if (key := _of_entry(entry)) is not None]
    if not found:
        raise _unfit(f"{_EXPECTED}, found no such key to verify with.")
    return found


_READERS: Mapping[str, Callable[[dict[str, Any]], Any]] = {
    "OKP": OKPAlgorithm.from_jwk,
    "EC": ECAlgorithm.from_jwk,
    "RSA": RSAAlgorithm.from_jwk,
}


def _of_entry(entry: dict[str, Any]) -> PublicKey | None:
    if "d" in entry:
        raise _unfit(
            "expected public keys, found a private one.", "A worker has no use for it: give it the public one."
        )
    read = _READERS.get(str(entry.get("kty")))
    operations = entry.get("key_ops", ["verify"])
    is_for_this = entry.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations
    if read is None or not is_for_this:
        return None
    try:
        key = _public_key(entry.get("kid"), read(entry))
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm):  # of what it is made of
        raise _unfit(f"the key with kid {entry.get('kid')!r:.80} cannot be read.") from None
    return key if key is not None and entry.get("alg", key.algorithm) == key.algorithm else None


def _public_key(key_id: object, found: object) -> PublicKey | None:
    """None for a kind of key that is not used here."""
    name = key_id if isinstance(key_id, str) else None
    if isinstance(found, Ed25519PublicKey):
        return PublicKey(name, "EdDSA", found)
    if isinstance(found, EllipticCurvePublicKey) and isinstance(found.curve, SECP256R1):
        return PublicKey(name, "ES256", found)
    if isinstance(found, RSAPublicKey) and found.key_size >= _LEAST_RSA_BITS:
        return PublicKey(name, "RS256", found)
    return None


def _unfit(message: str, hint: str | None = None) -> Unauthorized:
    return Unauthorized(message, where=_WHERE, hint=hint)


def _wrong(message: str) -> Unauthorized:
    return Unauthorized(message, where="TRAINER_CAPABILITY_TOKEN")
