"""Bytes that workers send: tus 1.0, with creation, into files that go on where they stopped.

    POST  length, name, sha256, Idempotency-Key ──> Location     the same key again: the same place
    PATCH offset, bytes ──> offset, and when it is whole Repr-Digest of what lies on the disk
    HEAD                ──> the same

Below `folder` each upload is UPLOAD_ID.json and UPLOAD_ID.bytes; the id is ours, and no name from outside is part of a
path. The length of the second file is the offset. An upload whose bytes are not those that were announced begins anew.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import os
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runs import Refusal, write_whole

__all__ = ["Upload", "Uploads", "metadata_of"]

KINDS = {"checkpoints": ("checkpoint", "meta", "folder-file"), "samples": ("sample", "meta")}
_NAME = re.compile(r"[\x20-\x7e]{1,200}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KEYS = ("run_id", "job_id", "kind", "name", "step", "sha256", "final")


@dataclass
class Upload:
    """One file that is sent or was sent; `digest` is that of the bytes on the disk, once they are whole."""

    upload_id: str
    run_id: str
    job_id: str
    kind: str
    name: str
    step: int | None
    sha256: str
    size_bytes: int
    key: str
    number: int
    """In the order of their creation."""
    is_final: bool = False
    digest: str | None = None
    creations: int = 1
    received_bytes: int = 0
    """Over all tries: what was sent twice counts twice."""
    writer: object = field(default=None, repr=False)
    """The newest request that sends bytes; an older one stops."""
    finishing: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    @property
    def ref(self) -> str:
        return f"{self.run_id}/{self.kind}/{self.sha256[:16]}"

    def page(self) -> dict[str, object]:
        keys = ("kind", "name", "step", "sha256", "size_bytes", "is_final", "job_id", "creations", "received_bytes")
        return {**{key: getattr(self, key) for key in keys}, "ref": self.ref, "is_whole": self.digest is not None}


class Uploads:
    """All uploads below `folder`; what an earlier process left there is taken up."""

    def __init__(self, folder: Path, *, most_bytes: int) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        folder.mkdir(parents=True, exist_ok=True)
        read = [Upload(**json.loads(path.read_text())) for path in folder.glob("*.json")]
        read.sort(key=lambda upload: upload.number)
        self._all = {upload.upload_id: upload for upload in read}
        self._by_key = {(upload.run_id, upload.key): upload for upload in read}

    def of(self, run_id: str) -> list[Upload]:
        return [upload for upload in self._all.values() if upload.run_id == run_id]

    def get(self, run_id: str, upload_id: str) -> Upload:
        upload = self._all.get(upload_id)
        if upload is None or upload.run_id != run_id:
            raise Refusal(404, "there is no such upload")
        return upload

    def path(self, upload: Upload) -> Path:
        return self._folder / f"{upload.upload_id}.bytes"

    def offset(self, upload: Upload) -> int:
        return self.path(upload).stat().st_size

    def create(self, run_id: str, place: str, length: str, text: str, key: str | None) -> tuple[Upload, bool]:
        """The upload, and whether it is new."""
        if not (length.isascii() and length.isdecimal()):
            raise Refusal(400, "Upload-Length: expected a number of bytes")
        size_bytes = int(length[:20])
        if size_bytes > self._most_bytes:
            raise Refusal(413, f"Upload-Length: at most {self._most_bytes} bytes are taken", Tus_Max_Size=length[:20])
        told = metadata_of(text)
        _check(told, run_id, place)
        if key is None or not _NAME.fullmatch(key):
            raise Refusal(400, "Idempotency-Key: expected 1 to 200 characters")
        upload = self._by_key.get((run_id, key))
        if upload is None:
            upload = self._new(run_id, told, size_bytes, key)
            is_new = True
        elif (upload.sha256, upload.size_bytes, upload.name) != (told["sha256"], size_bytes, told["name"]):
            raise Refusal(422, "Idempotency-Key: it was used for another file")
        else:
            upload.creations += 1
            is_new = False
        upload.is_final = upload.is_final or told.get("final") == "true"
        self._save(upload)
        return upload, is_new

    def _new(self, run_id: str, told: Mapping[str, str], size_bytes: int, key: str) -> Upload:
        step = int(told["step"]) if told.get("step") else None
        upload = Upload(
            secrets.token_hex(16), run_id, told["job_id"], told["kind"], told["name"], step, told["sha256"],
            size_bytes, key, len(self._all),
        )  # fmt: skip
        self.path(upload).touch(exist_ok=False)
        self._all[upload.upload_id] = self._by_key[run_id, key] = upload
        return upload

    async def receive(self, upload: Upload, offset: int, chunks: AsyncIterator[bytes]) -> int:
        """Append what comes; returns the new offset. What has come stays, also where the rest never comes."""
        at = self.offset(upload)
        if offset != at:
            raise Refusal(409, f"Upload-Offset: expected {at}", Upload_Offset=str(at))
        mine = upload.writer = object()
        with open(self.path(upload), "ab") as stream:
            async for chunk in chunks:
                if upload.writer is not mine:
                    raise Refusal(409, "a newer request goes on with this upload")
                if at + len(chunk) > upload.size_bytes:
                    raise Refusal(413, f"these are more than the {upload.size_bytes} bytes that were announced")
                stream.write(chunk)
                stream.flush()
                at += len(chunk)
                upload.received_bytes += len(chunk)
        return at

    async def finish(self, upload: Upload) -> str | None:
        """The digest of the bytes on the disk, once they are all there; None before.

        Where it is not the announced one, the answer says what it is, and the upload begins anew.
        """
        async with upload.finishing:
            if upload.digest is not None:
                return upload.digest
            if self.offset(upload) < upload.size_bytes:
                return None
            digest = await asyncio.to_thread(_digest_of, self.path(upload))
            if digest == upload.sha256:
                upload.digest = digest
            else:
                os.truncate(self.path(upload), 0)
            self._save(upload)
            return digest

    def _save(self, upload: Upload) -> None:
        known = {key: value for key, value in vars(upload).items() if key not in ("writer", "finishing")}
        write_whole(self._folder / f"{upload.upload_id}.json", json.dumps(known))


def _check(told: Mapping[str, str], run_id: str, place: str) -> None:
    missing = [key for key in ("run_id", "job_id", "kind", "name", "sha256") if not told.get(key)]
    if missing or not set(told) <= set(_KEYS):
        raise Refusal(400, f"Upload-Metadata: expected {', '.join(_KEYS)}; missing: {', '.join(missing) or 'none'}")
    if told["run_id"] != run_id:
        raise Refusal(400, f"Upload-Metadata: expected the run {run_id!r}")
    if told["kind"] not in KINDS[place]:
        raise Refusal(400, f"Upload-Metadata: kind: expected one of {', '.join(KINDS[place])}")
    if not _NAME.fullmatch(told["name"]) or not _NAME.fullmatch(told["job_id"]):
        raise Refusal(400, "Upload-Metadata: name, job_id: expected at most 200 printable characters")
    if not _DIGEST.fullmatch(told["sha256"]):
        raise Refusal(400, "Upload-Metadata: sha256: expected 64 hex digits")
    if not re.fullmatch(r"[0-9]{0,15}", told.get("step", "")):
        raise Refusal(400, "Upload-Metadata: step: expected a number")


def metadata_of(text: str) -> dict[str, str]:
    """The pairs of `Upload-Metadata`: a name and, in base64, its value, with commas between."""
    found: dict[str, str] = {}
    for pair in text.split(","):
        name, _, value = pair.strip().partition(" ")
        try:
            decoded = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise Refusal(400, f"Upload-Metadata: {name[:40]!r} has no base64 of UTF-8") from None
        if not name or name in found:
            raise Refusal(400, "Upload-Metadata: expected each name once")
        found[name] = decoded
    return found


def _digest_of(path: Path) -> str:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()
