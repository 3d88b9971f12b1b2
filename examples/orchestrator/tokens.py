"""Who asks: a JWT, signed by the key pair that `mint.py` made. The worker checks the same token by itself, offline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jwt
from runs import Refusal

__all__ = ["Bearer", "Bearers"]


@dataclass(frozen=True)
class Bearer:
    owner: str
    scopes: frozenset[str]
    release: str | None
    run_id: str | None


class Bearers:
    """Knows who may ask by the public key in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._key = path.read_text()

    def of(self, authorization: str | None) -> Bearer:
        """Whose token this is. Raises Refusal 401 where it is none, or no longer."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise _unauthorized("expected Authorization: Bearer TOKEN")
        try:
            claims = jwt.decode(
                token, self._key, algorithms=["EdDSA"], leeway=30,
                options={"require": ["exp", "owner", "scope"], "verify_aud": False},
            )  # fmt: skip
        except (jwt.PyJWTError, RecursionError) as error:
            raise _unauthorized(f"the token is refused: {error}") from None
        owner, scope, release, run_id = (claims.get(name) for name in ("owner", "scope", "release", "run_id"))
        words = scope.split() if isinstance(scope, str) else scope
        are_texts = isinstance(owner, str) and isinstance(release, str | None) and isinstance(run_id, str | None)
        if not are_texts or not isinstance(words, list):
            raise _unauthorized("the token is refused: its claims are not of the expected types")
        return Bearer(owner, frozenset(str(word) for word in words), release, run_id)


def _unauthorized(message: str) -> Refusal:
    return Refusal(401, message, WWW_Authenticate="Bearer")
