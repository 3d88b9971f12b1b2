"""Ray's jobs by HTTP: a stand-in on the loopback, and a real cluster where TRN_RAY_ADDRESS names one.

The cluster is to run on this machine, with this installation's `python` first on its PATH.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from support.door import until
from support.job import write_job
from support.ray_stand_in import ray_stand_in
from trn.doors.at_engine import cancel_at_engine
from trn.errors import EngineError, UsageError
from trn.jobs import open_store
from trn.launch.engine import Request
from trn.launch.ray import RayEngine
from trn.records import new_job_id

TRN = [sys.executable, "-u", "-P", "-m", "trn"]
REAL = os.environ.get("TRN_RAY_ADDRESS")


def request(*arguments: str, **changes: Any) -> Request:
    values: dict[str, Any] = {
        "job_id": new_job_id(),
        "run_id": "demo",
        "arguments": arguments,
        "cwd": "/it's a folder",
        "grace_s": 30.0,
    }
    return Request(**{**values, **changes})


@pytest.fixture(params=["stand-in", *(["ray"] if REAL else [])])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "ray":
        assert REAL is not None
        yield REAL
    else:
        with ray_stand_in() as server:
            yield server.address


# what Ray is told


def test_the_entrypoint_is_quoted_for_a_shell_and_resources_are_asked_for() -> None:
    hostile = ["run", "--config", "/a b/it's $HOME`id`"]
    prepared = RayEngine("http://10.0.0.1:8265/").prepare(
        request(*hostile, job_id="job-1", cpus=4, devices=1, nproc=2, max_restarts=3)
    )
    body = json.loads(prepared.text)
    words = shlex.split(body["entrypoint"])
    assert words[:4] == ["cd", "/it's a folder", "&&", "exec"]
    assert words[9:] == [*hostile, "--nproc", "2", "--max-restarts", "3"]
    assert (body["submission_id"], body["entrypoint_num_cpus"], body["entrypoint_num_gpus"]) == ("job-1", 4, 1)
    variables = body["runtime_env"]["env_vars"]
    assert variables["TRN_ENGINE_ID"] == "http://10.0.0.1:8265/api/jobs/job-1"
    assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) == 60


def test_several_machines_are_refused() -> None:
    with pytest.raises(UsageError, match="one machine"):
        RayEngine().prepare(request("run", nodes=2))


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.1:8265", "http://me:secret@host", "ray://host:10001", "file:///etc/passwd", "http://[::1"),
        *("http://host:99999", "http://host:x", "http://a b", "http://a\nb", "http://"),
    ],
)
def test_an_address_that_is_none_is_refused_without_its_secret(address: str) -> None:
    with pytest.raises(UsageError, match="--ray-address") as caught:
        RayEngine(address).prepare(request("run"))
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


# what Ray answers


def test_a_silent_address_and_a_damaged_name_are_one_line() -> None:
    with pytest.raises(EngineError, match=r"does not answer.*--ray-address") as caught:
        RayEngine("http://127.0.0.1:9").submit(RayEngine("http://127.0.0.1:9").prepare(request("run")))
    assert "\n" not in str(caught.value)
    for name in (
        *("file:///etc/passwd", "http://127.0.0.1:1/api/jobs/a/stop", "http://127.0.0.1:1/x", "7"),
        *("http://[::1/api/jobs/a", "http://127.0.0.1:x/api/jobs/a", "http://127.0.0.1:1/api/jobs/a b"),
    ):
        with pytest.raises(EngineError, match="expected the address of a job"):
            RayEngine().poll(name)


def test_a_job_that_is_not_known_is_gone_and_one_id_is_taken_once(address: str, tmp_path: Path) -> None:
    engine = RayEngine(address)
    assert engine.poll(f"{address}/api/jobs/job-nobody").state == "gone"
    engine.cancel(f"{address}/api/jobs/job-nobody")
    prepared = engine.prepare(request("--version", cwd=str(tmp_path)))
    engine_id = engine.submit(prepared)
    with pytest.raises(EngineError, match="Ray refused"):
        engine.submit(prepared)
    until(lambda: engine.poll(engine_id).is_over, timeout_s=60)
    assert engine.poll(engine_id).exit_code == 0
    with pytest.raises(EngineError, match="passes on no signal"):
        engine.signal(engine_id, signal.SIGUSR1)


def test_the_exit_code_of_a_refused_command_is_seen(address: str, tmp_path: Path) -> None:
    engine = RayEngine(address)
    engine_id = engine.submit(engine.prepare(request("run", "--config", "missing.yaml", cwd=str(tmp_path))))
    until(lambda: engine.poll(engine_id).is_over, timeout_s=60)
    seen = engine.poll(engine_id)
    assert (seen.state, seen.exit_code) == ("ended", 2)
    assert seen.reason.startswith("FAILED: ")


def test_a_token_is_sent_where_the_caller_says_and_never_in_the_clear_elsewhere() -> None:
    environ = {"RAY_AUTH_TOKEN": "word"}
    with ray_stand_in(token="word") as server:
        name = f"{server.address}/api/jobs/job-nobody"
        assert RayEngine(server.address, environ=environ).poll(name).state == "gone"
        assert RayEngine(environ={**environ, "RAY_API_SERVER_ADDRESS": server.address}).poll(name).state == "gone"
        # the record of a job could name a port of somebody else's on this machine
        with pytest.raises(EngineError, match="where you do"):
            RayEngine(environ=environ).poll(name)
        with pytest.raises(EngineError, match="401") as caught:
            RayEngine(environ={}).poll(name)
        assert "word" not in str(caught.value)
    with pytest.raises(EngineError, match="not sent in the clear"):
        RayEngine(environ=environ).poll("http://192.0.2.1:8265/api/jobs/job-1")
    with pytest.raises(EngineError, match="where you do"):
        RayEngine(environ=environ).poll("https://192.0.2.1/api/jobs/job-1")


def test_a_redirect_is_not_followed() -> None:
    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(EngineError, match="302"):
            RayEngine().poll(f"http://127.0.0.1:{server.server_address[1]}/api/jobs/job-1")
        thread.join()


def test_an_answer_that_comes_drop_by_drop_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trn.launch.ray._ASKED_S", 0.3)

    class Dripping(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(200):
                    self.wfile.write(b" ")
                    time.sleep(0.05)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Dripping) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(EngineError, match=r"no end of its answer within 0\.3 s"):
            RayEngine().poll(f"http://127.0.0.1:{server.server_address[1]}/api/jobs/job-1")
        thread.join()


# a training


def run(runs_dir: Path, *arguments: str) -> Any:
    environ = {**os.environ, "TRN_RUNS_DIR": str(runs_dir)}
    done = subprocess.run(
        [*TRN, *arguments, "--json"], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_submitted_training_is_adopted_and_saved_when_ray_stops_it(address: str, tmp_path: Path) -> None:
    spec, runs = write_job(tmp_path / "a job", max_steps=100_000), tmp_path / "runs"
    told = run(runs, "run", "--config", str(spec), "--run-id", "demo", "--launcher", "ray", "--ray-address", address)
    assert told["engine_id"] == f"{address}/api/jobs/{told['job_id']}"
    with open_store(runs) as store:
        until(lambda: store.of_run("demo")[0].state == "running", timeout_s=90)
        found = run(runs, "status", "demo")
        assert (found["job_id"], found["engine"]["state"]) == (told["job_id"], "running")
        cancel_at_engine(store, store.of_run("demo")[0], now=True)
        until(lambda: store.of_run("demo")[0].state == "preempted", timeout_s=90)
    found = run(runs, "status", "demo")
    assert (found["outcome"]["status"], found["outcome"]["resumable"]) == ("preempted", True)
    until(lambda: RayEngine().poll(told["engine_id"]).state == "cancelled", timeout_s=30)
