"""Servers that lie and disks that are full: nothing is asked for ever, nothing is lost, and the end is told."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from support.sending import ToyRun, wait_for
from support.tus import Uploading, commit, end, full_run, lines_of, on_disk, sample, send, tus_server
from trn.errors import StorageError
from trn.worker import upload_source, upload_spool
from trn.worker.upload_artifacts import Sample
from trn.worker.upload_metrics import Metrics
from trn.worker.upload_queue import Queue
from trn.worker.upload_source import Pace, Source
from trn.worker.upload_spool import Endpoints, Spool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


def test_a_place_that_answers_questions_and_takes_no_bytes_is_asked_ever_less_often_and_told_of_once(
    tmp_path: Path,
) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.answer("PATCH", "upload", 503, times=10_000)
        uploading = Uploading(run, server.endpoints)
        with uploading as uploads:
            time.sleep(1.5)
            asked = [method for method, place, _ in server.requests if place == "upload"].count("PATCH")
            assert 2 <= asked <= 16, "of two places; with pauses that do not grow it is thirty"
            report = uploads.report()
        assert report.pending
        assert "503" in (report.problem or "")
        assert len(uploading.said) == 2, "of each place, the first failure"
        server.answers.clear()
        assert send(run, server.endpoints, job_id="job-2").is_complete
    assert server.whole() == on_disk(run)


@pytest.mark.parametrize("location", ["http://[", "//[::1", "http://x:y/", "\u00e9", "file:///etc/passwd", "https://"])
def test_a_location_that_is_no_url_costs_the_file_alone(tmp_path: Path, location: str) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.answer("POST", "sample", 201, times=100, Location=location)
        report = send(run, server.endpoints, {"status": "completed"}, deadline_s=20)
        assert len(report.failed) == 2, report
        assert list(server.ends) == ["job-1"]
        assert server.lines == lines_of(run)
    assert [one for one in server.whole() if one[0] != "sample"] == [one for one in on_disk(run) if one[0] != "sample"]


def test_a_mistake_of_our_own_does_not_keep_the_end_from_being_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*_: object, **__: object) -> bool:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(Queue, "look", look)
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        report = send(run, server.endpoints, lambda report: {"complete": report.is_complete}, deadline_s=10)
    assert server.ends["job-1"]["complete"] is False
    assert not report.is_complete
    assert report.is_told
    assert "ZeroDivisionError" in report.reason


def test_a_server_that_moves_about_without_taking_anything_is_given_up(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.answer("PATCH", "upload", 409, times=100_000)
        offsets = [(200, {"Upload-Offset": str(one % 2)}) for one in range(100_000)]
        server.answers["HEAD", "upload"] = offsets
        report = send(run, server.endpoints, {"status": "completed"}, deadline_s=5)
        assert report.pending == 0, "it was given up long before the time was over"
        assert report.failed
        assert len(server.requests) < 500


def test_a_batch_of_metrics_that_could_not_be_written_down_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    run.metrics(1, 5)
    spool = Spool(run.dir, "exp01", Endpoints(metrics="m"))
    assert spool.open("job-1")
    metrics = Metrics(run.reports / "train_metrics.jsonl", spool, "exp01", "job-1")

    def full(path: Path, data: bytes) -> str:
        raise StorageError("cannot write: No space left on device.", where=str(path))

    with monkeypatch.context() as patched:
        patched.setattr(upload_spool, "write_atomic", full)
        for _ in range(2):
            with pytest.raises(StorageError):
                metrics.next(is_last=False)
    batch = metrics.next(is_last=False)
    assert batch is not None
    assert [line["step"] for line in batch[0]["lines"]] == [1, 2, 3, 4, 5]
    spool.close()


def test_a_sample_that_is_made_again_while_it_is_sent_is_sent_again(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    sample(run, 5, "image.bin", b"a" * (9 << 20))
    with tus_server(tmp_path, slow_s=0.03) as server, Uploading(run, server.endpoints) as uploads:
        wait_for(lambda: server.sent_bytes("step-00000005-image.bin") > 0, "the first bytes")
        sample(run, 5, "image.bin", b"b")
        assert uploads.finish(None, 20).is_complete
    assert set(on_disk(run)) <= set(server.whole())


def test_a_sample_that_was_given_up_is_tried_again_when_it_is_made_again(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    sample(run, 5, "text.txt", b"a")
    with tus_server(tmp_path) as server, Uploading(run, server.endpoints) as uploads:
        server.answer("POST", "sample", 413)
        wait_for(lambda: uploads.report().failed, "the refusal")
        sample(run, 5, "text.txt", b"b")
        assert uploads.finish(None, 20).is_complete
    assert server.whole() == on_disk(run)


def test_a_checkpoint_made_again_is_not_held_back_by_what_was_wrong_with_the_one_before(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    commit(run, 10, b"a" * (9 << 20))
    path = run.dir / "checkpoints" / "step-00000010.pt"
    path.write_bytes(b"c" * (9 << 20))  # the meta still speaks of the one before
    with tus_server(tmp_path, slow_s=0.1) as server, Uploading(run, server.endpoints) as uploads:
        wait_for(lambda: server.sent_bytes(path.name) > 0, "the first bytes")
        commit(run, 10, b"d")
        assert uploads.finish(None, 20).is_complete
    assert set(on_disk(run)) <= set(server.whole())


def test_a_committed_checkpoint_whose_file_is_missing_is_told_and_not_called_pruned(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    (run.dir / "checkpoints" / "step-00000010.files" / "empty").unlink()
    with tus_server(tmp_path) as server:
        report = send(run, server.endpoints, {"status": "completed"})
    assert not report.is_complete
    assert [line for line in report.failed if "missing" in line and "step-00000010" in line] == list(report.failed)


def test_a_final_checkpoint_that_is_missing_is_told(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    for path in (run.dir / "checkpoints").glob("step-00000020.*"):
        path.unlink()
    with tus_server(tmp_path) as server:
        report = send(run, server.endpoints, {"status": "completed"})
    assert not report.is_complete
    assert report.final_checkpoint is None
    assert "step-00000020.pt" in report.reason


def test_what_follows_the_last_line_of_metrics_and_is_none_is_not_waited_for(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with open(run.reports / "train_metrics.jsonl", "ab") as stream:
        stream.write(b"no line of metrics\n")
    with tus_server(tmp_path) as server:
        assert send(run, server.endpoints, deadline_s=5).is_complete
    assert [line["step"] for line in server.lines] == list(range(1, 31))


def test_batches_grow_again_after_one_that_was_too_large(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    run.metrics(1, 400)
    with tus_server(tmp_path) as server:
        server.answer("POST", "metrics", 413, times=8)
        send(run, server.endpoints)
    assert server.lines == lines_of(run)
    assert len(server.bodies) < 60


def test_the_time_for_what_is_left_counts_for_what_is_being_read(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    sample(run, 5, "image.bin", b"a" * (1 << 20))
    with tus_server(tmp_path) as server:
        began_s = time.monotonic()
        report = send(run, server.endpoints, {"status": "completed"}, deadline_s=2.0, max_bytes_per_s=100_000)
        assert time.monotonic() - began_s < 10
    assert report.pending == 1
    assert report.is_told
    assert list(server.ends) == ["job-1"]


def test_who_hurries_gets_the_end_told_and_leaves_the_rest(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.answer("POST", "checkpoint", 503, times=1000)
        with Uploading(run, server.endpoints) as uploads:
            began_s = time.monotonic()
            hurrying = threading.Timer(0.5, uploads.hurry, (1.0,))
            hurrying.start()
            report = uploads.finish(lambda report: {"status": "upload_failed", "left": report.pending}, 60)
            assert time.monotonic() - began_s < 10
            hurrying.join()
    assert report.is_told
    assert not report.is_complete
    assert server.ends["job-1"]["left"] == report.pending == 2
    assert server.whole() != [], "the samples"


def test_who_hurried_before_the_end_has_no_more_time_at_the_end(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        server.answer("POST", "terminal", 503, times=1000)
        with Uploading(run, server.endpoints) as uploads:
            began_s = time.monotonic()
            uploads.hurry(1.0)
            report = uploads.finish({"status": "completed"}, 60)
            assert 0.9 < time.monotonic() - began_s < 10
    assert not report.is_told


def test_a_disk_that_fails_to_read_once_costs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(data)
    monkeypatch.setattr(upload_source, "PIECE_BYTES", 1 << 20)
    source = Source(os.open(tmp_path / "file", os.O_RDONLY), len(data), Pace(None, time.sleep))
    real, count = os.pread, itertools.count()

    def pread(fd: int, size: int, offset: int) -> bytes:
        if next(count) in (5, 11):
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    found: list[bytes] = []
    while (offset := sum(map(len, found))) < len(data):
        with contextlib.suppress(OSError):
            found.append(source.piece(offset))
    assert b"".join(found) == data
    assert next(count) > 14, "it failed twice"
    assert source.sha256() == hashlib.sha256(data).hexdigest()
    source.close()


def test_a_request_that_takes_all_the_time_hides_no_final_checkpoint_that_had_arrived(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server, Uploading(run, server.endpoints) as uploads:
        wait_for(lambda: uploads.report().accepted == 8, "all that there is")
        server.slow_s = 1.0
        run.metrics(31, 32)
        wait_for(lambda: server.requests[-1][1] == "metrics" and len(server.bodies) == 1, "one under way")
        report = uploads.finish({"status": "completed"}, 0.8)
    assert report.final_checkpoint is not None


def test_ten_thousand_samples_cost_no_more_each_than_a_hundred(tmp_path: Path) -> None:
    count = 10_000
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    spool = Spool(run.dir, "exp01", Endpoints(sample="s"))
    assert spool.open("job-1")
    queue = Queue(run.dir, Endpoints(sample="s"), spool, lambda seq, step: None)
    names: list[Any] = [f"samples/step-00000005-{number}.txt" for number in range(count)]
    for first in range(0, count, 100):
        run.log.emit("sample", step=5, paths=names[first : first + 100])
    began_s = time.thread_time()
    for number in range(count):
        queue.look()
        item = queue.next(Sample, None)
        assert item is not None
        assert item.name == f"step-00000005-{number}.txt"
        queue.done(item)
    assert not queue.pending()
    assert time.thread_time() - began_s < 3.0, "quadratic, it takes half a minute"
    spool.close()


def test_an_end_of_a_run_without_a_checkpoint_lacks_none(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    end(run, None)
    with tus_server(tmp_path) as server:
        assert send(run, server.endpoints, {"status": "completed"}).is_complete
    assert server.ends["job-1"]["final_checkpoint"] is None
