"""What is sent and where: the folder of a run without a training, a relay on a thread, a Redis server, a receiver."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from trn.files import make_folder, write_atomic
from trn.journal import EventLog
from trn.records import canonical_json, json_line
from trn.sinks.relay import Relay
from trn.sinks.sink import RunFacts
from trn.sinks.targets import parse_target

DEADLINE_S = 30.0


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """What the condition gives as soon as it is true."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {DEADLINE_S:g} s for {what}")


class ToyRun:
    """A run's folder with a plan and a journal, and nobody who trains."""

    def __init__(self, runs_dir: Path, run_id: str = "exp01", job_id: str = "job-1", **plan: Any) -> None:
        self.dir = runs_dir / run_id
        self.reports = self.dir / "reports"
        self.events_file = self.reports / "events.jsonl"
        make_folder(self.reports)
        write_atomic(self.reports / "resolved_config.json", canonical_json({"run_id": run_id, "events": [], **plan}))
        self.facts = RunFacts(run_id, self.dir, job_id, {"run_id": run_id})
        self.log = EventLog(self.events_file, run_id=run_id, job_id=job_id)

    def emit(self, count: int, event: str = "note", **fields: Any) -> None:
        for _ in range(count):
            self.log.emit(event, **{"text": "x" * 40, **fields})

    def metrics(self, first: int, last: int, kind: str = "train", **fields: Any) -> None:
        with open(self.reports / f"{kind}_metrics.jsonl", "ab") as stream:
            for step in range(first, last + 1):
                stream.write(json_line({"step": step, f"{kind}_loss": 1.0 / step, **fields}))

    def cut(self, step: int, kind: str = "train") -> None:
        path = self.reports / f"{kind}_metrics.jsonl"
        lines = [line for line in path.read_bytes().splitlines(True) if json.loads(line)["step"] <= step]
        path.write_bytes(b"".join(lines))

    def with_environ(self, **environ: str) -> RunFacts:
        return RunFacts(self.facts.run_id, self.dir, self.facts.job_id, self.facts.plan, environ)


class RelayThread:
    """A relay as the process of sinks runs it; what it says is kept."""

    def __init__(self, text: str, run: RunFacts, **options: Any) -> None:
        self.said: list[str] = []
        self.relay = Relay(parse_target(text), run, self.said.append, poll_s=0.02, **options)
        self.thread = threading.Thread(target=self.relay.run, daemon=True)
        self.thread.start()

    def finish(self, seconds: float = DEADLINE_S) -> Relay:
        """The job has ended; returns when the relay has."""
        self.relay.finish()
        self.thread.join(seconds)
        assert not self.thread.is_alive(), (self.relay.standing, self.said)
        return self.relay

    def stop(self) -> Relay:
        self.relay.stop()
        return self.finish()


def send_all(text: str, run: RunFacts, **options: Any) -> Relay:
    """Send what there is; returns the relay at its end."""
    return RelayThread(text, run, **options).finish()


# a server of Redis


@dataclass
class Server:
    """redis-server of the test's own in a folder of its own, on a port of loopback that was free."""

    folder: Path
    options: tuple[str, ...] = ()
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def client(self) -> Any:
        return redis.Redis(port=self.port, socket_timeout=10)

    def start(self) -> Server:
        self.port = self.port or free_port()
        program = shutil.which("redis-server")
        assert program, "redis-server is not installed: apt-get install redis-server"
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        self.process = subprocess.Popen(
            [program, *arguments, "--enable-debug-command", "yes", *self.options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self._answers, "redis-server")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "redis-server has ended"
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def kill(self) -> None:
        """As a machine that loses its power: no last write."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)
            self.process = None

    def entries(self, key: str = "trn:exp01") -> list[tuple[str, dict[str, str]]]:
        """Of the stream: ids and fields."""
        found = self.client.xrange(key)
        return [(i.decode(), {k.decode(): v.decode() for k, v in fields.items()}) for i, fields in found]


@contextlib.contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[Server]:
    server = Server(folder, options)
    try:
        yield server.start()
    finally:
        server.kill()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


# a receiver of web hooks


@dataclass
class Receiver:
    """An HTTP server that keeps what it is sent, and answers as it is told: with each of `answers` once, then 200."""

    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    taken: list[dict[str, Any]] = field(default_factory=list)
    """Of the requests that were answered with 2xx: the envelopes."""
    url: str = ""

    def answer(self, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str]]:
        self.requests.append((headers, body))
        status, more = self.answers.pop(0) if self.answers else (200, {})
        if 200 <= status < 300:
            self.taken += json.loads(body or b"[]")
        return status, more

    @property
    def ids(self) -> list[int]:
        return [int(one["id"]) for one in self.taken]


@contextlib.contextmanager
def receiver(*answers: int | tuple[int, dict[str, str]]) -> Iterator[Receiver]:
    kept = Receiver([one if isinstance(one, tuple) else (one, {}) for one in answers])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, more = kept.answer({name.lower(): value for name, value in self.headers.items()}, body)
            self.send_response(status)
            for name, value in {"Content-Length": "0", **more}.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST  # noqa: N815 - as http.server asks for it

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.url = f"http://127.0.0.1:{server.server_address[1]}/events"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()


def lines_of(path: Path) -> Sequence[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]
