"""Uploads of a toy run to a real server: what arrives, how often, and what is told of it."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from support.sending import ToyRun, wait_for
from support.tus import Uploading, commit, end, full_run, lines_of, on_disk, send, tus_server
from trn.errors import Stopped
from trn.files import sha256_file
from trn.records import from_json
from trn.transfer.client import Client
from trn.worker import upload_artifacts, upload_source
from trn.worker.upload_artifacts import Artifact
from trn.worker.upload_http import Over, Sender, Upload
from trn.worker.upload_source import Pace, Source
from trn.worker.uploading import Endpoints

pytestmark = pytest.mark.timeout(60)


def test_all_of_a_run_arrives_once_with_its_digests(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        report = send(run, server.endpoints, {"status": "completed"})
    assert report.is_complete
    assert report.reason == ""
    assert server.whole() == on_disk(run)
    assert report.accepted == len(on_disk(run)) == 8
    assert all(one.received == one.length for one in server.uploads.values())
    assert server.lines == lines_of(run)
    assert server.bodies[0]["cut_above_step"] == 0


def test_the_end_names_the_one_final_checkpoint_with_the_name_that_the_server_gave_it(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        report = send(run, server.endpoints, lambda report: {"status": "completed", "left": report.pending})
    final = server.ends["job-1"]["final_checkpoint"]
    assert final == report.final_checkpoint
    assert (final["name"], final["size_bytes"]) == ("step-00000020.pt", 300_000)
    assert ("checkpoint", final["name"], final["sha256"]) in server.whole()
    assert final["ref"].startswith("ref-")
    assert server.ends["job-1"]["left"] == 0
    assert server.finals() == ["step-00000020.pt"]


def test_a_meta_comes_after_all_that_it_speaks_of(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        send(run, server.endpoints)
    kinds = [one.told["kind"] for one in server.uploads.values() if one.told["step"] == "10"]
    assert kinds == ["checkpoint", "folder-file", "folder-file", "meta"]


def test_the_next_start_sends_nothing_again_and_asks_nothing(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        assert send(run, server.endpoints, {"status": "completed"}).is_complete
        server.requests.clear()
        again = send(run, server.endpoints, {"status": "completed"})
        assert server.requests == []
        other = send(run, server.endpoints, {"status": "completed"}, job_id="job-2")
        assert [(method, place) for method, place, _ in server.requests] == [("POST", "terminal")]
    assert again.is_complete
    assert other.is_complete
    assert other.final_checkpoint == again.final_checkpoint is not None
    assert list(server.ends) == ["job-1", "job-2"]


def test_a_lost_spool_costs_questions_and_no_bytes(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        send(run, server.endpoints)
        shutil.rmtree(tmp_path / "runs" / ".trn")
        assert send(run, server.endpoints).is_complete
    assert all(one.received == one.length for one in server.uploads.values())
    assert server.lines == lines_of(run), "the metrics are sent anew, after a cut to the beginning"


def test_what_is_made_while_it_sends_arrives_before_the_end(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    with tus_server(tmp_path) as server, Uploading(run, server.endpoints) as uploads:
        run.emit(1, "plan_written")
        run.metrics(1, 5)
        wait_for(lambda: len(server.lines) == 5, "the first lines")
        commit(run, 5)
        wait_for(lambda: len(server.whole()) == 2, "the first checkpoint")
        run.metrics(6, 9)
        end(run, commit(run, 9))
        assert uploads.finish(None, 20).is_complete
        assert server.lines == lines_of(run)
        assert server.whole() == on_disk(run)


def test_places_that_are_not_named_get_nothing_and_nothing_waits_for_them(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        report = send(run, Endpoints(terminal=f"{server.url}/terminal"), {"status": "completed"})
    assert report.is_complete
    assert {place for _, place, _ in server.requests} == {"terminal"}
    assert server.ends["job-1"]["final_checkpoint"]["ref"] is None


def test_a_run_that_never_began_tells_its_end_alone(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    shutil.rmtree(run.dir)
    with tus_server(tmp_path) as server:
        assert send(run, server.endpoints, {"status": "plan_refused"}).is_complete
    assert server.ends["job-1"] == {"status": "plan_refused", "final_checkpoint": None}


# the run goes back


def test_a_resume_takes_back_the_steps_above_it(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    with tus_server(tmp_path) as server, Uploading(run, server.endpoints) as uploads:
        run.metrics(1, 20)
        wait_for(lambda: len(server.lines) == 20, "twenty lines")
        run.cut(10)
        run.log.emit("resumed", from_step=10, checkpoint=None, named=False)
        run.metrics(11, 25, wall_ms=7)
        assert uploads.finish(None, 20).is_complete
    assert server.lines == lines_of(run)
    assert [body["cut_above_step"] for body in server.bodies if body["cut_above_step"] is not None] == [0, 10]


def test_a_resume_that_is_followed_by_no_step_is_told_too(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    run.metrics(1, 20)
    with tus_server(tmp_path) as server:
        send(run, server.endpoints)
        run.cut(10)
        run.log.emit("resumed", from_step=10, checkpoint=None, named=False)
        send(run, server.endpoints)
    assert server.lines == lines_of(run)


def test_a_batch_without_an_answer_is_repeated_as_it_was_or_taken_back(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    run.metrics(1, 20)
    with tus_server(tmp_path) as server:
        server.answer("POST", "metrics", 503, times=100)
        with Uploading(run, server.endpoints):
            wait_for(lambda: len(server.requests) > 1, "two tries")
        first = [headers["idempotency-key"] for _, place, headers in server.requests if place == "metrics"]
        assert len(set(first)) == 1
        server.answers.clear()
        run.metrics(21, 22)
        assert send(run, server.endpoints, job_id="job-2").is_complete
        assert server.metrics_keys[0] == first[0]
        assert server.bodies[0]["job_id"] == "job-1"
        assert server.lines == lines_of(run)

        run.metrics(23, 40)
        server.answer("POST", "metrics", 503, times=100)
        server.requests.clear()
        with Uploading(run, server.endpoints):
            wait_for(lambda: server.requests, "a try")
        server.lines += lines_of(run)[22:]  # it took them, and did not say so
        server.answers.clear()
        run.cut(30)
        run.log.emit("resumed", from_step=30, checkpoint=None, named=False)
        run.metrics(31, 35, wall_ms=3)
        assert send(run, server.endpoints).is_complete
    assert server.lines == lines_of(run)


def test_a_run_that_begins_anew_under_its_name_is_sent_anew(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        send(run, server.endpoints)
        shutil.rmtree(run.dir)
        again = full_run(tmp_path, "world")
        assert send(again, server.endpoints).is_complete
    assert server.lines == lines_of(again)
    assert set(on_disk(again)) <= set(server.whole())


def test_a_checkpoint_that_is_made_again_after_a_resume_is_sent_again(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        send(run, server.endpoints)
        end(run, commit(run, 20, b"other bytes"))
        report = send(run, server.endpoints)
    assert report.is_complete
    assert report.final_checkpoint is not None
    assert set(on_disk(run)) <= set(server.whole())
    assert len([one for one in server.whole() if one[1] == "step-00000020.pt"]) == 2


# what is pruned


def remove(run: ToyRun, step: int) -> None:
    for path in (run.dir / "checkpoints").glob(f"step-{step:08d}.*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_checkpoints_that_were_pruned_before_they_could_be_sent_are_counted(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    remove(run, 10)
    with tus_server(tmp_path) as server:
        for _ in range(2):
            report = send(run, server.endpoints)
            assert report.is_complete
            assert report.skipped == 1
    assert server.whole() == on_disk(run)


def test_a_checkpoint_that_is_pruned_while_it_is_sent_arrives_whole(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    commit(run, 10, bytes(9 << 20), files={"a": b"1" * 100, "b": b"2"})
    before = on_disk(run)
    with tus_server(tmp_path, slow_s=0.02) as server, Uploading(run, server.endpoints) as uploads:
        wait_for(lambda: server.sent_bytes("step-00000010.pt") > 0, "the first bytes")
        remove(run, 10)
        report = uploads.finish(None, 20)
    assert report.is_complete
    assert report.skipped == 0
    assert server.whole() == before


def test_of_a_folder_of_too_many_files_some_are_opened_late_and_may_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_artifacts, "_HELD_OPEN", 2)
    run = full_run(tmp_path)
    commit(run, 30, files={name: name.encode() for name in "abcde"})
    before = on_disk(run)
    with tus_server(tmp_path) as server:
        assert send(run, server.endpoints).is_complete
        assert server.whole() == before
        commit(run, 40, files={name: name.encode() for name in "abcde"})
        (run.dir / "checkpoints" / "step-00000040.files" / "c").unlink()
        report = send(run, server.endpoints)
    assert report.failed == ("step-00000040.pt: step-00000040.files/c is missing, and the meta is there",)
    names = [name for _, name, _ in server.whole()]
    assert "step-00000040.files/b" in names, "of which nobody knew yet that another is gone"
    assert "step-00000040.meta.json" not in names


def test_a_damaged_checkpoint_never_becomes_whole_at_the_other_end(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    path = run.dir / "checkpoints" / "step-00000020.pt"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with tus_server(tmp_path) as server:
        report = send(run, server.endpoints)
    assert not report.is_complete
    assert [line for line in report.failed if "step-00000020.pt" in line and "sha256" in line] == list(report.failed)
    assert report.final_checkpoint is None
    assert server.sent_bytes("step-00000020.pt") == 0, "its only piece was the last"
    assert server.sent_bytes("step-00000020.meta.json") == 0


# the lease


def test_after_abandon_nothing_more_is_sent_not_even_the_rest_of_a_file(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    commit(run, 10, bytes(12 << 20))
    with tus_server(tmp_path, slow_s=0.15) as server, Uploading(run, server.endpoints) as uploads:
        wait_for(lambda: server.sent_bytes("step-00000010.pt") > 0, "the first bytes")
        uploads.abandon()
        report = uploads.finish({"status": "preempted"}, 5)
        count = len(server.requests)
        time.sleep(0.2)
        assert len(server.requests) == count
    assert not report.is_complete
    assert server.whole() == []
    assert server.ends == {}


def test_a_piece_that_is_under_way_ends_where_the_uploads_do(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2 << 20))
    artifact = Artifact("sample", "file", 1, 2 << 20, sha256_file(path))
    asked = itertools.count(1)
    pace = Pace(None, time.sleep)
    source = Source(os.open(path, os.O_RDONLY), artifact.size_bytes, pace)
    with tus_server(tmp_path) as server:
        # three requests are let out, and of the body of the third, two reads
        sender = Sender(Client(None, frozenset()), dict, lambda: next(asked) > 5)
        upload = Upload(sender, server.endpoints.sample, artifact, source, {"run_id": "exp01", "job_id": "job-1"})
        assert [upload.step(), upload.step()] == [False, False]
        with pytest.raises(Over):
            upload.step()
        wait_for(lambda: server.sent_bytes("file") == 2 * (256 << 10), "what had been sent")
    source.close()


def test_a_source_gives_any_piece_and_the_digest_of_all_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_source, "PIECE_BYTES", 1000)
    rng = random.Random(1)
    data = rng.randbytes(9_500)
    (tmp_path / "file").write_bytes(data)
    source = Source(os.open(tmp_path / "file", os.O_RDONLY), len(data), Pace(None, time.sleep))
    for offset in [0, 1000, 1000, 1500, 2000, 700, 9000, 0, *(rng.randrange(len(data)) for _ in range(200))]:
        piece = source.piece(offset)
        end = offset + len(piece)
        assert piece == data[offset:end] != b""
        assert source.sha256() == hashlib.sha256(data[:end]).hexdigest()
    source.close()


def test_a_worker_of_an_older_generation_is_fenced_and_says_so_once(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path, generation=2) as server:
        uploading = Uploading(run, server.endpoints, headers=lambda: {"Lease-Id": "a", "Lease-Generation": "1"})
        with uploading as uploads:
            report = uploads.finish({"status": "completed"}, 10)
    assert report.is_fenced
    assert not report.is_complete
    assert len(server.requests) == 1
    assert len(uploading.said) == 1


def test_a_lease_that_knows_that_it_is_lost_lets_nothing_out(tmp_path: Path) -> None:
    def lost() -> dict[str, str]:
        raise Stopped("preempted", "the lease is over")

    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        report = send(run, server.endpoints, {"status": "completed"}, headers=lost)
    assert report.is_fenced
    assert "the lease is over" in report.reason
    assert server.requests == []


# two at once, and the disk


def test_two_processes_never_send_one_run_at_the_same_time(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server, Uploading(run, server.endpoints) as first:
        wait_for(lambda: first.report().accepted == 8, "the first to send all")
        second = send(run, server.endpoints, deadline_s=0.2)
        assert not second.is_complete
        assert "another process" in second.reason
        assert first.finish(None, 5).is_complete


def test_a_spool_that_is_no_json_is_as_good_as_none(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server:
        send(run, server.endpoints)
        (state,) = (tmp_path / "runs" / ".trn" / "uploads" / "exp01").glob("*/state.json")
        assert from_json(state.read_bytes())["batches"] == 1
        for content in (
            b"",
            b"[]",
            b'{"schema_version": 1}',
            state.read_bytes().replace(b'"batches": 1', b'"batches": -1'),
        ):
            state.write_bytes(content)
            state.with_name("settled.jsonl").write_bytes(b'{"torn": \n[1]\nnull\n{"kind"')
            assert send(run, server.endpoints).is_complete
    assert all(one.received == one.length for one in server.uploads.values())
    assert server.lines == lines_of(run)


def test_a_run_that_cannot_be_read_is_not_called_complete(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    away = run.dir / "away"
    run.events_file.rename(away)
    run.events_file.symlink_to(run.events_file)  # a loop
    with tus_server(tmp_path) as server:
        report = send(run, server.endpoints, deadline_s=0.5)
        assert not report.is_complete
        assert report.reason == "1 not sent in time (the run's folder: Too many levels of symbolic links)"
        run.events_file.unlink()
        away.rename(run.events_file)
        assert send(run, server.endpoints).is_complete


def test_reading_is_held_to_the_pace_that_is_asked_for(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    commit(run, 10, bytes(2 << 20))
    with tus_server(tmp_path) as server:
        began_s = time.monotonic()
        assert send(run, server.endpoints, max_bytes_per_s=4 << 20).is_complete
    assert 0.45 < time.monotonic() - began_s < 10


def test_the_end_may_be_told_in_a_second_call(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    with tus_server(tmp_path) as server, Uploading(run, server.endpoints) as uploads:
        first = uploads.finish(None, 20)
        assert first.is_complete
        assert server.ends == {}
        second = uploads.finish({"status": "completed", "final_checkpoint": first.final_checkpoint}, 20)
        assert second.is_complete
        assert list(server.ends) == ["job-1"]


def test_a_server_is_a_tus_server(tmp_path: Path) -> None:
    """What the requests are made of, word for word."""
    run = ToyRun(tmp_path / "runs")
    run.emit(1, "plan_written")
    commit(run, 1, b"12345")
    with tus_server(tmp_path) as server:
        send(run, server.endpoints, headers=lambda: {"Lease-Id": "L", "Lease-Generation": "7"})
    create, look, patch = (headers for _, _, headers in server.requests[:3])
    assert [method for method, _, _ in server.requests[:3]] == ["POST", "HEAD", "PATCH"]
    assert {one["tus-resumable"] for one in (create, look, patch)} == {"1.0.0"}
    assert {one["lease-generation"] for one in (create, look, patch)} == {"7"}
    assert (create["upload-length"], create["content-length"]) == ("5", "0")
    assert (patch["upload-offset"], patch["content-type"]) == ("0", "application/offset+octet-stream")
    (told, *_) = (one.told for one in server.uploads.values())
    assert set(told) == {"run_id", "job_id", "kind", "name", "step", "sha256", "final"}
