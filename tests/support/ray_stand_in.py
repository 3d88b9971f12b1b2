"""A stand-in for the server of Ray's jobs: the five requests that trn makes, answered as Ray 2.60 answers them.

It is a real HTTP server on the loopback, and what is submitted really runs, by `sh -c`, with its variables. It queues
nothing and knows no resources. `tests/launch/test_ray_engine.py` runs against a real cluster too, see there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = ["StandIn", "ray_stand_in"]


class StandIn(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = token
        self.submitted: dict[str, dict[str, Any]] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.stopped: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def submit(self, body: dict[str, Any]) -> None:
        name = body["submission_id"]
        self.submitted[name] = body
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environ = {**os.environ, "PATH": path, **body["runtime_env"]["env_vars"]}
        command = ["sh", "-c", body["entrypoint"]]
        self.processes[name] = subprocess.Popen(
            command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def details(self, name: str) -> dict[str, Any]:
        code = self.processes[name].poll()
        status, message = "RUNNING", "Job is currently running."
        if name in self.stopped:
            status, message = "STOPPED", "Job was intentionally stopped."
        elif code is not None:
            status = "SUCCEEDED" if code == 0 else "FAILED"
            message = (
                "Job finished successfully." if code == 0 else f"Job entrypoint command failed with exit code {code}"
            )
        return {
            "type": "SUBMISSION",
            "submission_id": name,
            "status": status,
            "message": message,
            "driver_exit_code": code,
        }


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def _answer(self, body: bytes) -> None:
        server = self.server
        if server.token and self.headers.get("Authorization") != f"Bearer {server.token}":
            return self._send(401, "Unauthorized: Missing authentication token")
        parts = self.path.removeprefix("/api/jobs/").split("/")
        if not self.path.startswith("/api/jobs/"):
            return self._send(404, "404: Not Found")
        if parts == [""]:
            return self._submit(json.loads(body))
        if parts[0] not in server.submitted:
            return self._send(404, f"Job {parts[0]} does not exist")
        if parts[1:] == ["stop"]:
            if server.processes[parts[0]].poll() is None:
                server.stopped.add(parts[0])
                server.processes[parts[0]].send_signal(signal.SIGTERM)
            return self._send(200, {"stopped": True})
        return self._send(200, server.details(parts[0]))

    def _submit(self, body: dict[str, Any]) -> None:
        name = body["submission_id"]
        if name in self.server.submitted:
            return self._send(
                500, f"Traceback (most recent call last):\n  ...\nValueError: Job with submission_id {name} exists"
            )
        self.server.submit(body)
        return self._send(200, {"job_id": name, "submission_id": name})

    def _send(self, status: int, answer: object) -> None:
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the tests look at what was asked."""


@contextlib.contextmanager
def ray_stand_in(token: str = "") -> Iterator[StandIn]:
    with StandIn(token) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            for process in server.processes.values():
                if process.poll() is None:
                    process.kill()
                process.wait()
