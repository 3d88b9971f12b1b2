"""`trn gc`: what it shows, what it frees, and all that it must never touch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from support.compare import assert_identical
from support.door import row_of
from support.forkserver import ForkServer
from support.job import command, write_job
from support.stand_in import metrics_line, outcome_of_job
from trn import files
from trn.checkpoint.meta import CheckpointMeta, checkpoint_name, listed_steps, meta_name
from trn.doors.cli import main
from trn.doors.disk import freed_bytes
from trn.files import AppendLog, Lock, link_atomic, make_folder, write_atomic
from trn.jobs import job_log, launch_lock, open_store
from trn.journal import EventLog
from trn.records import Position, cancel_path, new_job_id, pretty_json, read_json
from trn.verify import verify_run

Capture = pytest.CaptureFixture[str]

PLAN = "f" * 64
WEIGHTS = 1000


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    files.set_fault(None)


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRN_RUNS_DIR", str(tmp_path / "runs"))
    return make_folder(tmp_path / "runs")


def run_of(
    runs_dir: Path,
    run_id: str,
    steps: Sequence[int],
    *,
    status: str | None = "completed",
    best: int | None = None,
) -> Path:
    """The folder of a run whose checkpoints are whole; `status` None: it has no outcome."""
    run_dir = runs_dir / run_id
    for name in ("checkpoints", "reports", "samples"):
        make_folder(run_dir / name)
    plan = {"fingerprint": PLAN, "earlier_fingerprints": []}
    write_atomic(run_dir / "reports" / "resolved_config.json", pretty_json(plan))
    events = EventLog(run_dir / "reports" / "events.jsonl", run_id=run_id, job_id="job-1")
    metrics = AppendLog(run_dir / "reports" / "train_metrics.jsonl")
    for step in range(1, max(steps, default=0) + 1):
        metrics.append(metrics_line(step, 1.0))
        if step in steps:
            commit(run_dir, step, Position(metrics.offset, metrics.sha256, step))
            events.emit("checkpoint", step=step, file=checkpoint_name(step), sha256="", size_bytes=WEIGHTS)
    for hint, step in (("last", max(steps, default=None)), ("best", best)):
        for name in (meta_name, checkpoint_name) if step else ():
            suffix = ".meta.json" if name is meta_name else ".pt"
            link_atomic(run_dir / "checkpoints" / name(step), run_dir / "checkpoints" / f"{hint}{suffix}")
    if status is not None:
        outcome = outcome_of_job(run_dir, "job-1", status, max(steps))
        newest = {"file": f"checkpoints/{checkpoint_name(max(steps))}", "sha256": "", "step": max(steps)}
        value = outcome.to_json() | {"checkpoint": newest, "best": None}
        write_atomic(run_dir / "reports" / "outcome.json", pretty_json(value))
    (run_dir / ".lock").write_text("pid=1 job=job-1")
    return run_dir


def commit(run_dir: Path, step: int, position: Position) -> None:
    weights = bytes([step % 256]) * WEIGHTS
    meta = CheckpointMeta(
        file=checkpoint_name(step),
        sha256=hashlib.sha256(weights).hexdigest(),
        size_bytes=len(weights),
        step=step,
        epoch=0,
        run_id=run_dir.name,
        job_id="job-1",
        plan_fingerprint=PLAN,
        created_at="2026-01-01T00:00:00.000000Z",
        metrics={},
        journal={"train_metrics.jsonl": {"offset": position.offset, "sha256": position.sha256, "lines": step}},
        progress={},
        rng=[],
    )
    write_atomic(run_dir / "checkpoints" / checkpoint_name(step), weights)
    write_atomic(run_dir / "checkpoints" / meta_name(step), meta.to_bytes())


def put(path: Path, size: int = 10) -> Path:
    make_folder(path.parent)
    path.write_bytes(b"x" * size)
    return path


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Everything below a folder, with what tells whether it was touched."""
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        found[str(path.relative_to(folder))] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return found


def answer(capsys: Capture, *arguments: str, status: int = 0) -> Any:
    capsys.readouterr()
    assert main(["gc", "--json", *arguments]) == status
    return json.loads(capsys.readouterr().out)


def items(document: Any, run_id: str | None = None) -> dict[str, list[str]]:
    """Kind -> paths, of one run or of what lies beside the runs."""
    rows = document["beside"]
    if run_id is not None:
        (rows,) = [run["items"] for run in document["runs"] if run["run_id"] == run_id]
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["kind"], []).extend(row["paths"])
    return found


def kept(document: Any) -> str | None:
    (run,) = document["runs"]
    reason: str | None = run["kept"]
    return reason


# what it shows


def test_no_runs_are_no_error_and_nothing_is_made(tmp_path: Path, capsys: Capture) -> None:
    document = answer(capsys, "--runs-dir", str(tmp_path / "nothing"), "--yes")
    assert (document["runs"], document["beside"], document["size_bytes"]) == ([], [], 0)
    assert os.listdir(tmp_path) == []


def test_without_yes_nothing_is_changed(runs_dir: Path, capsys: Capture) -> None:
    run_dir = run_of(runs_dir, "demo", [1, 2, 3, 4], best=1)
    put(run_dir / "checkpoints" / "abandoned-job-1" / "step-00000009.pt")
    put(run_dir / "reports" / "train_metrics.cut-job-1.jsonl")
    before = tree(runs_dir)
    document = answer(capsys)
    assert document["changed"] is False
    assert document["freed_bytes"] == 0
    assert document["freeable_bytes"] == sum(row["size_bytes"] for row in document["runs"][0]["items"]) > WEIGHTS
    assert main(["gc"]) == 0
    said = capsys.readouterr().out
    assert "demo/checkpoints/step-00000002.meta.json demo/checkpoints/step-00000002.pt: older than the newest" in said
    assert "can be freed; nothing was changed, --yes frees it." in said
    assert tree(runs_dir) == before


def test_a_file_with_several_names_occupies_its_bytes_once(runs_dir: Path, capsys: Capture) -> None:
    run_dir = run_of(runs_dir, "demo", [1, 2])
    (run,) = answer(capsys)["runs"]
    sizes = {path.stat().st_ino: path.stat().st_size for path in run_dir.rglob("*") if path.is_file()}
    assert run["size_bytes"] == sum(sizes.values()) < sum(p.stat().st_size for p in run_dir.rglob("*") if p.is_file())


def test_what_has_another_name_elsewhere_is_not_counted_as_freed(runs_dir: Path, capsys: Capture) -> None:
    run_dir = run_of(runs_dir, "demo", [1, 2, 3])
    os.link(run_dir / "checkpoints" / checkpoint_name(1), runs_dir.parent / "mine.pt")
    document = answer(capsys, "--yes")
    assert document["freed_bytes"] < WEIGHTS
    assert (runs_dir.parent / "mine.pt").stat().st_size == WEIGHTS
    twice = run_dir / "checkpoints" / "abandoned-job-1"
    put(twice / "step-00000008.pt")
    os.link(twice / "step-00000008.pt", twice / "step-00000009.pt")
    assert answer(capsys, "--yes")["freed_bytes"] == 10


def test_a_name_that_is_not_there_is_refused(runs_dir: Path, capsys: Capture) -> None:
    run_of(runs_dir, "demo", [1])
    assert main(["gc", "demo", "demos"]) == 2
    assert "Nearest: demo" in capsys.readouterr().err
    assert main(["gc", "--older-than", "-1"]) == 2


# what it frees


def test_of_a_finished_run_the_newest_two_and_the_best_stay(runs_dir: Path, capsys: Capture) -> None:
    run_dir = run_of(runs_dir, "demo", [1, 2, 3, 4, 5], best=2)
    document = answer(capsys, "--yes")
    assert listed_steps(run_dir / "checkpoints") == [5, 4, 2]
    left = {name(step) for step in (2, 4, 5) for name in (meta_name, checkpoint_name)}
    hints = {"best.meta.json", "best.pt", "last.meta.json", "last.pt"}
    assert set(os.listdir(run_dir / "checkpoints")) == left | hints
    assert items(document, "demo") == {
        "checkpoint": [f"demo/checkpoints/{name(step)}" for step in (3, 1) for name in (meta_name, checkpoint_name)]
    }
    assert document["freed_bytes"] > 2 * WEIGHTS
    again = answer(capsys, "--yes")
    assert again["freed_bytes"] == 0
    assert again["size_bytes"] == document["size_bytes"] - document["freed_bytes"]


@pytest.mark.parametrize("how", ["outcome", "progress"])
def test_the_best_stays_however_it_is_known(runs_dir: Path, capsys: Capture, how: str) -> None:
    run_dir = run_of(runs_dir, "demo", [1, 2, 3, 4, 5], best=2)
    path = run_dir / "reports" / "outcome.json"
    if how == "outcome":
        for name in ("best.pt", "best.meta.json"):
            (run_dir / "checkpoints" / name).unlink()
        value = read_json(path) | {"best": {"step": 2, "metric": "val_loss", "value": 1.0}}
        write_atomic(path, pretty_json(value))
    else:  # a pair of two checkpoints, as a crash between two renames leaves it
        link_atomic(run_dir / "checkpoints" / checkpoint_name(3), run_dir / "checkpoints" / "best.pt")
    answer(capsys, "--yes")
    assert listed_steps(run_dir / "checkpoints") == ([5, 4, 2] if how == "outcome" else [5, 4, 3, 2])


@pytest.mark.parametrize("status", [None, "preempted", "crashed"])
def test_a_run_that_is_not_finished_keeps_its_checkpoints(runs_dir: Path, capsys: Capture, status: str | None) -> None:
    run_dir = run_of(runs_dir, "demo", [1, 2, 3, 4, 5], status=status)
    abandoned = put(run_dir / "checkpoints" / "abandoned-job-1" / "step-00000009.pt").parent
    put(abandoned / "epoch-007.pt")
    put(abandoned / "epoch-007.metadata.json")
    cut = put(run_dir / "reports" / "val_metrics.cut-job-1.jsonl")
    document = answer(capsys, "--yes")
    assert listed_steps(run_dir / "checkpoints") == [5, 4, 3, 2, 1]
    assert set(items(document, "demo")) == {"abandoned", "metrics_cut"}
    assert not abandoned.exists()
    assert not cut.exists()


def test_what_crashed_writers_left_goes_and_nothing_that_only_looks_like_it(runs_dir: Path, capsys: Capture) -> None:
    run_dir = run_of(runs_dir, "demo", [1, 2], status=None)
    checkpoints, reports = run_dir / "checkpoints", run_dir / "reports"
    gone = [
        put(run_dir / ".config_source.yaml.tmp-12-0"),
        put(reports / ".outcome.json.tmp-12-3"),
        put(reports / "outcomes" / ".job-1.json.tmp-12-3"),
        put(reports / "plans" / ".0.json.tmp-12-3"),
        put(run_dir / "samples" / ".step-00000001-a.txt.tmp-1-1"),
        put(checkpoints / ".step-00000003.pt.tmp-12-0"),
        put(checkpoints / ".trash-step-00000001.pt"),
        put(checkpoints / ".trash-step-00000001.meta.json"),
        put(checkpoints / "step-00000003.pt"),
    ]
    stay = [
        put(run_dir / ".notes"),
        put(run_dir / ".x.tmp-me"),
        put(run_dir / "x.tmp-1-1"),
        put(run_dir / "notes" / ".x.tmp-1-1"),
        put(reports / "train_metrics.cut-.jsonl.bak"),
        put(reports / "loss.cut-job-1.jsonl"),
        put(reports / ".trash-step-00000001.pt"),
        put(checkpoints / ".trash-notes"),
        put(checkpoints / "step-3.pt"),
        put(checkpoints / "step-00000003.pt.bak"),
        put(checkpoints / "mine.pt"),
        put(checkpoints / "abandoned" / "step-00000003.pt"),
        put(checkpoints / "abandoned-job-2" / "notes.txt"),
        put(checkpoints / "abandoned-job-2" / "step-00000003.pt"),
        put(checkpoints / "abandoned-job-3" / "more" / "step-00000003.pt"),
        put(run_dir / "abandoned-job-4" / "step-00000003.pt"),
        put(run_dir / "samples" / "step-00000001-a.txt"),
        put(runs_dir / "notes" / "checkpoints" / "abandoned-job-1" / "step-00000003.pt"),
        put(runs_dir / "notes" / ".x.tmp-1-1"),
        put(runs_dir / ".x.tmp-1-1"),
    ]
    document = answer(capsys, "--yes")
    assert {kind: len(paths) for kind, paths in items(document, "demo").items()} == {"leftover": len(gone)}
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in stay)


def test_a_run_that_died_while_it_was_planned_goes_and_one_at_work_stays(runs_dir: Path, capsys: Capture) -> None:
    staging = runs_dir / ".trn" / "staging"
    for name, note in (("job-dead", "pid=1 job=job-dead"), ("job-new", ""), ("job-alive", "pid=1 job=job-alive")):
        put(staging / name / "reports" / "resolved_config.json")
        put(staging / name / ".lock", 0).write_text(note)
    put(staging / "notes" / "mine")
    alive = Lock(staging / "job-alive" / ".lock")
    assert alive.acquire("pid=1 job=job-alive")
    document = answer(capsys, "--yes")
    assert items(document) == {"staging": [".trn/staging/job-dead"]}
    assert sorted(os.listdir(staging)) == ["job-alive", "job-new", "notes"]
    alive.release()


def test_a_wish_to_cancel_goes_once_its_job_has_ended(runs_dir: Path, capsys: Capture) -> None:
    waiting, ended = row_of(runs_dir, "one"), row_of(runs_dir, "two")
    with open_store(runs_dir) as store:
        for row in (waiting, ended):
            store.add(row)
        store.advance(ended.job_id, "completed")
    own_loop = Lock(run_of(runs_dir, "three", [1]) / ".lock")
    assert own_loop.acquire("pid=1 job=job-own generation=1")
    door = Lock(launch_lock(runs_dir, waiting.job_id))
    make_folder(door.path.parent)
    assert door.acquire()
    names = ["job-killed", "job-own", waiting.job_id, ended.job_id]
    for name in names:
        put(cancel_path(runs_dir, name))
    found = items(answer(capsys, "--yes"))["leftover"]
    assert sorted(found) == sorted(f".trn/cancel/{name}" for name in ("job-killed", ended.job_id))
    assert sorted(os.listdir(runs_dir / ".trn/cancel")) == sorted(["job-own", waiting.job_id])
    own_loop.release()
    door.release()


def test_positions_of_runs_that_are_gone_are_freed_and_those_in_use_stay(runs_dir: Path, capsys: Capture) -> None:
    run_of(runs_dir, "here", [1])
    sinks, name = runs_dir / ".trn" / "sinks", "0123456789abcdef"
    for run_id in ("here", "gone", "sending", "strange"):
        put(sinks / run_id / f"{name}.json")
        put(sinks / run_id / f"{name}.lock")
        put(sinks / run_id / f".{name}.json.tmp-12-3")
    put(sinks / "strange" / "mine.txt")
    sender = Lock(sinks / "sending" / f"{name}.lock")
    assert sender.acquire()
    document = answer(capsys, "--yes")
    assert items(document) == {
        "sinks": [".trn/sinks/gone"],
        "leftover": [f".trn/sinks/here/.{name}.json.tmp-12-3"],
    }
    sender.release()
    assert sorted(os.listdir(sinks)) == ["here", "sending", "strange"]
    assert sorted(os.listdir(sinks / "here")) == [f"{name}.json", f"{name}.lock"]
    assert len(os.listdir(sinks / "strange")) == 4


def test_the_folder_of_a_doctor_that_was_killed_goes(runs_dir: Path, capsys: Capture) -> None:
    put(runs_dir / ".trn-doctor.tmp-1-aa" / "fsync" / "file")
    (runs_dir / ".trn-doctor.tmp-1-aa" / ".lock").write_text("pid=1 trn doctor")
    put(runs_dir / ".trn-doctor.tmp-1-bb" / "mine")
    assert items(answer(capsys, "--yes")) == {"leftover": [".trn-doctor.tmp-1-aa"]}
    assert os.listdir(runs_dir) == [".trn-doctor.tmp-1-bb"]


def test_output_of_a_job_that_nobody_knows_goes(runs_dir: Path, capsys: Capture) -> None:
    known, of_run, held, started, unknown = (row_of(runs_dir, f"run-{n}") for n in range(5))
    run_dir = run_of(runs_dir, "demo", [1])
    EventLog(run_dir / "reports" / "events.jsonl", run_id="demo", job_id=of_run.job_id).emit("started", step=0)
    (run_dir / ".lock").write_text(f"pid=1 job={held.job_id}")
    logs = {row.job_id: put(job_log(runs_dir, row)) for row in (known, of_run, held, started, unknown)}
    door = Lock(make_folder(runs_dir / ".trn" / "launch") / f"{started.job_id}.lock")
    assert door.path == launch_lock(runs_dir, started.job_id)
    assert door.acquire()
    mine = put(job_log(runs_dir, known).with_name("notes.log"))
    elsewhere = put(runs_dir / "logs" / f"{new_job_id()}.log")
    assert items(answer(capsys, "--yes")) == {}, "without a store nobody can say which jobs there were"
    with open_store(runs_dir) as store:
        store.add(known)
    document = answer(capsys, "--yes")
    assert items(document) == {"log": [str(logs[unknown.job_id].relative_to(runs_dir))]}
    assert not logs.pop(unknown.job_id).exists()
    assert all(path.exists() for path in (*logs.values(), mine, elsewhere))
    door.release()


def test_only_what_is_named_is_looked_at(runs_dir: Path, capsys: Capture) -> None:
    for run_id in ("a", "b", "c"):
        run_of(runs_dir, run_id, [1, 2, 3])
    put(runs_dir / ".trn" / "staging" / "job-1" / ".lock").write_text("pid=1 job=job-1")
    document = answer(capsys, "--yes", "a", str(runs_dir / "b"), "a")
    assert [run["run_id"] for run in document["runs"]] == ["a", "b"]
    assert document["beside"] == []
    assert [len(listed_steps(runs_dir / run_id / "checkpoints")) for run_id in "abc"] == [2, 2, 3]
    assert (runs_dir / ".trn" / "staging" / "job-1").exists()


# what it never touches


def test_a_run_that_somebody_works_on_is_left_alone(runs_dir: Path, capsys: Capture) -> None:
    run_dir = run_of(runs_dir, "demo", [1, 2, 3])
    put(run_dir / "checkpoints" / ".step-00000004.pt.tmp-12-0")
    runner = Lock(run_dir / ".lock")
    assert runner.acquire("pid=2 job=job-2")
    before = tree(run_dir)
    (run,) = answer(capsys, "--yes")["runs"]
    assert (run["state"], run["items"], run["kept"]) == ("running", [], "somebody is working on it")
    assert answer(capsys, "--yes", "demo")["runs"][0]["items"] == []
    assert tree(run_dir) == before
    runner.release()
    assert answer(capsys, "--yes")["freed_bytes"] > 0


def test_the_run_is_locked_while_it_is_worked_on_and_the_note_of_its_job_stays(
    runs_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = run_of(runs_dir, "demo", [1, 2, 3])
    seen: list[str | None] = []
    original = files.folders.os.unlink

    def unlink(path: Path, **options: Any) -> None:
        seen.append(files.is_locked(run_dir / ".lock"))
        original(path, **options)

    monkeypatch.setattr("trn.files.folders.os.unlink", unlink)
    answer(capsys, "--yes")
    assert set(seen) == {"pid=1 job=job-1"}
    assert files.is_locked(run_dir / ".lock") is None
    assert (run_dir / ".lock").read_text() == "pid=1 job=job-1"


@pytest.mark.parametrize("status", ["completed", None])
@pytest.mark.parametrize("step", [5, 4, 2])
def test_no_checkpoint_goes_while_one_that_stays_is_damaged(
    runs_dir: Path, capsys: Capture, step: int, status: str | None
) -> None:
    run_dir = run_of(runs_dir, "demo", [1, 2, 3, 4, 5], best=2, status=status)
    put(run_dir / "checkpoints" / "abandoned-job-1" / "step-00000009.pt")
    cut = put(run_dir / "reports" / "train_metrics.cut-job-1.jsonl")
    path = run_dir / "checkpoints" / checkpoint_name(step)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    document = answer(capsys, "--yes")
    assert not cut.exists()
    if status is None and step == 2:  # it would not have stayed for anybody's sake
        assert items(document, "demo").keys() == {"abandoned", "metrics_cut"}
        return
    assert listed_steps(run_dir / "checkpoints") == [5, 4, 3, 2, 1]
    assert kept(document) == f"its checkpoints stay: the sha256 of {path.name} is not the one in its meta"
    assert (run_dir / "checkpoints" / "abandoned-job-1").exists()


def test_abandoned_checkpoints_stay_where_no_other_is_committed(runs_dir: Path, capsys: Capture) -> None:
    run_dir = run_of(runs_dir, "demo", [], status=None)
    put(run_dir / "checkpoints" / "abandoned-job-1" / "step-00000009.pt")
    assert kept(answer(capsys, "--yes")) == "its checkpoints stay: no other one is committed"
    assert (run_dir / "checkpoints" / "abandoned-job-1" / "step-00000009.pt").exists()


def test_the_checkpoint_that_the_outcome_names_must_be_there(runs_dir: Path, capsys: Capture) -> None:
    run_dir = run_of(runs_dir, "demo", [1, 2, 3, 4])
    (run_dir / "checkpoints" / meta_name(4)).unlink()
    assert kept(answer(capsys, "--yes")) == "its checkpoints stay: the one that the outcome names is not there"
    assert listed_steps(run_dir / "checkpoints") == [3, 2, 1]


def test_weights_whose_meta_was_lost_are_damage_and_stay(runs_dir: Path, capsys: Capture) -> None:
    run_dir = run_of(runs_dir, "demo", [1, 2, 3, 4], status=None)
    for step in (2, 4):  # the older one: removed by retention, which was killed between the two
        (run_dir / "checkpoints" / meta_name(step)).unlink()
    document = answer(capsys, "--yes")
    assert items(document, "demo") == {"leftover": [f"demo/checkpoints/{checkpoint_name(2)}"]}
    assert (run_dir / "checkpoints" / checkpoint_name(4)).exists()


def test_a_revised_plan_still_owns_its_earlier_checkpoints(runs_dir: Path, capsys: Capture) -> None:
    run_dir = run_of(runs_dir, "demo", [1, 2, 3])
    plan = run_dir / "reports" / "resolved_config.json"
    value = read_json(plan)
    write_atomic(plan, pretty_json(value | {"fingerprint": "a" * 64}))
    assert kept(answer(capsys, "--yes")) == "its checkpoints stay: it was made by another plan"
    write_atomic(plan, pretty_json(value | {"fingerprint": "a" * 64, "earlier_fingerprints": [PLAN]}))
    answer(capsys, "--yes")
    assert listed_steps(run_dir / "checkpoints") == [3, 2]


def test_links_are_never_followed(runs_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    outside = run_of(tmp_path / "elsewhere", "secret", [1, 2, 3])
    put(outside / "reports" / "train_metrics.cut-job-1.jsonl")
    put(outside / ".x.tmp-1-1")
    put(tmp_path / "elsewhere" / ".trn" / "staging" / "job-1" / ".lock").write_text("pid=1 job=job-1")
    (runs_dir / "link").symlink_to(outside)
    (runs_dir / ".trn").symlink_to(tmp_path / "elsewhere" / ".trn")
    (runs_dir / "logs").symlink_to(tmp_path / "elsewhere")
    run_dir = run_of(runs_dir, "demo", [1, 2, 3])
    (run_dir / "checkpoints" / "abandoned-job-1").symlink_to(outside / "checkpoints")
    (run_dir / "checkpoints" / ".a.tmp-1-1").symlink_to(outside / ".x.tmp-1-1")
    for name in ("reports", "checkpoints", "samples"):
        half = run_of(runs_dir, f"half-{name}", [1, 2, 3])
        shutil.rmtree(half / name)
        (half / name).symlink_to(outside / name)
    locked = run_of(runs_dir, "locked", [1, 2, 3])
    (locked / ".lock").unlink()
    (locked / ".lock").symlink_to(put(tmp_path / "mine"))
    before = tree(tmp_path / "elsewhere")
    document = answer(capsys, "--yes")
    assert tree(tmp_path / "elsewhere") == before
    assert (tmp_path / "mine").read_bytes() == b"x" * 10
    assert {run["run_id"]: run["kept"] for run in document["runs"]}["locked"] == "its lock is no file"
    assert set(items(document, "demo")) == {"checkpoint"}
    assert (run_dir / "checkpoints" / "abandoned-job-1").is_symlink()


def test_what_was_changed_lately_stays(runs_dir: Path, capsys: Capture) -> None:
    for run_id in ("old", "new"):
        run_of(runs_dir, run_id, [1, 2, 3])
    put(runs_dir / ".trn" / "staging" / "job-1" / ".lock").write_text("pid=1 job=job-1")
    for path in (*(runs_dir / "old").rglob("*"), *(runs_dir / "new").rglob("*")):
        if path.is_file() and path.name != ".lock":
            os.utime(path, (0, 0))
    os.utime(runs_dir / "new" / "reports" / "events.jsonl")
    document = answer(capsys, "--yes", "--older-than", "1")
    assert {run["run_id"]: run["kept"] for run in document["runs"]} == {"new": "it was changed lately", "old": None}
    assert document["beside"] == []
    assert [len(listed_steps(runs_dir / run_id / "checkpoints")) for run_id in ("old", "new")] == [2, 3]
    assert items(answer(capsys, "--older-than", "0"), "new").keys() == {"checkpoint"}


# failures


def test_what_cannot_be_removed_is_told_and_the_rest_goes(runs_dir: Path, capsys: Capture) -> None:
    for run_id in ("a", "b"):
        run_of(runs_dir, run_id, [1, 2, 3])
    files.set_fault("op=unlink,n=1,do=eio")
    document = answer(capsys, "--yes", status=74)
    assert [[row["removed"] for row in run["items"]] for run in document["runs"]] == [[False], [True]]
    assert document["freed_bytes"] == document["runs"][1]["freed_bytes"] > 0
    assert len(listed_steps(runs_dir / "a" / "checkpoints")) == 3
    files.set_fault("op=unlink,n=1,do=eio")
    assert main(["gc", "--yes"]) == 74
    captured = capsys.readouterr()
    assert "(still there)" in captured.out
    assert captured.err.startswith("storage error [io_error] at ")
    assert captured.err.count("\n") == 1


def test_a_damaged_store_is_told_and_the_runs_are_cleaned(runs_dir: Path, capsys: Capture) -> None:
    run_of(runs_dir, "demo", [1, 2, 3])
    put(runs_dir / "logs" / "2026" / "01" / "01" / f"{new_job_id()}.log")
    put(runs_dir / ".trn" / "jobs.db", 4096)
    document = answer(capsys, "--yes", status=74)
    assert document["runs"][0]["freed_bytes"] > 0
    assert document["beside"] == []


def test_a_folder_that_is_damaged_in_any_way_is_no_traceback(runs_dir: Path, capsys: Capture) -> None:
    damages: dict[str, Callable[[Path], object]] = {
        "plan": lambda run: (run / "reports" / "resolved_config.json").write_text("[]"),
        "lineage": lambda run: (run / "reports" / "resolved_config.json").write_text('{"earlier_fingerprints": 3}'),
        "outcome": lambda run: (run / "reports" / "outcome.json").write_text("{"),
        "meta": lambda run: (run / "checkpoints" / meta_name(3)).write_text("{}"),
        "hint": lambda run: (run / "checkpoints" / "last.meta.json").write_text("3"),
        "events": lambda run: (run / "reports" / "events.jsonl").write_text("\0\n"),
        "lock": lambda run: ((run / ".lock").unlink(), (run / ".lock").mkdir()),
        "checkpoints": lambda run: (shutil.rmtree(run / "checkpoints"), put(run / "checkpoints")),
    }
    for name, damage in damages.items():
        damage(run_of(runs_dir, name, [1, 2, 3], best=1))
    document = answer(capsys, "--yes")
    stays = {run["run_id"] for run in document["runs"] if not run["items"]}
    assert stays >= {"plan", "lineage", "outcome", "meta", "lock", "checkpoints"}


def test_looking_loads_nothing_heavy(runs_dir: Path) -> None:
    run_of(runs_dir, "demo", [1, 2, 3])
    heavy = ("torch", "numpy", "pyarrow", "pydantic", "ruamel", "yaml", "rich")
    code = (
        "import sys; from trn.doors.cli import main; status = main(['gc', '--yes']);"
        f"print(status, [name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "0 []\n"


# with real runs


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as one:
        yield one


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_job(tmp_path_factory.mktemp("job"), max_steps=100)


@pytest.fixture(scope="module")
def oracle(server: ForkServer, job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that nobody interrupted; its plan keeps all of its checkpoints."""
    folder = tmp_path_factory.mktemp("oracle")
    assert server.run(keeping_all(job, folder, "oracle"), folder / "log") == 0, (folder / "log").read_text()
    return folder / "oracle"


def keeping_all(job: Path, runs_dir: Path, run_id: str) -> list[str]:
    return command(job, runs_dir, run_id, "--auto-resume", "--set", "checkpoint.keep=50")


def problems(run_dir: Path) -> list[str]:
    return [f"{one.what}: {one.problem}" for one in verify_run(run_dir) if one.problem is not None]


def litter(run_dir: Path) -> None:
    """What crashes leave behind, in a run's folder."""
    put(run_dir / "checkpoints" / ".step-00000101.pt.tmp-1-0")
    put(run_dir / "checkpoints" / "step-00000101.pt")
    put(run_dir / "checkpoints" / ".trash-step-00000001.meta.json")
    put(run_dir / "reports" / ".outcome.json.tmp-1-0")
    for name in ("step-00000090.pt", "step-00000090.meta.json"):
        put(run_dir / "checkpoints" / "abandoned-job-x" / name)


@pytest.mark.slow
def test_a_finished_run_verifies_after_it(oracle: Path, tmp_path: Path, capsys: Capture) -> None:
    run_dir = Path(shutil.copytree(oracle, tmp_path / "runs" / "oracle"))
    before = listed_steps(run_dir / "checkpoints")
    litter(run_dir)
    document = answer(capsys, "--yes", str(run_dir))
    assert items(document, "oracle").keys() == {"checkpoint", "abandoned", "leftover"}
    assert problems(run_dir) == []
    left = listed_steps(run_dir / "checkpoints")
    best = read_json(run_dir / "reports" / "outcome.json")["best"]["step"]
    assert left == sorted({*before[:2], best}, reverse=True)
    assert_identical(run_dir, oracle)


@pytest.mark.slow
def test_killed_at_any_operation_the_run_verifies_and_the_next_goes_on(
    oracle: Path, tmp_path: Path, capsys: Capture
) -> None:
    run_dir = tmp_path / "runs" / "oracle"
    status, n = -signal.SIGKILL, 0
    while status == -signal.SIGKILL:
        n += 1
        shutil.rmtree(run_dir, ignore_errors=True)
        shutil.copytree(oracle, run_dir)
        litter(run_dir)
        status = _in_child(["gc", "--yes", str(run_dir)], f"op=any,n={n},do=kill")
        assert problems(run_dir) == [], n
        answer(capsys, "--yes", str(run_dir))
        assert problems(run_dir) == [], n
        again = answer(capsys, str(run_dir))
        assert again["freeable_bytes"] == 0, n
        assert not (run_dir / "checkpoints" / "abandoned-job-x").exists()
    assert status == 0
    assert n > 10


def _in_child(arguments: list[str], fault: str) -> int:
    pid = os.fork()
    if pid == 0:
        status = 99
        with contextlib.suppress(BaseException):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            files.set_fault(fault)
            status = main(arguments)
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.slow
def test_an_unfinished_run_resumes_as_if_nothing_had_been_freed(
    server: ForkServer, job: Path, oracle: Path, tmp_path: Path, capsys: Capture
) -> None:
    runs_dir, log = tmp_path / "runs", tmp_path / "log"
    make_folder(runs_dir)
    run_dir = runs_dir / "run"

    def killed_at(step: int) -> None:
        fault = f"op=rename,n=1,do=kill,path=checkpoints/step-{step:08d}.meta"
        assert server.run(keeping_all(job, runs_dir, "run"), log, fault) == -signal.SIGKILL, log.read_text()

    killed_at(60)
    newest = run_dir / "checkpoints" / checkpoint_name(listed_steps(run_dir / "checkpoints")[0])
    newest.write_bytes(newest.read_bytes()[:-1] + b"!")
    killed_at(80)
    document = answer(capsys, "--yes", "--runs-dir", str(runs_dir))
    assert {"abandoned", "metrics_cut", "leftover"} <= items(document, "run").keys()
    assert not _names(run_dir / "checkpoints", ("abandoned-", "."))
    assert problems(run_dir) == []
    assert server.run(keeping_all(job, runs_dir, "run"), log) == 0, log.read_text()
    assert_identical(run_dir, oracle)
    assert problems(run_dir) == []


def _names(folder: Path, beginnings: Collection[str]) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(tuple(beginnings))]


# What workers and job files left


def test_what_was_kept_of_uploads_and_workers_goes_with_their_run(runs_dir: Path, capsys: Capture) -> None:
    run_of(runs_dir, "here", [1])
    own, spool = runs_dir / ".trn", "0123456789abcdef"
    for run_id in ("here", "gone", "sending"):
        put(own / "uploads" / run_id / spool / "state.json")
        put(own / "worker" / run_id / "contract.json")
    put(own / "uploads" / "gone" / "mine" / "file")
    put(own / "worker" / "strange" / "mine.txt")
    for lock in (locks := [Lock(own / "uploads/sending" / spool / "lock"), Lock(own / "worker/sending/.lock")]):
        assert lock.acquire()
    found = items(answer(capsys, "--yes"))
    assert found == {"uploads": [f".trn/uploads/gone/{spool}"], "worker": [".trn/worker/gone"]}
    for lock in locks:
        lock.release()
    assert sorted(os.listdir(own / "worker")) == ["here", "sending", "strange"]
    assert (own / "uploads/gone/mine/file").exists()
    assert sorted(items(answer(capsys, "--yes"))) == ["uploads", "worker"], "the sender has ended"
    assert items(answer(capsys, "--yes"))["uploads"] == [".trn/uploads/sending"], "an empty folder"


def of_inputs(runs_dir: Path, name: str) -> list[Path]:
    """An input that came whole, decoded data, batches of a job file, and a source of the first."""
    own = runs_dir / ".trn"
    digest = hashlib.sha256(name.encode()).hexdigest()
    folder = own / "inputs" / "sha256" / digest[:2]
    source = put(own / "inputs" / "sources" / f"{digest[::-1]}.json")
    source.write_text(json.dumps({"sha256": digest}))
    return [
        put(folder / digest, 100),
        put(folder / f"{digest}.lock", 0),
        put(own / "arrow" / f"{digest[:32]}.json"),
        put(own / "arrow" / f"{digest[:32]}.arrow", 1000),
        put(own / "mock" / f"{digest}.parquet"),
        source,
    ]


def name_in(path: Path, name: str) -> None:
    digest = hashlib.sha256(name.encode()).hexdigest()
    make_folder(path.parent)
    write_atomic(path, pretty_json({"paths": [f"/cache/{digest}", f"/mock/{digest}.parquet", f"{digest[:32]}.arrow"]}))


def with_store(runs_dir: Path) -> None:
    with open_store(runs_dir) as store:
        store.add(row := row_of(runs_dir, "here"))
        store.advance(row.job_id, "completed")


def test_inputs_that_no_run_names_are_freed_and_all_others_stay(runs_dir: Path, capsys: Capture) -> None:
    run_dir = run_of(runs_dir, "here", [1])
    with_store(runs_dir)
    stay = [path for name in ("plan", "earlier", "worker", "waiting") for path in of_inputs(runs_dir, name)]
    go = of_inputs(runs_dir, "nobody")
    half = put(go[0].with_name(f"{'a' * 64}.part"))
    busy = Lock(put(go[0].with_name(f"{'b' * 64}.part")).with_name(f"{'b' * 64}.lock"))
    assert busy.acquire()
    mine = [put(go[0].with_name("mine.txt")), put(go[2].with_name("mine.arrow")), put(go[4].with_name("mine.parquet"))]
    name_in(run_dir / "reports/resolved_config.json", "plan")
    name_in(run_dir / "reports/plans/resolved_config.rev-1.json", "earlier")
    name_in(runs_dir / ".trn/worker/here/contract.json", "worker")
    name_in(runs_dir / ".trn/queue/job-1.json", "waiting")
    before = tree(runs_dir) | {".trn": (0, 0, 0)}  # where the store's own files come and go
    found = answer(capsys)
    assert tree(runs_dir) | {".trn": (0, 0, 0)} == before, "nothing was asked for"
    freed = items(answer(capsys, "--yes"))
    busy.release()
    assert freed == items(found)
    paths = {runs_dir / path for kind in ("input", "decoded") for path in freed[kind]}
    assert paths == {*go, half}
    assert not any(path.exists() for path in paths)
    assert all(path.exists() for path in [*stay, *mine, busy.path])


@pytest.mark.parametrize("who", ["a worker", "a job", "no store"])
def test_while_a_job_is_being_prepared_what_may_be_shared_stays(runs_dir: Path, capsys: Capture, who: str) -> None:
    of_inputs(runs_dir, "nobody")
    worker = Lock(make_folder(runs_dir / ".trn/worker/exp01") / ".lock")
    if who == "no store":
        assert items(answer(capsys)) == {}
        return
    with_store(runs_dir)
    if who == "a job":
        with open_store(runs_dir) as store:
            store.add(row_of(runs_dir, "exp01"))
    else:
        put(runs_dir / ".trn/worker/exp01/contract.json")
        os.utime(runs_dir / ".trn/worker/exp01/contract.json", (1, 1))
        assert worker.acquire()
    assert items(answer(capsys)) == {}
    if who == "a worker":
        put(runs_dir / ".trn/worker/exp01/contract.json")
        assert sorted(items(answer(capsys))) == ["decoded", "input"], "it has written down what it uses"
        worker.release()


def test_what_a_run_uses_by_another_name_stays(runs_dir: Path, capsys: Capture) -> None:
    run_dir = run_of(runs_dir, "fork", [1])
    with_store(runs_dir)
    base = put(runs_dir / ".trn/worker/gone/base_model.bin")
    put(base.with_name("contract.json"))
    *_, decoded, rows, _, _ = of_inputs(runs_dir, "nobody")
    data = {"fingerprint": hashlib.sha256(b"data").hexdigest()}
    write_atomic(decoded, pretty_json(data))  # under a key that follows from data and columns, and stands in no plan
    write_atomic(run_dir / "reports/resolved_config.json", pretty_json({"inputs": [str(base)], "dataset": data}))
    assert sorted(items(answer(capsys, "--yes"))) == ["input"]
    assert all(path.exists() for path in (base, decoded, rows))


def test_what_a_worker_left_that_was_killed_while_it_fetched_goes(runs_dir: Path, capsys: Capture) -> None:
    own = runs_dir / ".trn/worker/gone"
    put(own / "origin/checkpoints/step-00000001.pt", 1000)
    with Lock(own / ".lock"):
        assert items(answer(capsys)) == {}
    assert items(answer(capsys)) == {"worker": [".trn/worker/gone"]}


@pytest.mark.parametrize("who", ["a job", "a worker that prepares", "a worker that has prepared"])
def test_nothing_that_is_shared_goes_from_the_moment_that_another_job_is_begun(
    runs_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    with_store(runs_dir)
    shared, own = of_inputs(runs_dir, "nobody"), put(runs_dir / ".trn/worker/exp01/contract.json")
    lock = Lock(runs_dir / ".trn/worker/exp02/.lock")

    def begun_meanwhile(sets: Sequence[Sequence[Path]]) -> list[int]:
        if who == "a job":
            with open_store(runs_dir) as store:
                store.add(row_of(runs_dir, "exp01"))
        else:
            make_folder(lock.path.parent)
            assert lock.acquire()
            if who == "a worker that has prepared":
                put(lock.path.with_name("contract.json"))
        return freed_bytes(sets)

    monkeypatch.setattr("trn.doors.cleaning.freed_bytes", begun_meanwhile)
    rows = answer(capsys, "--yes")["beside"]
    assert sorted({row["kind"] for row in rows}) == ["decoded", "input", "worker"]
    assert {row["kind"] for row in rows if row["removed"]} == (set() if who == "a job" else {"worker"})
    assert own.exists() is (who == "a job"), "which nobody but a worker of its own run would use"
    assert all(path.exists() for path in shared)
    lock.release()


def test_a_plan_that_cannot_be_read_keeps_what_it_may_name_and_nothing_else(runs_dir: Path, capsys: Capture) -> None:
    with_store(runs_dir)
    found = of_inputs(runs_dir, "nobody")
    put(runs_dir / ".trn/sinks/gone/0123456789abcdef.json")
    make_folder(runs_dir / "odd/reports")
    os.symlink("/proc/self/mem", runs_dir / "odd/reports/resolved_config.json")  # a file whose first byte is an error
    assert main(["gc", "--yes", "--json"]) == 74
    out, err = capsys.readouterr()
    assert [row["kind"] for row in json.loads(out)["beside"]] == ["sinks"]
    assert "Input/output error" in err
    assert all(path.exists() for path in found)
