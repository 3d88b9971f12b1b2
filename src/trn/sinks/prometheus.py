"""A page of numbers for Prometheus, on loopback: how the run stands at the moment of asking.

    GET /metrics ──> last lines of the metrics files, counts of events, the lock, the standings of all targets

What is shown is read from the run's folder when somebody asks, so nothing that is written here is kept, and nothing can
be out of date. The page is there for as long as the relay is. Format: Prometheus text exposition, version 0.0.4.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trn.files import last_line
from trn.records import JsonError, from_json
from trn.sinks.curves import CURVE_FILES, points, run_state
from trn.sinks.position import standings
from trn.sinks.reader import EventReader
from trn.sinks.sink import Curve, CurveSink, Json, RunFacts, Unreachable
from trn.sinks.targets import Target

__all__ = ["PrometheusSink", "open_prometheus", "page"]

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LONGEST_REQUEST_S = 5.0
_AT_ONCE = 8

_OF_STEP: Mapping[str, tuple[str, str, str, float]] = {
    "step": ("trn_step", "gauge", "The last step that was made.", 1.0),
    "epoch": ("trn_epoch", "gauge", "The epoch of that step, from 0.", 1.0),
    "train_loss": ("trn_train_loss", "gauge", "Mean loss of the last step.", 1.0),
    "grad_norm": ("trn_grad_norm", "gauge", "Gradient norm of the last step, before clipping.", 1.0),
    "lr": ("trn_learning_rate", "gauge", "Learning rate of the last step.", 1.0),
    "tokens_per_sec": ("trn_tokens_per_second", "gauge", "Rate of the last step.", 1.0),
    "samples_per_sec": ("trn_samples_per_second", "gauge", "Rate of the last step.", 1.0),
    "gpu_util_pct": ("trn_accelerator_utilisation_ratio", "gauge", "Of the accelerator, in the last step.", 0.01),
    "wall_ms": ("trn_step_seconds", "gauge", "How long the last step took.", 0.001),
    "data_wait_ms": ("trn_data_wait_seconds", "gauge", "How long the last step waited for its rows.", 0.001),
    "tokens_seen": ("trn_tokens_seen", "gauge", "Tokens that the weights have seen; goes back with a resume.", 1.0),
}
"""Key of a metrics line -> name, type, help, factor; all other numbers are a `trn_metric`."""


def open_prometheus(target: Target, run: RunFacts) -> CurveSink:
    """A sink that serves `http://HOST:PORT/metrics` while it is open."""
    parts = urlsplit(target.url)
    return PrometheusSink(parts.hostname or "127.0.0.1", parts.port or 0, run)


class PrometheusSink(CurveSink):
    """Serves the page from threads of its own; what is sent to it, it finds in the files."""

    def __init__(self, host: str, port: int, run: RunFacts) -> None:
        self._host, self._port, self._run = host, port, run
        self._server: _Server | None = None

    @property
    def address(self) -> str:
        """Where it serves; "" before `begin`."""
        return f"http://{_netloc(self._host, self._server.server_port)}/metrics" if self._server else ""

    def begin(self, from_step: int) -> None:
        if self._server is not None:
            return
        try:
            self._server = _Server(self._host, self._port, self._run)
        except OSError as error:
            raise Unreachable(f"{_netloc(self._host, self._port)}: {error.strerror or error}") from error
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="trn-prometheus", daemon=True).start()

    def write(self, kind: Curve, lines: Sequence[Json]) -> None: ...
    def cut(self, step: int) -> None: ...

    def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16

    def __init__(self, host: str, port: int, run: RunFacts) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        self.hosts = {_netloc(name, self.server_port) for name in ("127.0.0.1", "localhost", "::1", host)}
        self._run = run
        self._places = threading.Semaphore(_AT_ONCE)
        self._reading = threading.Lock()
        self._events = EventReader(run.reports / "events.jsonl")
        self._counts: Counter[str] = Counter()
        self._max_steps: int | None = None

    def read_page(self) -> bytes:
        """The page as of now. Events are counted on from where the last reading ended."""
        with self._reading:
            while events := self._events.read(1024):
                self._counts.update(str(event.get("event")) for event in events)
                for event in events:
                    if event.get("event") == "started" and isinstance(event.get("max_steps"), int):
                        self._max_steps = event["max_steps"]
            return page(self._run, self._counts, self._max_steps)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)  # a reader that asks faster than it is answered

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that hangs up is nobody's trouble."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _LONGEST_REQUEST_S
    server: _Server

    def do_GET(self) -> None:
        if self.headers.get("Host") not in self.server.hosts:
            # a page of somebody else's, in a browser on this machine, that calls itself by another name
            self._answer(403, "text/plain", b"not for this host\n")
        elif urlsplit(self.path).path != "/metrics":
            self._answer(404, "text/plain", b"only /metrics is here\n")
        else:
            self._answer(200, _CONTENT_TYPE, self.server.read_page())

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "trn"

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody is told who asks."""


def page(run: RunFacts, event_counts: Mapping[str, int], max_steps: int | None) -> bytes:
    """How the run stands, as Prometheus reads it; a value that is not known is left out."""
    family = _Families({"run_id": run.run_id})
    trainer = (run.plan.get("trainer") or {}).get("name")
    info = {"job_id": run.job_id, "trainer": trainer, "device": run.plan.get("device")}
    family.add("trn_run_info", "gauge", "The run that this page is about.", 1, **info)
    family.add("trn_run_state", "gauge", "1 for the state that it is in.", 1, state=run_state(run.run_dir)[0])
    family.add("trn_max_steps", "gauge", "The budget.", max_steps)
    last: dict[Curve, Json] = {kind: _last(run.reports / name) for kind, name in CURVE_FILES.items()}
    for key, (name, kind, told, factor) in _OF_STEP.items():
        value = last["train"].get(key)
        family.add(name, kind, told, value if factor == 1.0 or value is None else value * factor)
    family.add("trn_val_step", "gauge", "The step of the last validation.", last["val"].get("step"))
    family.add("trn_val_loss", "gauge", "Loss of the last validation.", last["val"].get("val_loss"))
    own = {key: value for key, value in last["train"].items() if key not in _OF_STEP}
    others: dict[Curve, Json] = {"train": own, "val": last["val"]}
    for curve, line in others.items():
        for metric, value in points(curve, line).items():
            told = "The last value of every other curve, by its name."
            family.add("trn_metric", "gauge", told, value, curve=curve, metric=metric.partition("/")[2])
    with contextlib.suppress(OSError):
        changed_s = (run.reports / CURVE_FILES["train"]).stat().st_mtime
        family.add("trn_last_step_timestamp_seconds", "gauge", "When the last step was written.", changed_s)
    for event, count in sorted(event_counts.items()):
        family.add("trn_events_total", "counter", "Events of the run, over all its jobs.", count, event=event)
    for standing in standings(run.run_dir):
        target = standing.target
        family.add(
            "trn_sink_sent_total", "counter", "Events or lines that a target took.", standing.sent, target=target
        )
        family.add(
            "trn_sink_behind", "gauge", "Events or lines that it has not got yet.", standing.behind, target=target
        )
        family.add("trn_sink_dropped_total", "counter", "What it refused.", standing.dropped, target=target)
        is_failing = int(standing.failing_since is not None)
        family.add("trn_sink_failing", "gauge", "1 while it cannot be reached.", is_failing, target=target)
    return "".join(family.lines()).encode()


class _Families:
    """Samples by the name of their metric, each name with its type and help once."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = labels
        self._heads: dict[str, str] = {}
        self._samples: dict[str, list[str]] = {}

    def add(self, name: str, kind: str, told: str, value: float | int | None, /, **labels: str | None) -> None:
        """A sample; none where there is no value."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return
        self._heads.setdefault(name, f"# HELP {name} {told}\n# TYPE {name} {kind}\n")
        pairs = {**self._labels, **labels}.items()
        text = ",".join(f'{label}="{_escaped(of)}"' for label, of in pairs if of is not None)
        self._samples.setdefault(name, []).append(f"{name}{{{text}}} {value!r}\n")

    def lines(self) -> Iterable[str]:
        for name, head in self._heads.items():
            yield head
            yield from self._samples[name]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _last(path: Path) -> Json:
    """The last whole line of a metrics file; nothing where there is none."""
    try:
        value = from_json(last_line(path) or b"{}")
    except (OSError, JsonError):
        return {}
    return value if isinstance(value, dict) else {}


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
