"""Who is started when: in the order of submission, as leases come free, and nobody twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from support import kept
from support.kept import enqueue, request_of
from trn.devices import Lease, Want, lease
from trn.files import Lock
from trn.jobs import Store, observe, open_store
from trn.jobs.attending import attend
from trn.jobs.queue import queue_lock, waiting_rows, why_waiting
from trn.jobs.request import Request, request_path
from trn.jobs.serving import Queue
from trn.records import JobRow

CORES = len(os.sched_getaffinity(0))
ALL, ONE = Want(cpus=CORES), Want(cpus=1)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    kept.stand_in(monkeypatch, tmp_path)
    with open_store(tmp_path / "runs") as opened:
        yield opened


class Keepers:
    """Takes what it is given to start, and holds its lease as a keeper would, until `end`."""

    def __init__(self, store: Store) -> None:
        self.started: list[str] = []
        self._store = store
        self._leases: dict[str, list[int]] = {}

    def start(self, request: Request, held: Lease) -> None:
        self.started.append(request.run_id)
        self._leases[request.run_id] = [os.dup(fd) for fd in held.fds]  # of the same open file, as a child's are
        self._store.advance(request.job_id, "starting")

    def end(self, run_id: str) -> None:
        for fd in self._leases.pop(run_id):
            os.close(fd)

    def end_all(self) -> None:
        for run_id in [*self._leases]:
            self.end(run_id)


def hold(want: Want) -> Lease:
    return lease(want, note="job=other run=other", environ=os.environ)


def queue_of(store: Store) -> tuple[Queue, Keepers]:
    keepers = Keepers(store)
    return Queue(store, keepers.start, os.environ), keepers


def row(store: Store, waiting: JobRow) -> JobRow:
    found = store.get(waiting.job_id)
    assert found is not None
    return found


def test_jobs_start_in_the_order_of_submission_as_cores_come_free(store: Store) -> None:
    names = ["a", "b", "c", "d"]
    for name in names:
        enqueue(store, name, want=ALL)
    queue, keepers = queue_of(store)
    order = []
    for name in names:
        assert queue.look()
        order.append([*keepers.started])
        keepers.end(name)
    assert order == [["a"], ["a", "b"], ["a", "b", "c"], names]
    assert not queue.look()


def test_a_small_job_does_not_pass_a_big_one_that_waits_for_the_same(store: Store) -> None:
    with hold(ONE):
        big = enqueue(store, "big", want=ALL)
        small = enqueue(store, "small", want=ONE)
        enqueue(store, "free")
        queue, keepers = queue_of(store)
        assert queue.look()
        assert keepers.started == ["free"]  # it wants nothing of the kind
        assert why_waiting(store.runs_dir) == {}  # nobody serves, so what was said may be long over
        serving = Lock(queue_lock(store.runs_dir))
        assert serving.acquire()
        reasons = why_waiting(store.runs_dir)
        serving.release()
        assert " held by job other of run other" in reasons[big.job_id]
        assert reasons[small.job_id] == "behind big, which waits for cpu"
    assert queue.look()
    assert keepers.started == ["free", "big"]
    keepers.end("big")
    queue.look()
    assert keepers.started == ["free", "big", "small"]
    keepers.end_all()


def test_what_cannot_be_started_is_rejected_and_the_queue_goes_on(store: Store) -> None:
    damaged, gone = enqueue(store, "damaged"), enqueue(store, "gone")
    request_path(store.runs_dir, damaged.job_id).write_text("{}")
    request_path(store.runs_dir, gone.job_id).unlink()
    too_much = enqueue(store, "too-much", want=Want(cpus=CORES + 1))
    enqueue(store, "good")
    queue, keepers = queue_of(store)
    queue.look()
    assert keepers.started == ["good"]
    ends = [(row(store, one).state, row(store, one).exit_code) for one in (damaged, gone, too_much)]
    assert ends == [("rejected", 74), ("rejected", 74), ("rejected", 90)]
    assert "is damaged: expected schema_version 1" in str(row(store, damaged).reason)
    assert not request_path(store.runs_dir, damaged.job_id).exists()
    assert list((store.runs_dir / ".trn" / "launch").iterdir()) == []


def test_a_job_whose_door_is_there_is_left_to_it(store: Store) -> None:
    waiting = enqueue(store, "demo")
    lock = attend(store.runs_dir, waiting.job_id)
    assert lock is not None
    queue, keepers = queue_of(store)
    assert queue.look()
    lock.release()
    assert queue.look({waiting.job_id})  # its keeper was started, and is on its way
    assert keepers.started == []
    queue.look()
    assert keepers.started == ["demo"]


def test_a_keeper_that_never_takes_its_job_is_not_started_for_ever(store: Store) -> None:
    waiting = enqueue(store, "demo")
    tries = []
    queue = Queue(store, lambda request, held: tries.append(request.run_id), os.environ)
    while queue.look():
        assert len(tries) < 10
    assert len(tries) == 3
    assert row(store, waiting).state == "rejected"
    assert "its keeper was started 3 times, and did not take it" in str(row(store, waiting).reason)


def test_a_cancelled_job_is_not_started(store: Store) -> None:
    waiting = enqueue(store, "demo")
    store.advance(waiting.job_id, "cancelled", exit_code=92)
    queue, keepers = queue_of(store)
    assert not queue.look()
    assert keepers.started == []


def test_jobs_of_an_engine_do_not_wait_here(store: Store) -> None:
    row = request_of(store.runs_dir, "demo").new_row(store.runs_dir, "queued")
    store.add(replace(row, launcher="slurm"))
    assert waiting_rows(store) == []


def test_what_waits_still_waits_after_a_restart_of_the_machine(store: Store) -> None:
    waiting = enqueue(store, "demo")
    assert observe(row(store, waiting), store.runs_dir).state == "queued"
