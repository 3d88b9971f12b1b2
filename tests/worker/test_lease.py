"""Leases against the reference orchestrator, and against answers that it would never give."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from support.orchestrator import Orchestrator
from support.sending import wait_for
from trn.errors import PlanRefused, Stopped, Unauthorized
from trn.transfer.client import Client, Refused
from trn.worker.authorisation import read_token
from trn.worker.lease import Lease, LeaseLost, Renewing, claim

pytestmark = pytest.mark.slow

NUMBERS = count()
TTL_S = 1.2


@pytest.fixture(scope="module")
def orchestrator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orchestrator]:
    with Orchestrator(tmp_path_factory.mktemp("orchestrator"), ttl_s=TTL_S) as started:
        yield started


@pytest.fixture
def run_id(orchestrator: Orchestrator) -> str:
    """Of a run that was submitted."""
    submitted: str = orchestrator.submit({"run_id": f"exp{next(NUMBERS)}"})["run_id"]
    return submitted


def client_of(orchestrator: Orchestrator) -> Client:
    token = read_token({"TRAINER_CAPABILITY_TOKEN_FILE": str(orchestrator.token_file)})
    return Client(token, frozenset({f"127.0.0.1:{orchestrator.port}"}), timeout_s=10.0)


def claimed(orchestrator: Orchestrator, run_id: str, job_id: str = "job-1", **given: Any) -> Lease:
    settings: dict[str, Any] = {"worker_id": f"of-{job_id}", "job_id": job_id, "wait_s": 0.0, "is_stopped": never}
    return claim(client_of(orchestrator), orchestrator.url, run_id, **{**settings, **given})


def never() -> bool:
    return False


class Kept:
    """A lease that is renewed, and what was told of it."""

    def __init__(self, lease: Lease, report: Callable[[], Mapping[str, object]] | None = None) -> None:
        self.lost: list[str] = []
        self.cancelled: list[str] = []
        self.said: list[str] = []
        self.renewing = Renewing(
            lease,
            report=report or (lambda: {"step": 7, "state": "running"}),
            on_cancel=self.cancelled.append,
            on_lost=self.lost.append,
            say=self.said.append,
        )

    def __enter__(self) -> Kept:
        self.renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.renewing.end()


# claiming


def test_of_ten_workers_that_claim_a_run_one_gets_it(orchestrator: Orchestrator, run_id: str) -> None:
    ready = threading.Barrier(10)

    def worker(number: int) -> Lease | str:
        client = client_of(orchestrator)
        ready.wait(30)
        try:
            return claim(
                client, orchestrator.url, run_id, worker_id=f"w{number}", job_id=f"job-{number}", wait_s=0.0,
                is_stopped=never,
            )  # fmt: skip
        except Stopped as stopped:
            return f"{stopped.outcome}: {stopped.message}"

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(worker, range(10)))
    [lease] = [one for one in found if isinstance(one, Lease)]
    assert lease.generation == 1
    lines = {one for one in found if isinstance(one, str)}
    assert lines == {f"preempted: no lease of the run {run_id}: another worker holds the run (waited 0 s)"}
    assert orchestrator.state(run_id)["lease"]["generation"] == 1


def test_whoever_waits_can_be_stopped(orchestrator: Orchestrator, run_id: str) -> None:
    asked = iter([False, False, True])
    with Kept(claimed(orchestrator, run_id)), pytest.raises(Stopped, match="asked to stop while it waited"):
        claimed(orchestrator, run_id, "job-2", wait_s=60.0, is_stopped=lambda: next(asked))


def test_a_claim_that_is_repeated_by_the_same_job_is_the_same_lease(orchestrator: Orchestrator, run_id: str) -> None:
    """The first answer may have been lost on the way."""
    first, again = claimed(orchestrator, run_id), claimed(orchestrator, run_id)
    assert (first.lease_id, first.generation) == (again.lease_id, again.generation)


def test_a_run_that_is_unknown_or_of_another_owner_is_refused(orchestrator: Orchestrator, tmp_path: Path) -> None:
    with pytest.raises(PlanRefused, match="it does not know the run"):
        claimed(orchestrator, "nobody")
    with pytest.raises(PlanRefused):
        claimed(orchestrator, "../next")
    for token in (orchestrator.mint(scope="trn.operate"), orchestrator.mint(run_id="another"), "opaque"):
        client = Client(lambda token=token: token, frozenset({"127.0.0.1"}))  # type: ignore[misc]
        with pytest.raises(Unauthorized) as caught:
            claim(client, orchestrator.url, "exp0", worker_id="w", job_id="j", wait_s=0.0, is_stopped=never)
        assert token not in str(caught.value)
        assert caught.value.exit_status == 77


# renewing


def test_a_lease_is_renewed_tells_of_the_run_and_is_given_back(orchestrator: Orchestrator, run_id: str) -> None:
    lease = claimed(orchestrator, run_id)
    with Kept(lease) as kept:
        wait_for(lambda: orchestrator.state(run_id)["lease"]["step"] == 7, "a renewal")
        kept.renewing.require()
        assert kept.renewing.headers() == {"Lease-Id": lease.lease_id, "Lease-Generation": "1"}
        assert orchestrator.state(run_id)["is_held"]
        assert kept.renewing.release()
    assert not orchestrator.state(run_id)["is_held"]
    assert Kept(lease).renewing.release(), "again, as the answer before may have been lost"
    late = {**lease.headers, "Content-Type": "application/json"}
    with pytest.raises(Refused) as caught:  # a renewal that was on its way
        lease.client.request("PUT", lease.url, body=b'{"step": 8}', headers=late)
    assert caught.value.status == 410
    assert claimed(orchestrator, run_id, "job-2").generation == 2
    assert (kept.lost, kept.cancelled, kept.said) == ([], [], [])


def test_a_wish_to_cancel_is_told_once_with_its_reason(orchestrator: Orchestrator, run_id: str) -> None:
    with Kept(claimed(orchestrator, run_id)) as kept:
        orchestrator.cancel(run_id, "too expensive")
        wait_for(lambda: kept.cancelled, "the wish")
        time.sleep(TTL_S / 2)  # it is in each answer from now on
        assert kept.cancelled == ["too expensive"]
        kept.renewing.require()  # whoever is cancelled saves and reports with its lease
    with Kept(claimed(orchestrator, run_id)) as kept:
        wait_for(lambda: kept.cancelled, "the wish, which a claim tells at once")


def test_a_lease_that_somebody_else_took_is_lost_once_and_nothing_more_is_sent(
    orchestrator: Orchestrator, run_id: str
) -> None:
    first = claimed(orchestrator, run_id)
    assert Kept(first).renewing.release()  # as if it had slept over its end
    second = claimed(orchestrator, run_id, "job-2")
    with Kept(Lease(first.lease_id, 1, 9.0, first.url, second.sent_s - 3.0, first.client)) as kept:  # asks at once
        wait_for(lambda: kept.lost, "the loss")
        with pytest.raises(LeaseLost):
            kept.renewing.headers()
        time.sleep(0.3)
        assert kept.lost == ["the orchestrator answered 409"]
    assert not kept.renewing.release()
    assert orchestrator.state(run_id)["lease"]["job_id"] == "job-2"


def test_the_fence_turns_away_an_older_generation_everywhere(orchestrator: Orchestrator, run_id: str) -> None:
    old = claimed(orchestrator, run_id)
    assert Kept(old).renewing.release()
    claimed(orchestrator, run_id, "job-2")
    client, base = client_of(orchestrator), f"{orchestrator.url}/runs/{run_id}"
    tus = {"Tus-Resumable": "1.0.0"}
    places = [
        ("PUT", f"lease/{old.lease_id}", {}),
        ("DELETE", f"lease/{old.lease_id}", {}),
        ("POST", "metrics", {"run_id": run_id, "job_id": "job-1", "lines": []}),
        ("POST", "terminal", {"run_id": run_id, "job_id": "job-1", "status": "completed", "exit_code": 0}),
        ("POST", "checkpoints", {}),
        ("POST", "samples", {}),
        ("HEAD", "uploads/abc", {}),
        ("PATCH", "uploads/abc", {}),
    ]
    for headers in (old.headers, {}, {"Lease-Id": old.lease_id, "Lease-Generation": "2"}):
        for method, path, body in places:
            given = {**tus, **headers, "Content-Type": "application/json"}
            with pytest.raises(Refused) as caught:
                client.request(method, f"{base}/{path}", body=json.dumps(body).encode(), headers=given)
            assert caught.value.status == 409, (method, path)
            assert caught.value.answer is not None
            assert caught.value.answer.headers["Lease-Generation"] == "2"
    assert orchestrator.state(run_id)["terminals"] == {}


# a clock, and an orchestrator that is not there


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers what its server was given, the last for ever; None is no answer at all."""

    def _answer(self) -> None:
        server: Any = self.server
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server.seen.append((self.command, time.monotonic(), dict(self.headers)))
        status, body = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        if status is None:
            server.gate.wait(20)
            return
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 -- the names that the base class looks for

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""


class ScriptedServer:
    def __init__(self, *script: tuple[int | None, Any]) -> None:
        self._server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
        self._server.daemon_threads = True
        self._server.script, self._server.seen, self._server.gate = list(script), [], threading.Event()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.seen: list[tuple[str, float, dict[str, str]]] = self._server.seen
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.gate.set()
        self._server.shutdown()
        self._server.server_close()

    def claim(self, **given: Any) -> Lease:
        settings: dict[str, Any] = {"worker_id": "w", "job_id": "j", "wait_s": 0.0, "is_stopped": never}
        return claim(Client(None, frozenset()), self.url, "exp01", **{**settings, **given})


GIVEN = {"lease_id": "abc", "generation": 3, "ttl_seconds": 1.5, "cancel": False}


@pytest.mark.slow
def test_silence_costs_the_lease_when_its_time_is_over_and_not_before() -> None:
    with ScriptedServer((201, {**GIVEN, "ttl_seconds": 1.0}), (None, None)) as server:
        began_s = time.monotonic()
        with Kept(server.claim()) as kept:
            time.sleep(0.5)
            kept.renewing.require()
            wait_for(lambda: kept.lost, "the loss")
            assert 0.95 < time.monotonic() - began_s < 10.0
            assert kept.lost == ["it was not renewed within 1 s"]
            sent = len(server.seen)
            time.sleep(0.3)
            assert len(server.seen) == sent >= 2


NONE_AT_ALL: list[tuple[int, Any]] = [
    (503, {}), (500, b"junk"), (200, b"junk"), (200, {}), (200, {"ttl_seconds": True}), (401, {}), (302, {}),
]  # fmt: skip


@pytest.mark.slow
def test_an_answer_that_is_none_is_survived_until_the_next() -> None:
    with ExitStack() as stack:
        pairs = []
        for answer in NONE_AT_ALL:
            script = [(201, GIVEN), answer, answer, (200, {"ttl_seconds": 1.5, "cancel": False})]
            server = stack.enter_context(ScriptedServer(*script))
            pairs.append((server, stack.enter_context(Kept(server.claim()))))
        for server, kept in pairs:
            wait_for(lambda seen=server.seen: len(seen) >= 5, "a renewal of what was renewed")
            kept.renewing.require()
            assert kept.lost == []
            assert len(kept.said) == 1


def test_an_answer_that_the_lease_is_over_ends_it_at_once() -> None:
    with ExitStack() as stack:
        pairs = []
        for status in (404, 409, 410):
            server = stack.enter_context(ScriptedServer((201, {**GIVEN, "ttl_seconds": 9}), (status, {})))
            lease = server.claim()
            pairs.append((server, stack.enter_context(Kept(replace(lease, sent_s=lease.sent_s - 3.0)))))  # asks at once
        for (server, kept), status in zip(pairs, (404, 409, 410), strict=True):
            wait_for(lambda lost=kept.lost: lost, "the loss")
            assert kept.lost == [f"the orchestrator answered {status}"]
            assert len(server.seen) == 2


def test_a_lease_counts_from_when_it_was_asked_for_not_from_the_answer() -> None:
    """An orchestrator that takes longer to answer than the lease lasts has given nothing."""

    class Slow(Scripted):
        def _answer(self) -> None:
            time.sleep(0.3)
            super()._answer()

        do_POST = _answer  # noqa: N815

    with ScriptedServer((201, {**GIVEN, "ttl_seconds": 0.25})) as server:
        server._server.RequestHandlerClass = Slow
        kept = Kept(server.claim())
        with pytest.raises(LeaseLost):
            kept.renewing.require()
        assert kept.renewing.is_lost


@pytest.mark.parametrize(
    "wrong",
    [
        b"junk", [], {}, {"lease_id": 7}, {"lease_id": "a/../b"}, {"lease_id": "a\nb"}, {"generation": True},
        {"generation": "3"}, {"generation": -1}, {"ttl_seconds": 0}, {"ttl_seconds": "30"}, {"ttl_seconds": 1e9},
        {"cancel": "yes"},
    ],
)  # fmt: skip
def test_a_claim_that_is_answered_with_no_lease_is_refused(wrong: Any) -> None:
    body = {**GIVEN, **wrong} if isinstance(wrong, dict) and wrong else wrong
    with ScriptedServer((201, body)) as server, pytest.raises(PlanRefused, match="expected a lease of the run exp01"):
        server.claim()


def test_one_503_does_not_cost_a_claim_although_nobody_is_waited_for() -> None:
    with ScriptedServer((503, {}), (201, {**GIVEN, "cancel": True, "reason": "no\x1b[2J more"})) as server:
        lease = server.claim()
    assert lease.cancel_reason == "no [2J more"
    assert lease.generation == 3


def test_an_orchestrator_that_is_not_there_is_waited_for_and_then_it_is_preempted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trn.worker.lease._UNANSWERED_S", 0.3)
    client = Client(None, frozenset())
    with pytest.raises(Stopped) as caught:
        claim(client, "http://127.0.0.1:9", "exp01", worker_id="w", job_id="j", wait_s=0.0, is_stopped=never)
    assert caught.value.outcome == "preempted"
    assert caught.value.exit_status == 75
    assert "no lease of the run exp01" in str(caught.value)


SLEEPER = """
import sys, time
from trn.errors import TrnError
from trn.transfer.client import Client
from trn.worker.lease import Renewing, claim
url, token = sys.argv[1], open(sys.argv[2]).read()
client = Client(lambda: token, frozenset({"127.0.0.1"}))
lease = claim(client, url, sys.argv[3], worker_id="w", job_id="sleeper", wait_s=0, is_stopped=lambda: False)
def lost(reason): print("lost", flush=True)
kept = Renewing(lease, report=lambda: {"step": 1, "state": "running"}, on_cancel=print, on_lost=lost)
kept.start()
print("ready", flush=True)
while True:  # asks as often as it can whether it may send, and says when it may not
    try:
        kept.headers()
    except TrnError as error:
        print("refused", flush=True)
        break
    time.sleep(0.001)
time.sleep(0.5)
kept.end()
print("released" if kept.release() else "kept its silence", flush=True)
"""


@pytest.mark.slow
def test_a_worker_that_was_stopped_for_longer_than_its_lease_sends_nothing_when_it_wakes(
    orchestrator: Orchestrator, run_id: str
) -> None:
    """Another worker waits meanwhile for the run, and gets it."""
    sleeper = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, orchestrator.url, str(orchestrator.token_file), run_id],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert sleeper.stdout is not None
        assert sleeper.stdout.readline() == "ready\n"
        time.sleep(TTL_S)  # it is renewed
        os.kill(sleeper.pid, signal.SIGSTOP)
        other = claimed(orchestrator, run_id, "job-2", wait_s=20.0)
        assert other.generation == 2
        with Kept(other):
            os.kill(sleeper.pid, signal.SIGCONT)
            lines = sleeper.communicate(timeout=30)[0].splitlines()
            assert sorted(lines) == ["kept its silence", "lost", "refused"]
            assert orchestrator.state(run_id)["lease"]["job_id"] == "job-2"
    finally:
        sleeper.kill()
        sleeper.wait()


@pytest.mark.slow
def test_a_lease_outlives_an_orchestrator_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    with Orchestrator(tmp_path, ttl_s=20.0) as orchestrator:
        orchestrator.submit({"run_id": "exp01"})
        lease = claimed(orchestrator, "exp01")
        hurried = Lease(lease.lease_id, 1, 6.0, lease.url, lease.sent_s, lease.client)
        with Kept(hurried) as kept:
            orchestrator.die_for(2.3)
            wait_for(lambda: (orchestrator.state("exp01")["lease"] or {}).get("step") == 7, "a renewal")
            kept.renewing.require()
            assert (kept.lost, len(kept.said)) == ([], 1)
            assert kept.renewing.release()
