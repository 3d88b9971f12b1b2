"""`trn list`, `trn status`, `trn logs`: what they say of runs, jobs, and of what is not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.door import filled, open_door, row_of, until
from support.stand_in import Job, argv, metrics_line, publish
from trn.doors.cli import main
from trn.files import make_folder
from trn.jobs import job_log, open_store
from trn.records import json_line, read_lines

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRN_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


def trained(runs_dir: Path, run_id: str, *arguments: str) -> str:
    """A run that a stand-in made; returns the job's id."""
    row = row_of(runs_dir, run_id)
    with open_store(runs_dir) as store:
        open_door(store, row, argv(*arguments))
    return row.job_id


def answer(capsys: Capture, *arguments: str) -> Any:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def words(capsys: Capture, *arguments: str) -> list[str]:
    capsys.readouterr()
    assert main(arguments) == 0
    return capsys.readouterr().out.splitlines()


def error(capsys: Capture, *arguments: str) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


# list


def test_a_list_without_runs_is_empty_and_creates_nothing(runs_dir: Path, capsys: Capture) -> None:
    assert answer(capsys, "list") == []
    assert main(["list"]) == 0
    assert capsys.readouterr().err == f"There are no runs in {runs_dir}.\n"
    assert not runs_dir.exists()


def test_a_list_has_jobs_newest_first_with_what_became_of_them(runs_dir: Path, capsys: Capture) -> None:
    first = trained(runs_dir, "one", "--then", "die")
    second = trained(runs_dir, "one", "--then", "complete", "--from-step", "3")
    third = trained(runs_dir, "two", "--then", "refuse")
    rows = answer(capsys, "list")
    assert [(row["job_id"], row["run_id"], row["state"], row["exit_code"]) for row in rows] == [
        (third, "two", "rejected", 78),
        (second, "one", "completed", 0),
        (first, "one", "crashed", 71),
    ]
    assert len(answer(capsys, "list", "--limit", "2")) == 2
    lines = words(capsys, "list")
    assert lines[0].split() == ["RUN", "STATE", "EXIT", "SUBMITTED", "(UTC)", "JOB"]
    assert lines[1].split()[:3] == ["two", "rejected", "78"]


def test_a_run_that_cannot_be_read_is_said_to_be_so_and_the_list_goes_on(runs_dir: Path, capsys: Capture) -> None:
    trained(runs_dir, "good", "--then", "complete")
    row = row_of(runs_dir, "odd")
    with open_store(runs_dir) as store:
        store.add(row)
        store.advance(row.job_id, "running")
    reports = make_folder(runs_dir / "odd/reports")
    (reports / "outcome.json").symlink_to("/proc/self/mem")  # a read of it fails, even for root
    odd, good = answer(capsys, "list")
    assert (odd["run_id"], odd["state"], good["state"]) == ("odd", "running", "completed")
    assert odd["reason"] == f"its folder cannot be read: {runs_dir / 'odd'}: Input/output error"
    header, first, second = words(capsys, "list")
    assert header.split() == ["RUN", "STATE", "EXIT", "SUBMITTED", "(UTC)", "JOB"]
    assert first.startswith("odd   running")
    assert first.endswith(f"{row.job_id}  {odd['reason']}")
    assert second.split()[:3] == ["good", "completed", "0"]
    # a new job is not kept from starting either
    trained(runs_dir, "later", "--then", "complete")
    assert [row["state"] for row in answer(capsys, "list")] == ["completed", "running", "completed"]


def test_a_lost_store_costs_no_run(runs_dir: Path, capsys: Capture) -> None:
    job_id = trained(runs_dir, "one", "--then", "complete")
    trained(runs_dir, "two", "--then", "die")
    for path in (runs_dir / ".trn").iterdir():
        path.unlink() if path.is_file() else path.rmdir()
    rows = answer(capsys, "list")
    assert {(row["run_id"], row["state"]) for row in rows} == {("one", "completed"), ("two", "crashed")}
    assert answer(capsys, "status", "one")["job_id"] == job_id
    assert answer(capsys, "status", "one")["outcome"]["status"] == "completed"
    assert any("training from step 0 to 3" in line for line in words(capsys, "logs", "one"))


def test_a_running_job_is_listed_as_such_and_as_lost_when_it_is_killed(runs_dir: Path, capsys: Capture) -> None:
    row = row_of(runs_dir, "demo")
    with open_store(runs_dir) as store:
        store.add(row)
        store.advance(row.job_id, "running")
    child = subprocess.Popen(filled(argv("--then", "lock"), row), stdout=subprocess.DEVNULL)
    until((runs_dir / "demo" / "samples" / "step-00000003-text.txt").exists)
    assert answer(capsys, "list")[0]["state"] == "running"
    assert answer(capsys, "status", "demo")["state"] == "running"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert answer(capsys, "list")[0]["state"] == "lost"
    said = words(capsys, "status", "demo")
    assert "reason     nobody holds the run any more, and no outcome was written" in said
    assert f"next       trn resume {runs_dir / 'demo'}" in said
    with open_store(runs_dir) as store:
        found = store.get(row.job_id)
    assert found is not None
    assert found.state == "running"  # a reader does not write


def test_what_a_file_says_cannot_reach_the_terminal_raw(runs_dir: Path, capsys: Capture) -> None:
    with open_store(runs_dir) as store:
        store.add(row_of(runs_dir, "\x1b[2Jdemo"))
    assert "\x1b" not in "".join(words(capsys, "list"))


def listed(capsys: Capture, *arguments: str) -> list[str]:
    return [row["run_id"] for row in answer(capsys, "list", *arguments)]


def test_a_list_can_be_of_some_states_one_run_or_the_last_days(runs_dir: Path, capsys: Capture) -> None:
    old = row_of(runs_dir, "old", submitted_at="2026-01-01T00:00:00.000000Z")
    queued, dead = row_of(runs_dir, "queued", state="queued"), row_of(runs_dir, "dead", state="running")
    with open_store(runs_dir) as store:
        for row in (old, queued, dead):
            store.add(row)
        store.advance(old.job_id, "preempted", exit_code=75)
    done = [trained(runs_dir, "done", "--then", "complete") for _ in range(2)]
    publish(runs_dir / "copied", "job-copied").release()
    assert sorted(listed(capsys, "--state", "lost")) == ["copied", "dead"]
    assert listed(capsys, "--state", "running") == []
    assert listed(capsys, "--state", "open") == ["queued"]
    assert listed(capsys, "--state", "completed,queued") == ["done", "done", "queued"]
    assert listed(capsys, "--state", "completed", "--state", "preempted", "--limit", "1") == ["done"]
    assert sorted(listed(capsys, "--state", "failed")) == ["copied", "dead", "old"]
    assert [row["job_id"] for row in answer(capsys, "list", "--run", "done")] == [*reversed(done)]
    assert listed(capsys, "--run", "copied") == ["copied"]
    assert listed(capsys, "--run", "nobody") == []
    assert "old" not in listed(capsys, "--since", "2h")
    assert listed(capsys, "--since", "2026-01-01", "--run", "old") == ["old"]
    assert listed(capsys, "--since", "2026-01-01T02:00:00+01:00", "--run", "old") == []
    assert "no state is called 'runing'" in error(capsys, "list", "--state", "runing")
    assert "expected an age or a time, found 'soon'" in error(capsys, "list", "--since", "soon")


def test_a_list_is_of_twenty_unless_all_are_asked_for(runs_dir: Path, capsys: Capture) -> None:
    with open_store(runs_dir) as store:
        for number in range(22):
            store.add(row_of(runs_dir, f"run-{number:02}", state="queued"))
    assert listed(capsys) == [f"run-{number:02}" for number in range(21, 1, -1)]
    assert len(listed(capsys, "--all")) == 22


def test_a_list_shows_devices_and_launchers_where_there_are_any(runs_dir: Path, capsys: Capture) -> None:
    here = row_of(runs_dir, "here", state="queued", devices='["cuda:0","cpu:2"]')
    there = row_of(runs_dir, "there", state="queued", launcher="slurm", engine_id="4711")
    with open_store(runs_dir) as store:
        store.add(here)
        store.add(there)
    header, second, first = words(capsys, "list")
    assert header.split() == ["RUN", "STATE", "EXIT", "SUBMITTED", "(UTC)", "DEVICES", "LAUNCHER", "JOB"]
    assert "cuda:0,cpu:2" in first.split()
    assert "slurm 4711" in second
    assert [row["devices"] for row in answer(capsys, "list")] == [None, ["cuda:0", "cpu:2"]]


def test_a_list_without_a_store_is_the_same_and_says_so_once_its_index_is_damaged(
    runs_dir: Path, capsys: Capture
) -> None:
    first = trained(runs_dir, "one", "--then", "complete")
    trained(runs_dir, "two", "--then", "refuse")
    before = answer(capsys, "list")
    remove_store(runs_dir)
    paths = sorted(runs_dir.rglob("*"))
    assert main(["list", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == before
    assert captured.err == "trn: the job store was lost: 2 jobs are known from its index\n"
    assert sorted(runs_dir.rglob("*")) == paths, "a verb that reads makes nothing"
    index = runs_dir / "jobs/index.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join([lines[0][:40] + b"\n", b"\xff\n", b"[]\n", *lines[1:], b'{"torn']))
    assert main(["list", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == before
    assert captured.err.splitlines()[1:] == [f"trn: {index}: 3 damaged lines were left out"]
    index.unlink()
    assert [row["job_id"] for row in answer(capsys, "list")] == [first], "what was refused has no folder"


def remove_store(runs_dir: Path) -> None:
    for path in (runs_dir / ".trn").glob("jobs.*"):
        path.unlink()


# status


def test_status_shows_the_attempts_and_what_the_job_holds(runs_dir: Path, capsys: Capture) -> None:
    first = trained(runs_dir, "demo", "--then", "die")
    second = row_of(runs_dir, "demo", state="queued", launcher="slurm-of-old", engine_id="4711", devices='["cuda:0"]')
    with open_store(runs_dir) as store:
        store.add(second)
    said = words(capsys, "status", "demo")
    assert "state      queued" in said
    assert "devices    cuda:0" in said
    assert "launcher   slurm-of-old 4711" in said
    at = said.index("attempts   2")
    reason = "the runner was killed by SIGKILL without an outcome"
    assert said[at + 1].split("  ", 2)[2].strip().endswith(f"{first}  crashed (exit 71): {reason}")
    assert said[at + 2].endswith(f"{second.job_id}  queued")
    document = answer(capsys, "status", "demo")
    assert (document["exit_code"], document["devices"], document["engine_id"]) == (None, ["cuda:0"], "4711")
    assert [(row["state"], row["exit_code"]) for row in document["jobs"]] == [("crashed", 71), ("queued", None)]


def test_status_says_how_long_a_running_job_will_take(runs_dir: Path, capsys: Capture) -> None:
    row = row_of(runs_dir, "demo")
    with open_store(runs_dir) as store:
        store.add(row)
        store.advance(row.job_id, "running")
    lock = publish(runs_dir / "demo", row.job_id)
    job = Job(runs_dir / "demo", row.job_id)
    job.begin(1000, 0)
    job.train(500)
    assert answer(capsys, "status", "demo")["eta_s"] == pytest.approx(10.0)
    assert any(line.startswith("progress   step 500/1000") and "eta 0:10" in line for line in words(capsys, "status"))
    lock.release()
    assert answer(capsys, "status", "demo")["eta_s"] is None


def test_status_says_how_a_run_stands(runs_dir: Path, capsys: Capture) -> None:
    job_id = trained(runs_dir, "demo", "--then", "complete")
    said = words(capsys, "status", "demo")
    assert said[:6] == [
        "run        demo",
        "state      completed at step 3 (exit 0)",
        "progress   step 3/3  loss 1.667  lr 1.0e-03  1000 tokens/s  val_loss 2.5",
        "final      val_loss 2.5 (step 3)",
        "best       val_loss 2.25 (step 3)",
        f"job        {job_id}, submitted {answer(capsys, 'list')[0]['submitted_at']}",
    ]
    assert f"folder     {runs_dir / 'demo'}" in said
    document = answer(capsys, "status", "demo")
    assert document["metrics"]["step"] == document["step"] == document["max_steps"] == 3
    assert document["outcome"]["best"]["value"] == document["val_loss"] - 0.25 == 2.25


def test_a_run_is_named_by_its_id_a_job_of_it_or_its_path(
    runs_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = trained(runs_dir, "demo", "--then", "complete")
    by_id = answer(capsys, "status", "demo")
    assert by_id["job_id"] == job_id
    assert answer(capsys, "status", job_id) == by_id
    assert answer(capsys, "status", f"{runs_dir}/demo/") == by_id
    assert answer(capsys, "status") == by_id
    monkeypatch.delenv("TRN_RUNS_DIR")
    monkeypatch.chdir(runs_dir)
    assert answer(capsys, "status", "demo") == by_id
    assert answer(capsys, "status", "./demo") == by_id
    assert answer(capsys, "status", "demo", "--runs-dir", str(runs_dir)) == by_id


def test_status_says_when_the_data_hold_a_run_up_from_the_journals_end_alone(runs_dir: Path, capsys: Capture) -> None:
    trained(runs_dir, "demo", "--then", "complete")
    assert answer(capsys, "status", "demo")["data_wait"] is None
    assert not [line for line in words(capsys, "status", "demo") if line.startswith("data ")]
    journal = runs_dir / "demo/reports/train_metrics.jsonl"
    shown = {"epoch": 0, "train_loss": 1.0, "wall_ms": 50.0, "data_wait_ms": 25.0}
    with open(journal, "ab") as stream:
        stream.write(b"x" * 1_000_000 + b"\n")  # what nobody could take in, far before the end
        stream.writelines(json_line({"step": step, **shown}) for step in range(4, 300))
        stream.write(b'{"step": 300, "torn')
    report = answer(capsys, "status", "demo")
    assert report["data_wait"] == {"share": 0.5, "steps": 100}
    assert report["metrics"]["step"] == 299
    said = "50% of the last 100 steps was waiting for rows; see dataset.readahead, workers, cache (docs/data.md)"
    assert f"data       {said}" in words(capsys, "status", "demo")


def test_a_refused_job_does_not_hide_the_run_that_is_there(runs_dir: Path, capsys: Capture) -> None:
    trained(runs_dir, "demo", "--then", "complete")
    refused = trained(runs_dir, "demo", "--then", "refuse")
    assert answer(capsys, "status", "demo")["state"] == "completed"
    assert answer(capsys, "status", refused)["state"] == "rejected"
    assert answer(capsys, "status", refused)["outcome"] is None


def test_a_job_that_was_refused_has_a_status_without_a_folder(runs_dir: Path, capsys: Capture) -> None:
    trained(runs_dir, "demo", "--then", "refuse")
    said = words(capsys, "status", "demo")
    assert "state      rejected (exit 78)" in said
    assert "reason     plan error [plan_refused] at seed: no such thing." in said
    assert f"folder     {runs_dir / 'demo'} (never made)" in said


def test_unknown_names_are_answered_with_the_nearest(runs_dir: Path, capsys: Capture) -> None:
    assert "there are no runs here" in error(capsys, "status", "demo")
    assert "there are no runs here" in error(capsys, "status")
    trained(runs_dir, "demo-a", "--then", "complete")
    assert "no run or job is called 'demo-b'. Nearest: demo-a." in error(capsys, "status", "demo-b")
    assert "The newest runs: demo-a." in error(capsys, "status", "zzz")
    assert "there is no such folder" in error(capsys, "status", "./demo-a")
    assert "there is no plan in it" in error(capsys, "status", "/")


@pytest.mark.parametrize("name", ["../demo", "jobs", "logs", ".trn", "..", "", "a\x1b[2Jb", "-x", "a" * 65])
def test_names_that_are_no_ids_reach_nothing(runs_dir: Path, capsys: Capture, name: str) -> None:
    trained(runs_dir, "demo", "--then", "complete")
    publish(runs_dir.parent / "demo", "job-outside").release()  # where `../demo` would lead if it were an id
    said = error(capsys, "logs", "--", name)
    assert said.startswith("usage error [usage] at ")
    assert "\x1b" not in said


def test_a_link_to_a_run_is_no_run(runs_dir: Path, capsys: Capture, tmp_path: Path) -> None:
    trained(tmp_path / "other", "secret", "--then", "complete")
    make_folder(runs_dir)
    (runs_dir / "link").symlink_to(tmp_path / "other" / "secret")
    assert "no run or job is called 'link'" in error(capsys, "status", "link")


# logs


def test_logs_tell_the_story_with_the_steps_condensed(runs_dir: Path, capsys: Capture) -> None:
    trained(runs_dir, "demo", "--then", "complete")
    said = [line[21:] for line in words(capsys, "logs", "demo")]
    assert said[0] == "planned, fingerprint ffffffffffff"
    assert said[2:7] == [
        "training from step 0 to 3",
        "step 3/3  loss 1.667  lr 1.0e-03  1000 tokens/s",
        "evaluated at step 3: val_loss 2.5",
        "checkpoint step-00000003.pt at step 3 (7 bytes)",
        "sample at step 3: samples/step-00000003-text.txt",
    ]
    assert said[7] == "completed at step 3 (exit 0)"
    assert [line for line in words(capsys, "logs", "demo") if line.startswith("| ")] == [
        f"| the trainer prints step {n}" for n in (1, 2, 3)
    ]


def test_logs_of_one_kind_and_raw_lines(runs_dir: Path, capsys: Capture) -> None:
    trained(runs_dir, "demo", "--then", "complete")
    reports = runs_dir / "demo" / "reports"
    assert len(words(capsys, "logs", "demo", "--metrics")) == 3
    assert words(capsys, "logs", "demo", "--output") == [f"the trainer prints step {n}" for n in (1, 2, 3)]
    assert len(words(capsys, "logs", "demo", "--events")) == len(list(read_lines(reports / "events.jsonl")))
    for options, name in (([], "events"), (["--events"], "events"), (["--metrics"], "train_metrics")):
        assert main(["logs", "demo", "--json", *options]) == 0
        assert capsys.readouterr().out == (reports / f"{name}.jsonl").read_text()
    assert "the output is no JSON" in error(capsys, "logs", "demo", "--output", "--json")


def test_a_long_story_keeps_its_order(runs_dir: Path, capsys: Capture) -> None:
    """More metrics than one read gives, and steps that a resume did again."""
    publish(runs_dir / "demo", "job-1").release()
    job = Job(runs_dir / "demo", "job-1")
    job.begin(9000, 0)
    for step in range(1, 9001):
        job.metrics.append(metrics_line(step, 1.0))
        if step % 1000 == 0:
            job.events.emit("checkpoint", step=step, file=f"step-{step:08}.pt", sha256="a", size_bytes=1)
    job.end("preempted")
    lines = [line[21:] for line in words(capsys, "logs", "demo")]
    steps = [line.split()[1] for line in lines if line.startswith("step ")]
    assert steps == [f"{step}/9000" for step in range(1000, 9001, 1000)]
    assert [line.split()[0] for line in lines[3:7]] == ["step", "checkpoint", "step", "checkpoint"]


def test_followed_logs_end_with_the_job(runs_dir: Path) -> None:
    row = row_of(runs_dir, "demo")
    with open_store(runs_dir) as store:
        store.add(row)
        store.advance(row.job_id, "running")
    log = job_log(runs_dir, row)
    make_folder(log.parent)
    with open(log, "wb") as output:
        child = subprocess.Popen(filled(argv("--then", "wait"), row), stdout=output)
    until((runs_dir / "demo" / "samples" / "step-00000003-text.txt").exists)
    command = [sys.executable, "-m", "trn.doors.cli", "logs", "-f", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        for line in follower.stdout:
            if line.startswith("| the trainer prints step 3"):
                child.send_signal(signal.SIGTERM)
                break
        rest = follower.stdout.read()
        assert follower.wait(30) == 0
    child.wait()
    assert "preempted at step 3 (exit 75): SIGTERM" in rest


@pytest.mark.parametrize("name", ["events.jsonl", "train_metrics.jsonl"])
@pytest.mark.parametrize("verb", ["status", "logs"])
def test_a_pipe_in_the_place_of_a_journal_is_not_waited_for(
    runs_dir: Path, capsys: Capture, verb: str, name: str
) -> None:
    trained(runs_dir, "demo", "--then", "complete")
    path = runs_dir / "demo/reports" / name
    path.unlink()
    os.mkfifo(path)
    capsys.readouterr()
    assert main([verb, "demo"]) in (0, 74)
    assert capsys.readouterr().err in ("", "storage error [io_error]: Illegal seek.\n")
