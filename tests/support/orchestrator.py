"""The orchestrator of examples/orchestrator in a process of its own, with keys, tokens, and faults on request.

    with Orchestrator(tmp_path) as orchestrator:
        orchestrator.submit({"run_id": "exp01", "owner": OWNER, "release_ref": RELEASE, ...})
        ... environ = orchestrator.environ(); orchestrator.state("exp01")["artifacts"] ...

`fail_rate` is of a worker's requests: each such one is turned away, or done and not answered, or cut in the middle.
What it keeps lies on the disk, so that `kill` and `start`, or `die_for`, lose nothing that was answered.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["OWNER", "RELEASE", "Orchestrator", "example"]

OWNER, RELEASE = "acme", "acme/table:v1"
EXAMPLE = Path(__file__).parents[2] / "examples/orchestrator"
_START_S = 60.0

Json = dict[str, Any]


def example(name: str) -> Any:
    """A module of the example, as its own programs import it."""
    if str(EXAMPLE) not in sys.path:
        sys.path.append(str(EXAMPLE))
    return __import__(name)


class Orchestrator:
    """A server on loopback, from `start` to `stop`; a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        ttl_s: float = 30.0,
        fail_rate: float = 0.0,
        seed: int = 0,
        dead_after_s: float = 0.0,
        dead_s: float = 0.0,
        most_bytes: int = 64 << 30,
    ) -> None:
        self.folder = folder / "orchestrator"
        self.keys = folder / "keys"
        mint = example("mint")
        mint.make_keys(self.keys)
        self.public_key_file = self.keys / "public.pem"
        self.token_file = self.keys / "worker.jwt"
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(self.mint())
        self._operator = self.mint(scope="trn.operate")
        self._options = [f"--ttl={ttl_s}", f"--fail-rate={fail_rate}", f"--seed={seed}", f"--most-bytes={most_bytes}"]
        self._dead_after_s, self._dead_s = dead_after_s, dead_s
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._dying: threading.Thread | None = None

    def mint(self, **claims: Any) -> str:
        """A token; of a worker, where nothing else is said."""
        given = {"owner": OWNER, "release": RELEASE, "scope": "trn.run", **claims}
        return str(example("mint").mint(self.keys, **given))

    def environ(self) -> dict[str, str]:
        """What a worker is told of it."""
        return {
            "TRAINER_ORCHESTRATOR_URL": self.url,
            "TRAINER_CAPABILITY_TOKEN_FILE": str(self.token_file),
            "TRAINER_PUBLIC_KEY_FILE": str(self.public_key_file),
        }

    # the server

    def start(self) -> None:
        """Start it, or start it again; returns once it answers."""
        assert self._process is None, "it runs"
        self.folder.mkdir(parents=True, exist_ok=True)
        arguments = [f"--folder={self.folder}", f"--public-key={self.public_key_file}", f"--port={self.port}"]
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, *arguments, *self._options], stdout=subprocess.PIPE, stderr=log
            )
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], _START_S)
        if not ready or stdout.readline() != b"ready\n":
            self.kill()
            raise AssertionError(f"the orchestrator did not start: {(self.folder / 'server.log').read_text()[-2000:]}")
        if self._dead_s and self._dying is None:
            self._dying = threading.Thread(target=self._die_later, daemon=True)
            self._dying.start()

    def kill(self) -> None:
        """By SIGKILL: what it was doing is not finished."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def die_for(self, seconds: float) -> None:
        """Be dead that long, then be there again."""
        self.kill()
        time.sleep(seconds)
        self.start()

    def _die_later(self) -> None:
        time.sleep(self._dead_after_s)
        self.die_for(self._dead_s)

    def stop(self) -> None:
        if self._dying is not None:
            self._dying.join(self._dead_after_s + self._dead_s + _START_S)
        self.kill()

    def __enter__(self) -> Orchestrator:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # the platform's side

    def submit(self, job: Json) -> Json:
        return self.ask("POST", "/runs", {"owner": OWNER, "release_ref": RELEASE, **job})

    def cancel(self, run_id: str, reason: str = "the platform asked for it") -> None:
        self.ask("POST", f"/runs/{run_id}/cancel", {"reason": reason})

    def state(self, run_id: str) -> Json:
        """All that it knows of the run."""
        return self.ask("GET", f"/runs/{run_id}")

    def ask(self, method: str, path: str, body: Json | None = None) -> Any:
        """The answer's document; None where it has none. Raises urllib.error.HTTPError."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self._operator}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", data=data, headers=headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# what runs in the process of the server

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Faults:
    """In front of the app: fails at random for workers, never for the platform."""

    def __init__(self, app: App, rate: float, seed: int) -> None:
        self._app, self._rate, self._rng = app, rate, random.Random(seed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", ""))
        is_worker = path.count("/") >= 3 and not path.endswith("/cancel")
        if scope["type"] != "http" or not is_worker or self._rng.random() >= self._rate:
            await self._app(scope, receive, send)
            return
        kind = self._rng.choice(["away", "unanswered", "cut"])
        if kind == "cut" and scope["method"] == "HEAD":
            kind = "away"  # without a body there is nothing to cut: it would be a whole answer that makes no sense
        if kind == "unanswered":
            await self._app(scope, receive, _nowhere)
        if kind == "cut":
            await self._app(scope, _cut(receive, self._rng.randrange(1 << 18)), _nowhere)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
            await send({"type": "http.response.body", "body": b"{", "more_body": False})  # and hangs up
            return
        headers = [(b"content-length", b"0"), (b"retry-after", b"0")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


async def _nowhere(message: MutableMapping[str, Any]) -> None:
    """An answer that nobody gets."""


def _cut(receive: Receive, size_bytes: int) -> Receive:
    """As `receive`, but the client is gone after so many bytes of the body."""
    left = size_bytes

    async def cut() -> MutableMapping[str, Any]:
        nonlocal left
        message = await receive()
        if message["type"] != "http.request":
            return message
        left -= len(message.get("body", b""))
        return message if left > 0 else {"type": "http.disconnect"}

    return cut


def _serve() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--public-key", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ttl", type=float, required=True)
    parser.add_argument("--fail-rate", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--most-bytes", type=int, required=True)
    given = parser.parse_args()
    import uvicorn

    app = example("app").create_app(given.folder, given.public_key, ttl_s=given.ttl, most_bytes=given.most_bytes)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            os.write(1, b"ready\n")

    faulty = Faults(app, given.fail_rate, given.seed)
    Server(uvicorn.Config(faulty, host="127.0.0.1", port=given.port, log_level="warning", lifespan="off")).run()


if __name__ == "__main__":
    _serve()
