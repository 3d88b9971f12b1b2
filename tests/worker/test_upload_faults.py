"""What a server may do wrong, and a worker that is killed: everything arrives once, or is given up and told once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from support.forkserver import ForkServer
from support.sending import ToyRun
from support.tus import Uploading, announce, commit, end, full_run, lines_of, on_disk, sample, send, tus_server
from trn.files import make_folder, sha256_file
from trn.transfer.client import Client
from trn.worker.uploading import Report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

UPLOADER = Path(__file__).parents[1] / "support" / "uploader.py"


@pytest.mark.parametrize("status", [500, 503, 408, 429])
def test_an_answer_that_means_later_kills_nothing(tmp_path: Path, status: int) -> None:
    run = full_run(tmp_path)
    places = [("POST", place) for place in ("metrics", "checkpoint", "sample", "terminal")]
    with tus_server(tmp_path) as server:
        for method, place in (*places, ("HEAD", "upload"), ("PATCH", "upload")):
            server.answer(method, place, status, times=1)
        report = send(run, server.endpoints, {"status": "completed"})
    assert report.is_complete
    assert server.answers == {asked: [] for asked in server.answers}
    assert server.whole() == on_disk(run)
    assert server.lines == lines_of(run)
    assert list(server.ends) == ["job-1"]


def test_the_wish_of_a_server_is_waited_for(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.answer("POST", "sample", 503, Retry_After="1")
        began_s = time.monotonic()
        assert send(run, server.endpoints).is_complete
    assert 1.0 <= time.monotonic() - began_s < 10


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_not_taken_ends_all_uploads_and_is_told_once(tmp_path: Path, status: int) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.answer("POST", "checkpoint", status, times=100)
        client = Client(lambda: "a.b.c", frozenset({f"127.0.0.1:{server.port}"}))
        uploading = Uploading(run, server.endpoints, client=client)
        with uploading as uploads:
            report = uploads.finish({"status": "completed"}, 10)
    assert report.is_unauthorized
    assert not report.is_complete
    assert str(status) in report.reason
    assert len(uploading.said) == 1
    assert server.ends == {}
    assert [place for _, place, _ in server.requests].count("checkpoint") == 1


def test_a_place_that_wants_a_token_it_must_not_see_gets_nothing_and_the_others_get_all(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.answer("POST", "checkpoint", 401, times=100)
        client = Client(lambda: "a.b.c", frozenset({"orchestrator.example"}))
        uploading = Uploading(run, server.endpoints, client=client)
        with uploading as uploads:
            report = uploads.finish({"status": "completed"}, 10)
    assert report.failed == ("checkpoints: it answered 401 Unauthorized; no token was sent there",)
    assert not report.is_unauthorized
    assert len(uploading.said) == 1
    assert [kind for kind, _, _ in server.whole()] == ["sample", "sample"]
    assert list(server.ends) == ["job-1"]
    assert not [1 for _, _, headers in server.requests if "authorization" in headers]


@pytest.mark.parametrize("status", [404, 413, 302])
def test_what_is_refused_is_given_up_alone_and_tried_again_by_the_next_start(tmp_path: Path, status: int) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.answer("POST", "checkpoint", status)
        uploading = Uploading(run, server.endpoints)
        report = uploading.uploads.finish(lambda report: {"status": report.reason}, 10)
        (line,) = report.failed
        assert "step-00000020.pt" in line, "the final one was sent first"
        assert str(status) in line
        assert len([one for one in uploading.said if "step-00000020.pt" in one]) == 1
        assert report.final_checkpoint is None
        assert server.ends["job-1"]["status"] == line
        assert len(server.whole()) == len(on_disk(run)) - 2, "all but the .pt and its meta"
        assert server.lines == lines_of(run)
        assert send(run, server.endpoints, job_id="job-2").is_complete
    assert server.whole() == on_disk(run)


GARBAGE = ["no_location", "other_host", "no_digest", "wrong_digest", "wrong_offset", "no_offset"]


@pytest.mark.parametrize("how", GARBAGE)
def test_garbage_is_forgiven_once(tmp_path: Path, how: str) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.garble[how] = 1
        assert send(run, server.endpoints).is_complete
    assert server.whole() == on_disk(run)


@pytest.mark.parametrize("how", GARBAGE)
def test_a_server_that_talks_garbage_is_given_up(tmp_path: Path, how: str) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.garble[how] = 10_000
        report = send(run, server.endpoints, {"status": "completed"})
        assert not report.is_complete
        assert report.pending == 0
        assert report.failed
        assert server.lines == lines_of(run)
        assert list(server.ends) == ["job-1"]
        server.garble.clear()
        assert send(run, server.endpoints).is_complete
    assert server.whole() == on_disk(run)


def test_a_final_checkpoint_that_the_server_has_lost_is_sent_once_more(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.garble["loses"] = 1
        report = send(run, server.endpoints, {"status": "completed"})
        assert report.is_complete
        assert server.whole() == on_disk(run)
        assert server.sent_bytes("step-00000020.pt") == 2 * 300_000
        assert server.finals() == ["step-00000020.pt"]
        again = send(run, server.endpoints, {"status": "completed"})
    assert again.is_complete
    assert server.sent_bytes("step-00000020.pt") == 2 * 300_000


def test_a_server_that_loses_the_final_checkpoint_again_is_told_of(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.garble["loses"] = 2
        report = send(run, server.endpoints, {"status": "completed"})
        assert not report.is_complete
        assert report.failed == ("the final checkpoint, as such: it has lost twice what it had accepted",)
        assert server.ends["job-1"]["final_checkpoint"] is None
        assert send(run, server.endpoints, {"status": "completed"}, job_id="job-2").is_complete, "once more"
        assert server.whole() == on_disk(run)


def test_what_is_lost_when_the_time_is_over_is_pending(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.garble["loses"] = 1
        uploading = Uploading(run, server.endpoints, say=lambda line: uploading.uploads.hurry(0))
        with uploading as uploads:
            report = uploads.finish(None, 20)
        assert server.whole() != on_disk(run)
    assert not report.is_complete
    assert report.pending == 1


def test_a_location_that_is_gone_is_made_anew(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.answer("PATCH", "upload", 410)
        server.answer("HEAD", "upload", 404)
        assert send(run, server.endpoints).is_complete
    assert server.whole() == on_disk(run)


def test_an_end_that_is_refused_is_given_up(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.answer("POST", "terminal", 422)
        report = send(run, server.endpoints, {"status": "completed"})
    assert not report.is_complete
    assert "the end: it answered 422" in report.reason
    assert report.final_checkpoint is not None


def test_batches_of_metrics_that_are_too_large_are_halved_and_one_line_is_left_out(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    run.metrics(1, 4)
    with tus_server(tmp_path) as server:
        server.answer("POST", "metrics", 413, times=3)
        report = send(run, server.endpoints)
    assert [line["step"] for line in server.lines] == [2, 3, 4]
    assert report.failed == ("a line of the metrics: it answered 413 Content Too Large",) or "413" in report.failed[0]
    assert not report.is_complete


def test_metrics_that_are_refused_are_given_up_and_the_rest_arrives(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.answer("POST", "metrics", 422, times=100)
        report = send(run, server.endpoints)
        assert len(report.failed) == 1
        assert server.whole() == on_disk(run)
        server.answers.clear()
        assert send(run, server.endpoints).is_complete
    assert server.lines == lines_of(run)


def test_a_server_that_is_never_there_costs_the_deadline_and_no_more(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.die()
        uploading = Uploading(run, server.endpoints)
        began_s = time.monotonic()
        with uploading as uploads:
            report = uploads.finish({"status": "completed"}, 1.0)
        assert time.monotonic() - began_s < 10.0
    assert not report.is_complete
    assert report.failed == ()
    assert report.pending == 2 + 2 + 1
    assert report.reason == "5 not sent in time and the end was not told (no connection: connection refused)"
    assert 1 <= len(uploading.said) == len(set(uploading.said)) <= 4, "of each place, the first failure"


def test_one_place_that_is_down_holds_up_no_other(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.answer("POST", "sample", 503, times=1000)
        report = send(run, server.endpoints, {"status": "upload_failed"}, deadline_s=2.4)
    assert report.pending == 2
    assert [one for one in server.whole() if one[0] != "sample"] == [one for one in on_disk(run) if one[0] != "sample"]
    assert server.lines == lines_of(run)
    assert list(server.ends) == ["job-1"]


def test_an_upload_goes_on_where_a_broken_connection_left_it(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    commit(run, 10, os.urandom(9 << 20))
    with tus_server(tmp_path, rng=random.Random(1)) as server, Uploading(run, server.endpoints) as uploads:
        while server.sent_bytes("step-00000010.pt") < 4 << 20:
            time.sleep(0.005)
        server.fail_rate = 0.5
        time.sleep(0.3)
        server.fail_rate = 0.0
        assert uploads.finish(None, 30).is_complete
    assert server.whole() == on_disk(run)
    assert server.sent_bytes("step-00000010.pt") == 9 << 20, "no byte that had come was sent again"


def test_a_big_file_that_a_server_threw_away_is_sent_again_from_its_beginning(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    commit(run, 10, os.urandom(9 << 20))
    with tus_server(tmp_path) as server:
        server.garble["wrong_digest"] = 1
        assert send(run, server.endpoints).is_complete
    assert server.whole() == on_disk(run)
    assert server.sent_bytes("step-00000010.pt") == 18 << 20


# the figure


def busy_run(folder: Path, number: int, rng: random.Random) -> tuple[ToyRun, threading.Thread]:
    """A run that goes on, is resumed and prunes nothing, on a thread."""
    run = ToyRun(folder / "runs", f"exp{number:03d}")
    run.emit(1, "plan_written")

    def go() -> None:
        step = 0
        for part in range(4):
            run.metrics(step + 1, step + 25, part=part)
            step += 25
            commit(run, step, rng.randbytes(rng.randrange(1, 400_000)), files={"a/b": rng.randbytes(1000)})
            sample(run, step, f"{part}.txt", rng.randbytes(rng.randrange(0, 5000)))
            time.sleep(rng.random() * 0.3)
            if part == 1:
                step -= 10
                run.cut(step)
                run.log.emit("resumed", from_step=step, checkpoint=None, named=False)
        run.metrics(step + 1, step + 1)
        end(run, commit(run, step + 1, rng.randbytes(200_000)))

    return run, threading.Thread(target=go)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_artifact_arrives_once_at_a_server_that_fails_thirty_percent_and_dies(tmp_path: Path) -> None:
    """TRN_UPLOAD_RUNS=100 for the whole figure, with a server that is dead for 20 s."""
    count = int(os.environ.get("TRN_UPLOAD_RUNS", "3"))
    dead_s = 20.0 if count >= 100 else 1.0
    at_once = 10
    rng = random.Random(7)
    with tus_server(tmp_path, fail_rate=0.3, rng=random.Random(11)) as server:
        dying = threading.Timer(0.4, server.die_for, (dead_s,))
        dying.start()
        for first in range(0, count, at_once):
            runs = [busy_run(tmp_path / f"{first}", first + one, rng) for one in range(min(at_once, count - first))]
            reports: list[Report] = []

            def ended(run: ToyRun, trains: threading.Thread, reports: list[Report] = reports) -> None:
                with Uploading(run, server.endpoints, job_id=f"job-{run.facts.run_id}") as uploads:
                    trains.start()
                    trains.join()
                    reports.append(uploads.finish({"status": "completed"}, 120))

            threads = [threading.Thread(target=ended, args=one) for one in runs]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(180)
            assert len(reports) == len(runs)
            assert all(report.is_complete for report in reports), reports
            for run, _ in runs:
                run_id = run.facts.run_id
                mine = [one for one in server.uploads.values() if one.told["run_id"] == run_id]
                assert sorted((one.told["kind"], one.told["name"], one.digest()) for one in mine) == on_disk(run)
                assert all(one.digest() == one.told["sha256"] and one.received == one.length for one in mine)
                assert [one.told["name"] for one in mine if one.told["final"] == "true"] == ["step-00000091.pt"]
                assert lines_told(server.bodies, run_id) == lines_of(run)
        dying.join(dead_s + 10)
    assert len(server.ends) == count


def lines_told(bodies: list[dict[str, Any]], run_id: str) -> list[dict[str, Any]]:
    """What a server has that takes each batch once and obeys its cut."""
    lines: list[dict[str, Any]] = []
    for body in bodies:
        if body["run_id"] == run_id:
            cut = body["cut_above_step"]
            lines = [line for line in lines if cut is None or line["step"] <= cut] + body["lines"]
    return lines


@pytest.mark.slow
def test_a_worker_that_is_killed_again_and_again_sends_every_artifact_once(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    for step in (30, 40):
        commit(run, step, os.urandom(6 << 20), files={"model": os.urandom(50_000)})
        run.metrics(step + 1, step + 10)
    for step in range(30, 60):
        sample(run, step, "text.txt", os.urandom(100))
    rng = random.Random(3)
    kills = 0
    with tus_server(tmp_path, slow_s=0.008, fail_rate=0.1, rng=random.Random(5)) as server:
        for attempt in range(60):
            command = [sys.executable, str(UPLOADER), str(run.dir), server.url, f"job-{attempt}"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            try:
                out, _ = process.communicate(timeout=0.3 + rng.random() * 0.3 if kills < 12 else 60)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
        assert process.returncode == 0, out
    assert kills >= 3, "it was over too soon to prove anything"
    assert server.whole() == on_disk(run)
    assert len(server.uploads) == len(on_disk(run))
    assert all(one.received == one.length for one in server.uploads.values()), "no byte that had come was sent again"
    assert lines_told(server.bodies, "exp01") == lines_of(run)
    assert server.ends[f"job-{attempt}"]["final_checkpoint"]["name"] == "step-00000020.pt"


@pytest.mark.slow
def test_an_uploader_that_is_killed_at_any_durable_operation_is_made_good_by_the_next(tmp_path: Path) -> None:
    with tus_server(tmp_path) as server, ForkServer() as forks:
        for number in range(1, 100):
            run = ToyRun(tmp_path / "runs", f"exp{number:03d}")
            run.emit(1, "plan_written")
            run.metrics(1, 3, number=number)
            sample(run, 3, "text.txt", b"hello")
            end(run, commit(run, 3))
            ended = []
            for job, fault in (("job-1", f"op=any,n={number},do=kill,path=/uploads/exp"), ("job-2", None)):
                arguments = [str(run.dir), server.url, job]
                ended.append(forks.wait(forks.start(arguments, tmp_path / "log", fault, script=UPLOADER)))
            mine = [one for one in server.uploads.values() if one.told["run_id"] == run.facts.run_id]
            assert ended[1] == 0, (tmp_path / "log").read_text()
            assert sorted((one.told["kind"], one.told["name"], one.digest()) for one in mine) == on_disk(run)
            assert all(one.received == one.length for one in mine), "no byte was sent twice"
            assert [one.told["name"] for one in mine if one.told["final"] == "true"] == ["step-00000003.pt"]
            assert lines_told(server.bodies, run.facts.run_id) == lines_of(run)
            assert [body["lines"] for body in server.bodies if body["run_id"] == run.facts.run_id] == [lines_of(run)]
            if ended[0] == 0:
                break
            assert ended[0] == -signal.SIGKILL
    assert 15 < number < 99, "it was killed at each operation, and once at none"


@pytest.mark.slow
def test_a_file_of_300_megabytes_is_never_in_memory(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    path = make_folder(run.dir / "checkpoints") / "step-00000010.pt"
    size_bytes = 300 << 20
    with open(path, "wb") as stream:
        stream.truncate(size_bytes)
    announce(run, 10, sha256_file(path), size_bytes)
    with tus_server(tmp_path) as server:
        tracemalloc.start()
        try:
            report = send(run, server.endpoints, deadline_s=60)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert report.is_complete
        assert server.whole() == on_disk(run)
    assert peak_bytes < 24 << 20
