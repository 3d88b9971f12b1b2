"""Makes a key pair, once, and tokens signed with it.

    python mint.py keys --owner acme --release acme/table:v1                a worker's token, to keys/worker.jwt
    python mint.py keys --owner acme --scope trn.operate                    the platform's, to keys/operator.jwt

The private key stays with whoever mints; workers and the orchestrator get keys/public.pem.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["make_keys", "mint"]


def make_keys(folder: Path) -> None:
    """private.pem and public.pem in `folder`, where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    private = folder / "private.pem"
    if private.exists():
        return
    key = Ed25519PrivateKey.generate()
    _write(private, key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption()))
    public = key.public_key().public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)
    (folder / "public.pem").write_bytes(public)


def mint(folder: Path, *, owner: str, scope: str, release: str = "", run_id: str = "", hours: float = 24.0) -> str:
    """A token of `owner`, signed by the private key in `folder`."""
    now = int(time.time())
    claims: dict[str, object] = {"owner": owner, "scope": scope, "iat": now, "exp": now + int(hours * 3600)}
    claims |= {"release": release} if release else {}
    claims |= {"run_id": run_id} if run_id else {}
    return jwt.encode(claims, (folder / "private.pem").read_bytes(), algorithm="EdDSA")


def _write(path: Path, data: bytes) -> None:
    """A file that only its owner may read."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(data)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a key pair, and a token signed with it.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--owner", required=True)
    parser.add_argument("--release", default="", help="the release that a worker may run, as in the job's release_ref")
    parser.add_argument("--scope", default="trn.run", choices=["trn.run", "trn.operate"])
    parser.add_argument("--run-id", default="", help="the only run it is for")
    parser.add_argument("--hours", type=float, default=24.0)
    given = parser.parse_args()
    if given.scope == "trn.run" and not given.release:
        parser.error("a worker's token needs --release")
    make_keys(given.folder)
    path = given.folder / ("worker.jwt" if given.scope == "trn.run" else "operator.jwt")
    token = mint(
        given.folder, owner=given.owner, scope=given.scope, release=given.release, run_id=given.run_id,
        hours=given.hours,
    )  # fmt: skip
    _write(path, token.encode())
    print(path)


if __name__ == "__main__":
    main()
