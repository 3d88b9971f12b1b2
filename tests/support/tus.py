"""A small server of uploads on loopback with faults on request, and what a run commits, without a training.

    with tus_server(tmp_path) as server:
        server.fail_rate = 0.3; server.garble["wrong_digest"] = 1; server.answer("POST", "checkpoint", 413)
        ... server.endpoints ... server.whole() ... server.lines ... server.ends

Everything that it took lies on its disk, and a connection that breaks costs no byte that had come.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.sending import ToyRun, free_port, wait_for
from trn.checkpoint.folder import folder_name
from trn.checkpoint.meta import CheckpointMeta, checkpoint_name, meta_name
from trn.files import make_folder, sha256_file, write_atomic
from trn.records import Outcome, pretty_json, utc_now
from trn.transfer.client import Client
from trn.worker.uploading import Endpoints, Report, Uploads

Json = dict[str, Any]

_CHUNK = 64 << 10


@dataclass
class Received:
    """One upload: what was announced, and how much came, over all tries."""

    told: dict[str, str]
    length: int
    path: Path
    creations: int = 0
    received: int = 0

    @property
    def identity(self) -> tuple[str, str, str]:
        return self.told["kind"], self.told["name"], self.told["sha256"]

    @property
    def offset(self) -> int:
        return self.path.stat().st_size

    def digest(self) -> str:
        return sha256_file(self.path)


@dataclass
class TusServer:
    """The server; its fields are looked at with each request."""

    folder: Path
    port: int = field(default_factory=free_port)
    fail_rate: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    garble: Counter[str] = field(default_factory=Counter)
    """How often still: no_location, other_host, no_digest, wrong_digest, wrong_offset, no_offset; loses."""
    answers: dict[tuple[str, str], list[tuple[int, dict[str, str]]]] = field(default_factory=dict)
    generation: int = 0
    """Requests of a lower one are refused."""
    slow_s: float = 0.0
    uploads: dict[str, Received] = field(default_factory=dict)
    by_key: dict[str, str] = field(default_factory=dict)
    lines: list[Json] = field(default_factory=list)
    metrics_keys: list[str] = field(default_factory=list)
    bodies: list[Json] = field(default_factory=list)
    """Of metrics that were taken."""
    ends: dict[str, Json] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    mutex: threading.RLock = field(default_factory=threading.RLock)
    _server: http.server.ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints(*(f"{self.url}/{place}" for place in ("metrics", "checkpoint", "sample", "terminal")))

    def answer(self, method: str, place: str, status: int, times: int = 1, **headers: str) -> None:
        """Let the next requests of this kind be answered so; `place` is upload for a Location."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.setdefault((method, place), []).extend([(status, named)] * times)

    def start(self) -> None:
        make_folder(self.folder)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def die(self) -> None:
        """Nobody listens any more; what it has it keeps."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def die_for(self, seconds: float) -> None:
        self.die()
        time.sleep(seconds)
        self.start()

    def whole(self) -> list[tuple[str, str, str]]:
        """Kind, name and digest of the bytes on its disk, of all that is whole; sorted."""
        found = [one for one in list(self.uploads.values()) if one.offset == one.length]
        return sorted((one.told["kind"], one.told["name"], one.digest()) for one in found)

    def sent_bytes(self, name: str) -> int:
        return sum(one.received for one in list(self.uploads.values()) if one.told["name"] == name)

    def finals(self) -> list[str]:
        return [one.told["name"] for one in self.uploads.values() if one.told["final"] == "true"]


class _HangUp(Exception):
    """The connection ends here."""


def _handler(kept: TusServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def do_POST(self) -> None:
            self.serve()

        do_HEAD = do_PATCH = do_POST  # noqa: N815 - as http.server asks for them

        def serve(self) -> None:
            place = self.path.split("/")[1]
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.place, self.left = place, int(headers.get("content-length", "0"))
            with kept.mutex:
                kept.requests.append((self.command, place, headers))
                forced = kept.answers.get((self.command, place))
                status, more = forced.pop(0) if forced else (0, {})
                fault = kept.rng.choice(["away", "unanswered", "cut"]) if kept.rng.random() < kept.fail_rate else ""
                cut = kept.rng.randrange(1 << 17)
            time.sleep(kept.slow_s)
            try:
                if fault == "cut":
                    self.left = min(self.left, cut)
                if fault == "away":
                    status, more = 503, {"Retry-After": "0"}
                elif not status:
                    status, more = self.act(headers)
                self.read_rest()
                if fault in ("unanswered", "cut"):
                    raise _HangUp
                self.reply(status, more)
            except (_HangUp, OSError):
                self.close_connection = True

        def reply(self, status: int, more: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": "0", **more}.items():
                self.send_header(name, value)
            self.end_headers()

        def read_rest(self) -> bytes:
            found = b""
            while self.left and (chunk := self.rfile.read(min(self.left, _CHUNK))):
                self.left -= len(chunk)
                found += chunk
            return found

        def act(self, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
            generation = headers.get("lease-generation")
            if generation is not None and int(generation) < kept.generation:
                return 409, {}
            if self.place == "upload":
                return self.upload(kept.uploads[self.path.split("/")[2]], headers)
            if self.place in ("checkpoint", "sample"):
                with kept.mutex:
                    return self.create(headers)
            whole = self.left
            body = self.read_rest()
            if len(body) < whole or int(headers["content-length"]) != whole:
                raise _HangUp
            with kept.mutex:
                return self.tell(json.loads(body), headers["idempotency-key"])

        def tell(self, value: Json, key: str) -> tuple[int, dict[str, str]]:
            if self.place == "terminal":
                kept.ends.setdefault(key, value)
                return 200, {}
            if key not in kept.metrics_keys:
                kept.metrics_keys.append(key)
                kept.bodies.append(value)
                if (cut := value["cut_above_step"]) is not None:
                    kept.lines = [line for line in kept.lines if line["step"] <= cut]
                kept.lines += value["lines"]
            return 202, {}

        def create(self, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
            key = headers["idempotency-key"]
            told = dict(pair.split(" ") for pair in headers["upload-metadata"].split(","))
            told = {name: base64.b64decode(value).decode() for name, value in told.items()}
            if key not in kept.by_key:
                name = f"{len(kept.uploads):04d}"
                (kept.folder / name).touch()
                kept.by_key[key] = name
                kept.uploads[name] = Received(told, int(headers["upload-length"]), kept.folder / name)
            upload = kept.uploads[kept.by_key[key]]
            assert upload.identity == (told["kind"], told["name"], told["sha256"]), "a key names one artifact"
            upload.creations += 1
            upload.told["final"] = max(upload.told["final"], told["final"])
            if told["final"] == "true" and self.is_garbled("loses"):
                upload.path.write_bytes(b"")
            location = f"/upload/{kept.by_key[key]}"
            if self.is_garbled("no_location"):
                return 201, {}
            if self.is_garbled("other_host"):
                return 201, {"Location": f"http://localhost:{kept.port}{location}"}
            return 201, {
                "Location": location,
                **({"Upload-Offset": str(upload.offset)} if told["final"] == "true" else {}),
            }

        def upload(self, upload: Received, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
            if self.command == "PATCH":
                if int(headers["upload-offset"]) != upload.offset:
                    return 409, {}
                with open(upload.path, "ab") as stream:
                    while self.left and (chunk := self.rfile.read(min(self.left, _CHUNK))):
                        self.left -= len(chunk)
                        upload.received += len(chunk)
                        stream.write(chunk)
                        stream.flush()
            offset = upload.offset
            shown = offset - 1 if offset and self.is_garbled("wrong_offset") else offset
            more = {"Upload-Offset": str(shown), "Upload-Length": str(upload.length)}
            if self.is_garbled("no_offset"):
                del more["Upload-Offset"]
            if offset == upload.length and not self.is_garbled("no_digest"):
                more |= self.whole(upload)
            return (204 if self.command == "PATCH" else 200), more

        def whole(self, upload: Received) -> dict[str, str]:
            digest = hashlib.sha256(b"?").hexdigest() if self.is_garbled("wrong_digest") else upload.digest()
            if digest != upload.told["sha256"]:
                upload.path.write_bytes(b"")  # it begins anew
            told = base64.b64encode(bytes.fromhex(digest)).decode()
            return {"Repr-Digest": f"sha-256=:{told}:", "Upload-Ref": f"ref-{upload.path.name}"}

        def is_garbled(self, how: str) -> bool:
            with kept.mutex:
                kept.garble[how] -= 1
                return kept.garble[how] >= 0

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    return Handler


@contextlib.contextmanager
def tus_server(folder: Path, **options: Any) -> Iterator[TusServer]:
    server = TusServer(folder / "tus", **options)
    server.start()
    try:
        yield server
    finally:
        server.die()


# a run that commits, and its uploads


def commit(run: ToyRun, step: int, data: bytes = b"", *, files: dict[str, bytes] | None = None) -> CheckpointMeta:
    """A checkpoint as the saver commits it, and its event."""
    folder = make_folder(run.dir / "checkpoints")
    sha256 = write_atomic(folder / checkpoint_name(step), data or f"state {step}".encode())
    listed = None
    if files is not None:
        listed = []
        for path, content in sorted(files.items()):
            make_folder((folder / folder_name(step) / path).parent)
            digest = write_atomic(folder / folder_name(step) / path, content)
            listed.append({"path": path, "size_bytes": len(content), "sha256": digest})
    size_bytes = (folder / checkpoint_name(step)).stat().st_size
    return announce(run, step, sha256, size_bytes, files=listed)


def announce(
    run: ToyRun, step: int, sha256: str, size_bytes: int, *, files: list[Json] | None = None
) -> CheckpointMeta:
    """The meta and the event of a checkpoint whose files are there."""
    meta = CheckpointMeta(
        file=checkpoint_name(step),
        sha256=sha256,
        size_bytes=size_bytes,
        step=step,
        epoch=0,
        run_id=run.facts.run_id,
        job_id=run.facts.job_id,
        plan_fingerprint="f",
        created_at=utc_now(),
        metrics={},
        journal={},
        progress={},
        rng=[],
        files=files,
        hook=None,
    )
    write_atomic(run.dir / "checkpoints" / meta_name(step), meta.to_bytes())
    run.log.emit("checkpoint", step=step, file=meta.file, sha256=sha256, size_bytes=size_bytes)
    return meta


def sample(run: ToyRun, step: int, name: str, content: bytes) -> None:
    path = make_folder(run.dir / "samples") / f"step-{step:08d}-{name}"
    write_atomic(path, content)
    run.log.emit("sample", step=step, paths=[f"samples/{path.name}"])


def end(run: ToyRun, last: CheckpointMeta | None) -> None:
    """The outcome of the run."""
    checkpoint = last and {"file": f"checkpoints/{last.file}", "sha256": last.sha256, "step": last.step}
    outcome = Outcome(
        *("completed", "max_steps", last.step if last else 0, run.facts.run_id, run.facts.job_id, 0, "f"),
        started_at=utc_now(),
        ended_at=utc_now(),
        resumable=False,
        checkpoint=checkpoint,
    )
    write_atomic(run.reports / "outcome.json", pretty_json(outcome.to_json()))


def on_disk(run: ToyRun) -> list[tuple[str, str, str]]:
    """What of the run is to be sent: kind, name and digest; sorted."""
    folder = run.dir / "checkpoints"
    found = []
    for path in folder.rglob("*") if folder.is_dir() else ():
        name = path.relative_to(folder).as_posix()
        kind = "meta" if name.endswith(".meta.json") else "folder-file" if "/" in name else "checkpoint"
        if path.is_file():
            found.append((kind, name, sha256_file(path)))
    samples = run.dir / "samples"
    found += [("sample", path.name, sha256_file(path)) for path in samples.iterdir()] if samples.is_dir() else []
    return sorted(found)


class Uploading:
    """The uploads of a toy run, with what they said."""

    def __init__(self, run: ToyRun, endpoints: Endpoints, *, client: Client | None = None, **options: Any) -> None:
        self.said: list[str] = []
        given: Json = {"job_id": run.facts.job_id, "say": self.said.append, "poll_s": 0.02, "metrics_every_s": 0.02}
        client = client or Client(None, frozenset(), timeout_s=10.0)
        self.uploads = Uploads(run.dir, run.facts.run_id, endpoints, client, **{**given, **options})

    def __enter__(self) -> Uploads:
        self.uploads.start()
        return self.uploads

    def __exit__(self, *exception: object) -> None:
        """As a process that is killed, but for the request that is under way."""
        self.uploads.abandon()
        wait_for(lambda: self.uploads._thread not in threading.enumerate(), "the thread to end")


def lines_of(run: ToyRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.reports / "train_metrics.jsonl").read_bytes().splitlines()]


def send(run: ToyRun, endpoints: Endpoints, terminal: Any = None, deadline_s: float = 20.0, **options: Any) -> Report:
    """Send what there is, as a process that ends then."""
    uploading = Uploading(run, endpoints, **options)
    report = uploading.uploads.finish(terminal, deadline_s)
    uploading.__exit__()
    return report


def full_run(folder: Path, word: str = "hello") -> ToyRun:
    """A run of everything, which has ended."""
    run = ToyRun(folder / "runs")
    run.emit(1, "plan_written")
    run.metrics(1, 30, word=word)
    commit(run, 10, files={"model/lora.safetensors": b"weights" * 100, "empty": b""})
    sample(run, 20, "text.txt", word.encode())
    sample(run, 20, "nothing.txt", b"")
    end(run, commit(run, 20, b"x" * 300_000))
    return run
