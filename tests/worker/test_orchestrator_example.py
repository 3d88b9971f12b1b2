"""The reference orchestrator itself: who may ask, what is kept, and that the bytes are those that were sent."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import urllib.error
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from support.orchestrator import EXAMPLE, OWNER, RELEASE, Orchestrator, example
from support.sending import free_port, wait_for
from trn.transfer.client import Answer, Client, Refused, Unreachable

NUMBERS = count()
ROOT = EXAMPLE.parents[1]
TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {"Content-Type": "application/offset+octet-stream"}
MOST_BYTES = 1 << 20


@pytest.fixture(scope="module")
def orchestrator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orchestrator]:
    with Orchestrator(tmp_path_factory.mktemp("orchestrator"), most_bytes=MOST_BYTES) as started:
        yield started


class Worker:
    """Asks as a worker does, of one run that it has submitted itself."""

    def __init__(self, orchestrator: Orchestrator, run_id: str | None = None) -> None:
        self.orchestrator = orchestrator
        self.run_id = run_id or orchestrator.submit({"run_id": f"exp{next(NUMBERS)}"})["run_id"]
        self.base = f"{orchestrator.url}/runs/{self.run_id}"
        self.client = Client(orchestrator.token_file.read_text, frozenset({"127.0.0.1"}))

    def ask(self, method: str, path: str, body: Any = b"", **headers: str) -> Answer:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if not isinstance(body, bytes):
            body, given = json.dumps(body).encode(), {"Content-Type": "application/json", **given}
        url = path if path.startswith("http") else f"{self.base}/{path}"
        return self.client.request(method, url, body=body, headers=given)

    def refused(self, method: str, path: str, body: Any = b"", **headers: str) -> Refused:
        with pytest.raises(Refused) as caught:
            self.ask(method, path, body, **headers)
        return caught.value

    def create(self, data: bytes, *, name: str = "step-00000001.pt", place: str = "checkpoints", **more: str) -> Answer:
        told = {"run_id": self.run_id, "job_id": "job-1", "kind": "checkpoint", "name": name, "step": "1"}
        told |= {"sha256": hashlib.sha256(data).hexdigest(), **more}
        headers = {
            "Upload-Length": str(len(data)),
            "Upload-Metadata": metadata(told),
            "Idempotency-Key": name.strip() or "x",
        }
        return self.ask("POST", place, **TUS, **headers)

    def send(self, location: str, data: bytes, offset: int) -> Answer:
        return self.ask("PATCH", location, data, **TUS, **BYTES, **{"Upload-Offset": str(offset)})

    def look(self, location: str) -> Answer:
        return self.ask("HEAD", location, **TUS)

    def state(self) -> dict[str, Any]:
        return self.orchestrator.state(self.run_id)


def metadata(told: Mapping[str, str]) -> str:
    return ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in told.items())


def digest_of(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


@pytest.fixture
def worker(orchestrator: Orchestrator) -> Worker:
    return Worker(orchestrator)


def stored(orchestrator: Orchestrator) -> list[bytes]:
    return [path.read_bytes() for path in (orchestrator.folder / "uploads").glob("*.bytes")]


# who may ask


def test_without_a_token_every_route_but_health_is_unauthorized(worker: Worker) -> None:
    app = example("app").create_app(worker.orchestrator.folder / "other", worker.orchestrator.public_key_file)
    routes = [(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods]
    assert len(routes) == 14
    bare = Client(None, frozenset())
    for method, path in routes:
        url = worker.orchestrator.url + path.replace("{run_id}", worker.run_id).replace("{place}", "samples")
        if path == "/health":
            assert bare.request(method, url).document() == {"ok": True}
            continue
        for client in (bare, Client(lambda: "a.b.c", frozenset({"127.0.0.1"}))):
            with pytest.raises(Refused) as caught:
                client.request(method, url, headers={**TUS, "Content-Type": "application/json"}, body=b"{}")
            assert caught.value.status == 401, (method, path)


def test_a_token_is_for_its_scope_its_run_and_its_owner(worker: Worker) -> None:
    orchestrator, claim = worker.orchestrator, {"worker_id": "w", "job_id": "j"}

    def status_with(token: str, method: str, path: str, body: Any) -> int:
        worker.client = Client(lambda: token, frozenset({"127.0.0.1"}))
        return worker.refused(method, path, body).status

    assert status_with(orchestrator.mint(scope="trn.operate"), "POST", "lease", claim) == 403
    assert status_with(orchestrator.mint(run_id="another"), "POST", "lease", claim) == 403
    assert status_with(orchestrator.mint(owner="other"), "POST", "lease", claim) == 404
    assert status_with(orchestrator.mint(release="acme/table:v2"), "POST", "lease", claim) == 403
    assert status_with(orchestrator.mint(release=""), "POST", "lease", claim) == 403
    assert status_with(orchestrator.mint(hours=-1.0), "POST", "lease", claim) == 401
    assert status_with(orchestrator.mint(), "POST", f"{orchestrator.url}/runs", {"run_id": "x"}) == 403
    assert status_with(orchestrator.mint(scope="trn.operate", owner="other"), "POST", "cancel", {"reason": "x"}) == 404


def test_the_fence_is_asked_in_the_thread_that_acts_so_that_nothing_comes_between(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an older worker's request, let through, could be done after a newer one's claim."""
    asked: list[threading.Thread] = []
    app = example("app").create_app(tmp_path, worker.orchestrator.public_key_file)
    runs = example("runs").Runs
    monkeypatch.setattr(runs, "get", lambda *_: example("runs").Run("a", OWNER, {"release_ref": RELEASE}, 0.0))
    monkeypatch.setattr(runs, "fence", lambda *_: asked.append(threading.current_thread()))
    monkeypatch.setattr(runs, "add_lines", lambda *_: asked.append(threading.current_thread()))
    body = json.dumps({"run_id": "a", "job_id": "job-1", "lines": []}).encode()
    token = worker.orchestrator.token_file.read_text()
    head = [(b"authorization", f"Bearer {token}".encode()), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/runs/a/metrics", "query_string": b"", "headers": head}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: dict[str, Any]) -> None:
        assert message.get("status", 202) == 202

    asyncio.run(app(scope, receive, send))
    assert asked == [threading.current_thread()] * 2


def test_the_page_for_implementers_names_every_request_claim_and_header() -> None:
    page = (ROOT / "docs/orchestrator.md").read_text()
    for path in ("lease", "lease/{lease_id}", "metrics", "checkpoints", "samples", "terminal"):
        assert f"O/runs/{{run_id}}/{path}`" in page
    for word in ("owner", "release", "scope", "exp", "run_id", "aud", "nbf", "iat"):
        assert re.search(rf"^\|.*`{word}`.*\|", page, re.MULTILINE), word
    for name in ("Lease-Id", "Lease-Generation", "Idempotency-Key", "Upload-Offset", "Repr-Digest", "Upload-Ref"):
        assert name in page


# the queue


def test_jobs_come_out_of_the_queue_in_their_order_and_once(tmp_path: Path) -> None:
    with Orchestrator(tmp_path) as orchestrator:
        jobs = [orchestrator.submit({"run_id": f"exp{number}", "max_steps": 3}) for number in range(3)]
        assert [job["state"] for job in jobs] == ["queued"] * 3
        assert orchestrator.submit({"run_id": "exp0", "max_steps": 3})["state"] == "queued"  # the same, once more
        with pytest.raises(urllib.error.HTTPError, match="409"):
            orchestrator.submit({"run_id": "exp0", "max_steps": 4})
        orchestrator.cancel("exp1")
        assert orchestrator.state("exp1")["state"] == "cancelled"
        found = [orchestrator.ask("POST", "/next") for _ in range(3)]
        assert [one and one["run_id"] for one in found] == ["exp0", "exp2", None]
        assert found[0] == {"run_id": "exp0", "max_steps": 3, "owner": OWNER, "release_ref": RELEASE}
        worker = Worker(orchestrator, "exp0")
        for job_id, status, again in (("job-1", "preempted", "exp0"), ("job-2", "completed", None)):
            lease = worker.ask("POST", "lease", {"worker_id": "w", "job_id": job_id}).document()
            held = {"Lease-Id": lease["lease_id"], "Lease-Generation": str(lease["generation"])}
            assert worker.state()["state"] == "running"
            ending = {"run_id": "exp0", "job_id": job_id, "status": status, "exit_code": 0}
            worker.ask("POST", "terminal", ending, **held)
            worker.ask("DELETE", f"lease/{lease['lease_id']}", **held)
            assert worker.state()["state"] == status
            job = orchestrator.ask("POST", "/next")
            assert (job and job["run_id"]) == again


def test_a_job_that_nobody_claims_is_handed_out_again(tmp_path: Path) -> None:
    runs = example("runs").Runs(tmp_path, ttl_s=30.0)
    run = runs.submit({"run_id": "exp", "owner": OWNER}, OWNER)
    assert (runs.next(OWNER), run.state) == (run, "assigned")
    assert runs.next(OWNER) is None
    run.assigned_until_s -= 31.0  # its worker was refused by itself, and told nobody
    assert run.state == "queued"
    assert runs.next(OWNER) is run
    assert example("runs").Runs(tmp_path).next(OWNER).run_id == "exp", "nor does a restart forget it"


@pytest.mark.parametrize("run_id", ["../x", "", ".x", "a/b", "x" * 65, None, 7, "ü", "a\n"])
def test_an_id_that_is_no_name_is_refused(orchestrator: Orchestrator, run_id: Any) -> None:
    with pytest.raises(urllib.error.HTTPError, match="422"):
        orchestrator.submit({"run_id": run_id})


@pytest.mark.parametrize("text", ['{"run_id": "poison", "x": NaN}', '{"run_id": "poison", "x": "\\ud800"}'])
def test_a_job_that_could_never_be_told_again_does_not_enter_the_queue(orchestrator: Orchestrator, text: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="422"):
        orchestrator.submit(json.loads(text))


# what is told of a run


def test_step_lines_are_kept_once_and_cut_on_request(worker: Worker) -> None:
    def tell(first: int, last: int, key: str, cut: int | None = None, loss: float = 1.0) -> None:
        lines = [{"step": step, "train_loss": loss} for step in range(first, last + 1)]
        body = {"run_id": worker.run_id, "job_id": "job-1", "lines": lines, "cut_above_step": cut}
        worker.ask("POST", "metrics", body, **{"Idempotency-Key": key})

    tell(1, 5, "a")
    tell(6, 9, "b")
    tell(6, 9, "b")
    assert [line["step"] for line in worker.state()["lines"]] == [*range(1, 10)]
    tell(7, 8, "c", cut=6, loss=2.0)
    tell(1, 5, "a", cut=0)  # an answer that was lost, long ago
    lines = [(line["step"], line["train_loss"]) for line in worker.state()["lines"]]
    assert lines == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 1.0), (6, 1.0), (7, 2.0), (8, 2.0)]
    file = worker.orchestrator.folder / "runs" / worker.run_id / "metrics.jsonl"
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [*range(1, 9)]


def test_what_is_no_report_is_refused_and_changes_nothing(worker: Worker) -> None:
    head = {"run_id": worker.run_id, "job_id": "job-1"}
    for body in (
        {}, [], 7, {**head, "lines": [{}]}, {**head, "lines": [{"step": "1"}]}, {**head, "lines": [{"step": True}]},
        {**head, "lines": [{"step": -1}]}, {**head, "lines": [], "more": 1}, {**head, "run_id": "other", "lines": []},
        {**head, "lines": [], "cut_above_step": -1},
    ):  # fmt: skip
        assert worker.refused("POST", "metrics", body).status == 422, body
    junk = json.dumps({**head, "lines": [{"step": 1, "train_loss": float("nan")}]}).encode()
    assert worker.refused("POST", "metrics", junk, Content_Type="application/json").status == 422
    ending = {**head, "status": "failed", "exit_code": 1, "outcome": {"loss": float("nan")}}
    assert worker.refused("POST", "terminal", ending).status == 422
    assert worker.state()["terminals"] == {}
    assert worker.refused("POST", "metrics", b"junk", Content_Type="application/json").status == 422
    assert worker.refused("POST", "metrics", b"[" * 3_000_000, Content_Type="application/json").status == 400
    assert worker.refused("POST", "metrics", b" " * (9 << 20), Content_Type="application/json").status == 413
    assert worker.state()["lines"] == []


def test_a_body_of_unknown_length_is_refused_before_it_is_read(worker: Worker) -> None:
    with socket.create_connection(("127.0.0.1", worker.orchestrator.port), timeout=10) as connection:
        head = f"POST /runs/{worker.run_id}/metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        connection.sendall(f"{head}Authorization: Bearer {worker.orchestrator.token_file.read_text()}\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 411"


def test_a_job_ends_once_however_often_it_is_told(worker: Worker) -> None:
    def end(job_id: str, status: str, exit_code: int) -> dict[str, Any]:
        body = {"run_id": worker.run_id, "job_id": job_id, "status": status, "exit_code": exit_code, "step": 3}
        return worker.ask("POST", "terminal", body, **{"Idempotency-Key": job_id}).document()

    assert end("job-1", "preempted", 75)["status"] == "preempted"
    assert end("job-1", "completed", 0)["status"] == "preempted"
    assert end("job-2", "completed", 0)["status"] == "completed"
    terminals = worker.state()["terminals"]
    assert {job_id: one["exit_code"] for job_id, one in terminals.items()} == {"job-1": 75, "job-2": 0}
    assert worker.state()["state"] == "completed"
    wrong = {"run_id": worker.run_id, "job_id": "job-3", "status": "failed", "exit_code": 1}
    assert worker.refused("POST", "terminal", wrong, **{"Idempotency-Key": "job-4"}).status == 422


# uploads


def test_bytes_arrive_in_pieces_and_the_answer_says_their_digest(worker: Worker) -> None:
    data = os.urandom(300_000)
    made = worker.create(data)
    assert made.status == 201
    location = made.headers["Location"]
    assert location.startswith(worker.orchestrator.url)
    first = worker.send(location, data[:100_000], 0)
    assert (first.status, first.headers["Upload-Offset"], "Repr-Digest" in first.headers) == (204, "100000", False)
    assert worker.look(location).headers["Upload-Offset"] == "100000"
    [artifact] = worker.state()["artifacts"]
    assert not artifact["is_whole"]
    last = worker.send(location, data[100_000:], 100_000)
    for answer in (last, worker.look(location)):
        assert answer.headers["Upload-Offset"] == answer.headers["Upload-Length"] == "300000"
        assert answer.headers["Repr-Digest"] == digest_of(data)
        assert answer.headers["Upload-Ref"]
    [artifact] = worker.state()["artifacts"]
    assert artifact["is_whole"]
    assert artifact["received_bytes"] == 300_000
    assert data in stored(worker.orchestrator)


def test_the_same_key_is_the_same_place_and_may_be_made_final(worker: Worker) -> None:
    data = b"weights" * 1000
    location = worker.create(data).headers["Location"]
    worker.send(location, data, 0)
    again = worker.create(data, final="true")
    assert (again.status, again.headers["Location"]) == (200, location)
    assert (again.headers["Upload-Offset"], again.headers["Repr-Digest"]) == ("7000", digest_of(data))
    [artifact] = worker.state()["artifacts"]
    assert (artifact["is_final"], artifact["creations"], artifact["received_bytes"]) == (True, 2, 7000)
    with pytest.raises(Refused) as caught:
        worker.create(b"other", name="step-00000001.pt")
    assert caught.value.status == 422


def test_bytes_that_are_not_the_announced_ones_are_told_and_thrown_away(worker: Worker) -> None:
    data = b"a" * 5000
    location = worker.create(data).headers["Location"]
    wrong = worker.send(location, b"b" * 5000, 0)
    assert wrong.headers["Repr-Digest"] == digest_of(b"b" * 5000)
    assert worker.look(location).headers["Upload-Offset"] == "0"
    right = worker.send(location, data, 0)
    assert right.headers["Repr-Digest"] == digest_of(data)
    [artifact] = worker.state()["artifacts"]
    assert artifact["received_bytes"] == 10_000


def test_an_empty_file_is_whole_at_once(worker: Worker) -> None:
    made = worker.create(b"", name="empty")
    assert made.headers["Repr-Digest"] == digest_of(b"")


def test_what_a_connection_that_ends_has_brought_is_kept(worker: Worker) -> None:
    data = os.urandom(500_000)
    location = worker.create(data).headers["Location"]
    with socket.create_connection(("127.0.0.1", worker.orchestrator.port), timeout=10) as connection:
        head = [
            f"PATCH {location.removeprefix(worker.orchestrator.url)} HTTP/1.1",
            "Host: x",
            f"Authorization: Bearer {worker.orchestrator.token_file.read_text()}",
            "Tus-Resumable: 1.0.0",
            "Content-Type: application/offset+octet-stream",
            "Upload-Offset: 0",
            "Content-Length: 500000",
        ]
        connection.sendall("\r\n".join([*head, "", ""]).encode() + data[:200_000])
        wait_for(lambda: int(worker.look(location).headers["Upload-Offset"]) == 200_000, "what was sent")
    last = worker.send(location, data[200_000:], 200_000)
    assert last.headers["Repr-Digest"] == digest_of(data)
    [artifact] = worker.state()["artifacts"]
    assert artifact["received_bytes"] == 500_000


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"kind": "sample"}, 400),
        ({"kind": "../x"}, 400),
        ({"run_id": "other"}, 400),
        ({"sha256": "0"}, 400),
        ({"step": "-1"}, 400),
        ({"step": "\u0663"}, 400),
        ({"name": "a\n"}, 400),
        ({"name": ""}, 400),
        ({"color": "red"}, 400),
    ],
)
def test_metadata_that_does_not_fit_is_refused(worker: Worker, changed: dict[str, str], status: int) -> None:
    with pytest.raises(Refused) as caught:
        worker.create(b"data", **changed)
    assert caught.value.status == status
    assert worker.state()["artifacts"] == []


def test_a_name_from_outside_is_part_of_no_path(worker: Worker) -> None:
    location = worker.create(b"data", name="../../../escaped").headers["Location"]
    worker.send(location, b"data", 0)
    root = worker.orchestrator.folder.parent
    assert not [path for path in root.parent.rglob("escaped*") if path.is_file()]
    assert worker.state()["artifacts"][0]["name"] == "../../../escaped"


def test_a_request_that_is_not_tus_is_refused(worker: Worker) -> None:
    data = b"data"
    location = worker.create(data).headers["Location"]
    told = worker.refused("HEAD", location)
    assert (told.status, told.answer and told.answer.headers["Tus-Version"]) == (412, "1.0.0")
    assert worker.refused("POST", "checkpoints", **TUS).status == 400
    assert worker.refused("PATCH", location, data, **TUS, **{"Upload-Offset": "0"}).status == 415
    assert worker.refused("PATCH", location, data, **TUS, **BYTES).status == 400
    moved = worker.refused("PATCH", location, data, **TUS, **BYTES, **{"Upload-Offset": "3"})
    assert (moved.status, moved.answer and moved.answer.headers["Upload-Offset"]) == (409, "0")
    assert worker.refused("PATCH", location, b"too much", **TUS, **BYTES, **{"Upload-Offset": "0"}).status == 413
    assert worker.refused("HEAD", "uploads/0000", **TUS).status == 404
    assert worker.refused("HEAD", "uploads/..%2Fx", **TUS).status in (404, 405)
    other = Worker(worker.orchestrator)
    assert other.refused("HEAD", f"uploads/{location.rpartition('/')[2]}", **TUS).status == 404
    with pytest.raises(Refused) as caught:
        worker.create(b"x" * (MOST_BYTES + 1), name="big")
    assert caught.value.status == 413


@pytest.mark.slow
def test_all_that_was_answered_is_there_after_a_kill(tmp_path: Path) -> None:
    data = os.urandom(200_000)
    with Orchestrator(tmp_path) as orchestrator:
        worker = Worker(orchestrator)
        lease = worker.ask("POST", "lease", {"worker_id": "w", "job_id": "job-1"}).document()
        held = {"Lease-Id": lease["lease_id"], "Lease-Generation": "1"}
        lines = [{"step": 1, "train_loss": 0.5}]
        body = {"run_id": worker.run_id, "job_id": "job-1", "lines": lines}
        worker.ask("POST", "metrics", body, **held)
        told = {"run_id": worker.run_id, "job_id": "job-1", "kind": "checkpoint", "name": "a", "step": "1"}
        told["sha256"] = hashlib.sha256(data).hexdigest()
        creation = {"Upload-Length": "200000", "Upload-Metadata": metadata(told), "Idempotency-Key": "a"}
        location = worker.ask("POST", "checkpoints", **TUS, **creation, **held).headers["Location"]
        patch = {**TUS, **BYTES, **held}
        worker.ask("PATCH", location, data[:150_000], **patch, **{"Upload-Offset": "0"})
        orchestrator.kill()
        with open(orchestrator.folder / "runs" / worker.run_id / "metrics.jsonl", "a") as stream:
            stream.write('{"step": 2, "tr')  # a line that was cut by the kill
        orchestrator.start()
        assert worker.ask("HEAD", location, **TUS, **held).headers["Upload-Offset"] == "150000"
        last = worker.ask("PATCH", location, data[150_000:], **patch, **{"Upload-Offset": "150000"})
        assert last.headers["Repr-Digest"] == digest_of(data)
        assert worker.refused("POST", "lease", {"worker_id": "x", "job_id": "job-2"}).status == 409
        state = worker.state()
        assert (state["lines"], state["generation"], state["is_held"]) == (lines, 1, True)


@pytest.mark.slow
def test_faults_are_those_that_were_asked_for(tmp_path: Path) -> None:
    """Of what fails on request, some was done all the same, and the platform's own requests never fail."""
    with Orchestrator(tmp_path, fail_rate=0.5, seed=1) as orchestrator:
        worker = Worker(orchestrator)
        failed = 0
        for step in range(1, 61):
            body = {"run_id": worker.run_id, "job_id": "job-1", "lines": [{"step": step}]}
            try:
                worker.ask("POST", "metrics", body)
            except Unreachable:
                failed += 1
        kept = len(worker.state()["lines"])
        assert 15 < failed < 45
        assert 60 - failed < kept < 60
        assert len(orchestrator.ask("GET", "/runs")) == 1


@pytest.mark.slow
def test_the_commands_of_the_readme_bring_a_job_to_its_end(tmp_path: Path) -> None:
    """As printed, but for the port, what waits for the server, and pip."""
    readme = (EXAMPLE / "README.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line) for line in re.findall(r"^    (python .*)$", readme, re.MULTILINE)]
    mint, operator, serve, agent = commands
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(command: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        placed = [str(ROOT / word) if word.startswith("examples/") else word for word in command[1:]]
        arguments = [sys.executable, *placed]
        return subprocess.run(
            arguments, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, **given
        )

    for command in (mint, operator):
        assert run(command).returncode == 0
    port = free_port()
    assert serve[-3:] == ["--port", "8090", "&"]
    arguments = [sys.executable, str(ROOT / serve[1]), *serve[2:-2], str(port)]
    server = subprocess.Popen(arguments, cwd=tmp_path)
    try:
        url, token = f"http://127.0.0.1:{port}", (tmp_path / "keys/operator.jwt").read_text()
        client = Client(lambda: token, frozenset({"127.0.0.1"}))
        wait_for(lambda: is_there(client, url), "the server")
        job = (EXAMPLE / "job.json").read_bytes()
        client.request("POST", f"{url}/runs", body=job, headers={"Content-Type": "application/json"})
        done = run([*agent, "--url", url])
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "squares-1: the worker ended with 0"
        page = client.request("GET", f"{url}/runs/squares-1").document()
    finally:
        server.kill()
        server.wait()
    assert (page["state"], page["step"], page["is_held"]) == ("completed", 60, False)
    assert [line["step"] for line in page["lines"]] == [*range(1, 61)]
    assert {one["kind"] for one in page["artifacts"]} >= {"checkpoint", "meta", "sample"}
    assert all(one["is_whole"] for one in page["artifacts"])
    assert [one["name"] for one in page["artifacts"] if one["is_final"]] == ["step-00000060.pt"]
    [terminal] = page["terminals"].values()
    assert (terminal["status"], terminal["exit_code"]) == ("completed", 0)
    for path in tmp_path.rglob("*"):  # neither a token nor the private key lies anywhere else
        if path.is_file() and path.parent.name != "keys":
            data = path.read_bytes()
            assert (tmp_path / "keys/worker.jwt").read_bytes() not in data, path
            assert token.encode() not in data, path


def is_there(client: Client, url: str) -> bool:
    try:
        return bool(client.request("GET", f"{url}/health").document()["ok"])
    except Unreachable:
        return False
