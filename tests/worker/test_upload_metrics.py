"""Batches of metrics against a server that takes each key once, through lost answers, resumes and kills."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from support.sending import ToyRun
from support.tus import lines_of
from trn.worker.upload_metrics import Metrics
from trn.worker.upload_queue import Queue
from trn.worker.upload_spool import Endpoints, Spool


class Server:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.taken: dict[str, str] = {}

    def take(self, body: dict[str, Any], key: str) -> None:
        text = json.dumps(body)
        if key in self.taken:
            assert self.taken[key] == text, "one key, one batch"
            return
        self.taken[key] = text
        cut = body["cut_above_step"]
        self.lines = [line for line in self.lines if cut is None or line["step"] <= cut] + body["lines"]


class Worker:
    """What sends metrics, from one start to the kill."""

    def __init__(self, run: ToyRun, job_id: str) -> None:
        self.spool = Spool(run.dir, "exp01", Endpoints(metrics="m"))
        assert self.spool.open(job_id)
        self.metrics = Metrics(run.reports / "train_metrics.jsonl", self.spool, "exp01", job_id)
        self.metrics._most_lines = 7
        self.queue = Queue(run.dir, Endpoints(metrics="m"), self.spool, self.metrics.follow)

    def send(self, server: Server, how: str, *, is_last: bool = False) -> bool:
        self.queue.look()
        batch = self.metrics.next(is_last=is_last)
        if batch is None:
            return False
        if how != "lost":
            server.take(*batch)
        if how == "answered":
            self.metrics.taken()
        return True

    def kill(self) -> None:
        self.spool.close_log()
        self.spool._lock.release()


@pytest.mark.parametrize("seed", [4, 36, 43, 75, 90])
def test_the_server_has_the_metrics_as_they_stand(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    run.metrics(1, 1)
    server, worker, step, jobs = Server(), Worker(run, "job-0"), 1, 0
    resumed_later: list[int] = []
    for _ in range(120):
        act = rng.choice(["train", "train", "send", "send", "send", "resume", "kill", "tell"])
        if act == "train":
            count = rng.randrange(1, 12)
            run.metrics(step + 1, step + count, wall_ms=rng.randrange(3))
            step += count
        elif act == "send":
            worker.send(server, rng.choice(["answered", "answered", "unanswered", "lost"]))
        elif act == "resume" and not resumed_later:
            step = rng.randrange(max(0, step - 20), step + 1)
            run.cut(step)
            resumed_later.append(step)
        elif act == "kill":
            worker.kill()
            jobs += 1
            worker = Worker(run, f"job-{jobs}")
        if act == "tell" and resumed_later:  # the file is cut first, and the event comes a moment after
            run.log.emit("resumed", from_step=resumed_later.pop(), checkpoint=None, named=False)
    for back in resumed_later:
        run.log.emit("resumed", from_step=back, checkpoint=None, named=False)
    while worker.send(server, "answered", is_last=True):
        pass
    assert server.lines == lines_of(run)
    assert not worker.metrics.has_more()
    worker.spool.close()
