"""Ray: one Ray job that starts the door, by the cluster's HTTP interface for jobs; no package of Ray's is needed here.

    POST /api/jobs/            submission_id is the job's id: what was submitted twice is refused
    GET  /api/jobs/ID          PENDING, RUNNING, then SUCCEEDED, FAILED or STOPPED
    POST /api/jobs/ID/stop     SIGTERM to the door, SIGKILL after the grace

The engine id is the job's address, http://HOST:PORT/api/jobs/ID; its page with logs is under the same host. Ray starts
the door once, on one machine, with `python` of its own: what it starts again, `--max-restarts` of the door does. A
cluster that asks for a token gets it from RAY_AUTH_TOKEN, by https or on this machine only, and only where the caller
has said that it is: an engine id comes from a file.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import shlex
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import IO, Any, Literal
from urllib.parse import quote, urlsplit

from trn.errors import EngineError, UsageError
from trn.launch.engine import Engine, Prepared, Request, Seen

__all__ = ["ADDRESS", "RayEngine"]

ADDRESS = "http://127.0.0.1:8265"
"""Where a cluster on this machine answers, if nothing else is said."""

_JOBS = "/api/jobs/"
_ASKED_S = 30.0
_MOST_BYTES = 4_000_000
_SPARE_S = 30
_LOOPBACK = frozenset(("127.0.0.1", "localhost", "::1"))
_STATES: dict[str, Literal["queued", "running", "ended", "cancelled"]] = {
    "PENDING": "queued",
    "RUNNING": "running",
    "SUCCEEDED": "ended",
    "FAILED": "ended",
    "STOPPED": "cancelled",
}


class RayEngine(Engine):
    """Asks the cluster at `address`; for `poll`, `cancel` and `signal` the engine id says which one."""

    def __init__(self, address: str = ADDRESS, *, environ: Mapping[str, str] | None = None) -> None:
        self._address = address
        self._environ = os.environ if environ is None else environ

    def prepare(self, request: Request) -> Prepared:
        if request.nodes > 1:
            raise UsageError(
                "a Ray job starts on one machine.",
                where="--nnodes",
                hint="Give --nproc for several processes there, or another --launcher for several machines.",
            )
        arguments = ["python", "-u", "-P", "-m", "trn", *request.arguments]
        arguments += ["--nproc", str(request.nproc)] if request.nproc else []
        arguments += ["--max-restarts", str(request.max_restarts)] if request.max_restarts else []
        engine_id = f"{_base(self._address)}{_JOBS}{request.job_id}"
        variables = {
            "TRN_LAUNCHER": "ray",
            "TRN_JOB_ID": request.job_id,
            "TRN_ENGINE_ID": engine_id,
            # Ray's own 3 s are too few for a step and a checkpoint
            "RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(request.grace_s) + _SPARE_S),
        }
        body: dict[str, Any] = {
            "submission_id": request.job_id,
            "entrypoint": f"cd {shlex.quote(request.cwd)} && exec {shlex.join(arguments)}",
            "runtime_env": {"env_vars": variables},
            "metadata": {"trn_run": request.run_id},
        }
        if request.cpus:
            body["entrypoint_num_cpus"] = request.cpus
        if request.devices:
            body["entrypoint_num_gpus"] = request.devices
        return Prepared(request.job_id, json.dumps(body, indent=2) + "\n")

    def submit(self, prepared: Prepared) -> str:
        url = f"{_base(self._address)}{_JOBS}"
        self._ask("POST", url, prepared.text.encode())
        return f"{url}{prepared.name}"

    def poll(self, engine_id: str) -> Seen:
        try:
            job = self._ask("GET", _checked(engine_id))
        except _NotFound:
            return Seen("gone")
        status = str(job.get("status"))
        code, message = job.get("driver_exit_code"), job.get("message")
        reason = f"{status}: {message}" if isinstance(message, str) and message else status
        if status not in _STATES:
            raise EngineError(f"expected the state of a job, found {status!r}.", where=engine_id)
        return Seen(_STATES[status], _exit_code(code), reason)

    def cancel(self, engine_id: str) -> None:
        try:
            self._ask("POST", f"{_checked(engine_id)}/stop", b"")
        except _NotFound:
            return

    def signal(self, engine_id: str, number: int) -> None:
        if number != signal.SIGTERM:
            raise EngineError(f"Ray passes on no signal {number}.", where=engine_id, hint="Send SIGTERM.")
        self.cancel(engine_id)

    def _ask(self, method: str, url: str, body: bytes | None = None) -> dict[str, Any]:
        """Ray's answer. Raises EngineError; _NotFound for a job that it does not know."""
        request = urllib.request.Request(url, data=body, method=method, headers={"Content-Type": "application/json"})
        if token := self._environ.get("RAY_AUTH_TOKEN"):
            request.add_unredirected_header("Authorization", f"Bearer {self._for_host(token, url)}")
        try:
            with _OPENER.open(request, timeout=_ASKED_S) as answer:
                said = _read(answer)
        except urllib.error.HTTPError as error:
            with error:
                text = _last_line(_read(error))
            if error.code == 404:
                raise _NotFound(f"Ray knows no such job: {text}", where=url) from error
            raise EngineError(f"Ray refused ({error.code}): {text}", where=url) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise EngineError(
                f"Ray does not answer: {reason}.", where=url, hint="Say where it is with --ray-address."
            ) from error
        try:
            found = json.loads(said)
        except ValueError as error:
            raise EngineError(
                "expected JSON from Ray's interface for jobs, found something else.", where=url
            ) from error
        return found if isinstance(found, dict) else {}

    def _for_host(self, token: str, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
            raise EngineError(
                "a token is not sent in the clear.", where=url, hint="Give an https address, or a tunnel."
            )
        known = {urlsplit(one).netloc for one in (self._address, self._environ.get("RAY_API_SERVER_ADDRESS", ""))}
        if parts.netloc not in known:
            raise EngineError(
                "a token is not sent where a job's record says, but where you do.",
                where=url,
                hint="Set RAY_API_SERVER_ADDRESS to the cluster's address.",
            )
        return token


class _NotFound(EngineError):
    pass


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token and a job go to the address that was given, and nowhere else."""

    def redirect_request(self, *args: Any) -> None:
        return None


# without the proxies of the environment: a cluster is named by an address of its own network
_OPENER = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))


def _base(address: str) -> str:
    """`http://HOST:PORT`. Raises UsageError for anything more."""
    found = ""
    with contextlib.suppress(ValueError):  # an IPv6 address that is none, or a port
        parts = urlsplit(address)
        found = f", found {parts.scheme or 'no scheme'}://{parts.hostname}"
        is_plain = address.isascii() and address.isprintable() and " " not in address
        is_more = parts.query or parts.fragment or parts.username is not None or parts.port == 0
        if is_plain and parts.scheme in ("http", "https") and parts.hostname and not is_more:
            return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    raise UsageError(
        f"expected http://HOST:PORT of Ray's dashboard{found}.",
        where="--ray-address",
        hint="A token is read from RAY_AUTH_TOKEN.",
    )


def _checked(engine_id: str) -> str:
    """The address of a job; the store could have been written by anybody."""
    base, found, job = engine_id.rpartition(_JOBS)
    with contextlib.suppress(UsageError):
        if found and "/" not in job and engine_id == f"{_base(base)}{_JOBS}{quote(job)}":
            return engine_id
    raise EngineError(f"expected the address of a job, found {engine_id[:80]!r}.", where="Ray")


def _read(answer: IO[bytes]) -> bytes:
    """What was answered, or its beginning. Raises TimeoutError for one that comes drop by drop."""
    said, deadline_s = b"", time.monotonic() + _ASKED_S
    while len(said) < _MOST_BYTES and (part := answer.read1(65536)):  # type: ignore[attr-defined]  # of a buffer
        said += part
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no end of its answer within {_ASKED_S:g} s")
    return said


def _exit_code(code: object) -> int | None:
    """As a shell has it: a signal is negative where Ray tells of one."""
    if not isinstance(code, int) or isinstance(code, bool):
        return None
    return code if code >= 0 else 128 - code


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else "without a word"
