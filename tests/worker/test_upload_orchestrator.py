"""Uploads to the reference orchestrator, with a token, a lease, and faults of its own."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from support.orchestrator import Orchestrator
from support.sending import ToyRun
from support.tus import Uploading, full_run, lines_of, on_disk
from trn.transfer.client import Client
from trn.worker.lease import Lease, claim
from trn.worker.uploading import Endpoints

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def client_of(orchestrator: Orchestrator, run: ToyRun, job_id: str) -> tuple[Client, Lease]:
    client = Client(orchestrator.token_file.read_text, frozenset({"127.0.0.1"}))
    given = {"worker_id": f"worker-{job_id}", "job_id": job_id, "wait_s": 30.0, "is_stopped": lambda: False}
    return client, claim(client, orchestrator.url, run.facts.run_id, **given)


def payload(run: ToyRun, job_id: str) -> dict[str, object]:
    return {"run_id": run.facts.run_id, "job_id": job_id, "status": "completed", "exit_code": 0}


def test_a_run_arrives_at_the_reference_orchestrator_that_fails_and_dies(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with Orchestrator(tmp_path, fail_rate=0.2, seed=3) as orchestrator:
        orchestrator.submit({"run_id": "exp01"})
        client, lease = client_of(orchestrator, run, "job-1")
        endpoints = Endpoints.of_orchestrator(orchestrator.url, "exp01")
        uploading = Uploading(run, endpoints, client=client, headers=lambda: lease.headers, max_bytes_per_s=400_000)
        dying = threading.Timer(0.3, orchestrator.die_for, (0.5,))
        dying.start()
        report = uploading.uploads.finish(payload(run, "job-1"), 90)
        dying.join(90)
        state = orchestrator.state("exp01")
    assert report.is_complete, (report, uploading.said)
    artifacts = state["artifacts"]
    assert sorted((one["kind"], one["name"], one["sha256"]) for one in artifacts) == on_disk(run)
    assert all(one["is_whole"] and one["received_bytes"] == one["size_bytes"] for one in artifacts)
    assert [one["name"] for one in artifacts if one["is_final"]] == ["step-00000020.pt"]
    assert state["lines"] == lines_of(run)
    told = state["terminals"]["job-1"]
    assert told["final_checkpoint"] == report.final_checkpoint
    assert told["final_checkpoint"]["ref"] == next(one["ref"] for one in artifacts if one["is_final"])


def test_a_worker_whose_lease_somebody_else_has_sends_nothing_that_counts(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with Orchestrator(tmp_path, ttl_s=0.2) as orchestrator:
        orchestrator.submit({"run_id": "exp01"})
        client, old = client_of(orchestrator, run, "job-1")
        client_of(orchestrator, run, "job-2")
        endpoints = Endpoints.of_orchestrator(orchestrator.url, "exp01")
        uploading = Uploading(run, endpoints, client=client, headers=lambda: old.headers)
        report = uploading.uploads.finish(payload(run, "job-1"), 30)
        state = orchestrator.state("exp01")
    assert report.is_fenced
    assert state["artifacts"] == []
    assert state["lines"] == []
    assert state["terminals"] == {}
