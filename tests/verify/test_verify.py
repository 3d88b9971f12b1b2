"""A healthy folder verifies, also right after a kill; whatever is changed in it by hand is found."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.forkserver import ForkServer
from support.job import command, write_job
from trn.errors import VerificationFailed
from trn.verify import verify_run
from trn.verify.__main__ import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as one:
        yield one


@pytest.fixture(scope="module")
def finished(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    spec = write_job(folder / "job", max_steps=50)
    assert server.run(command(spec, folder, "run"), folder / "log") == 0, (folder / "log").read_text()
    return folder / "run"


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def problems(folder: Path) -> list[str]:
    return [f"{finding.what}: {finding.problem}" for finding in verify_run(folder) if finding.problem is not None]


def test_a_healthy_run_verifies(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert problems(run_dir) == []
    assert main([str(run_dir), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is True
    assert len(document["findings"]) > 10


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_line(path: Path, number: int, change: Callable[[Any], None]) -> None:
    lines = path.read_text().splitlines()
    value = json.loads(lines[number])
    change(value)
    lines[number] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n")


def drop_line(path: Path, number: int) -> None:
    lines = path.read_text().splitlines(keepends=True)
    del lines[number]
    path.write_text("".join(lines))


def double_line(path: Path, number: int) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines.insert(number, lines[number])
    path.write_text("".join(lines))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


REPORTS, CHECKPOINTS = "reports", "checkpoints"
MUTATIONS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "plan: a number": ("reports/resolved_config.json", lambda p: edit_json(p, lambda v: v.update(seed=43))),
    "plan: a key more": ("reports/resolved_config.json", lambda p: edit_json(p, lambda v: v.update(more=1))),
    "plan: a key less": ("reports/resolved_config.json", lambda p: edit_json(p, lambda v: v.pop("seed"))),
    "plan: no json": ("reports/resolved_config.json", lambda p: p.write_text("{")),
    "metrics: a value": (
        "reports/train_metrics.jsonl",
        lambda p: edit_line(p, 9, lambda v: v.update(train_loss=0.1)),
    ),
    "metrics: a line less": ("reports/train_metrics.jsonl", lambda p: drop_line(p, 9)),
    "metrics: the last line less": ("reports/train_metrics.jsonl", lambda p: drop_line(p, -1)),
    "metrics: a line twice": ("reports/train_metrics.jsonl", lambda p: double_line(p, 9)),
    "metrics: a key less": ("reports/train_metrics.jsonl", lambda p: edit_line(p, 49, lambda v: v.pop("lr"))),
    "metrics: text for a number": (
        "reports/train_metrics.jsonl",
        lambda p: edit_line(p, 49, lambda v: v.update(lr="0.1")),
    ),
    "metrics: NaN": ("reports/train_metrics.jsonl", lambda p: p.write_text(p.read_text() + '{"step": NaN}\n')),
    "metrics: gone": ("reports/train_metrics.jsonl", Path.unlink),
    "validation: a value": ("reports/val_metrics.jsonl", lambda p: edit_line(p, 0, lambda v: v.update(val_loss=0.0))),
    "validation: a line twice": ("reports/val_metrics.jsonl", lambda p: double_line(p, 0)),
    "events: a gap": ("reports/events.jsonl", lambda p: drop_line(p, 3)),
    "events: unknown kind": ("reports/events.jsonl", lambda p: edit_line(p, 3, lambda v: v.update(event="party"))),
    "events: another run": ("reports/events.jsonl", lambda p: edit_line(p, 3, lambda v: v.update(run_id="x"))),
    "events: another ending": (
        "reports/events.jsonl",
        lambda p: edit_line(p, -1, lambda v: v.update(outcome="cancelled")),
    ),
    "events: two endings": ("reports/events.jsonl", lambda p: double_line(p, -1)),
    "checkpoint: a bit": ("checkpoints/step-00000050.pt", flip),
    "checkpoint: gone": ("checkpoints/step-00000050.pt", Path.unlink),
    "meta: a number": (
        "checkpoints/step-00000050.meta.json",
        lambda p: edit_json(p, lambda v: v.update(epoch=9)),
    ),
    "meta: gone": ("checkpoints/step-00000050.meta.json", Path.unlink),
    "last: another file": ("checkpoints/last.pt", lambda p: (p.unlink(), p.write_bytes(b"x"))[0]),
    "best: another meta": ("checkpoints/best.meta.json", lambda p: (p.unlink(), p.write_text("{}"))[0]),
    "outcome: another status": ("reports/outcome.json", lambda p: edit_json(p, lambda v: v.update(status="preempted"))),
    "outcome: another step": ("reports/outcome.json", lambda p: edit_json(p, lambda v: v.update(step=49))),
    "outcome: another hash": (
        "reports/outcome.json",
        lambda p: edit_json(p, lambda v: v["checkpoint"].update(sha256="0" * 64)),
    ),
    "outcome: a path outside": (
        "reports/outcome.json",
        lambda p: edit_json(p, lambda v: v["artifacts"].update({"../../x": "0" * 64})),
    ),
    "outcome: no json": ("reports/outcome.json", lambda p: p.write_text("[]")),
}


def end_late(path: Path, *, started: bool) -> None:
    """Events of a job that began before the run's job, and whose ending was written after that job's."""
    first, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    late = {**first, "job_id": "job-late"}
    before = [{**late, "event": "job_started", "pid": 1, "resume": False}] if started else []
    ending = {**late, "event": "failed", "outcome": "crashed", "exit_code": 71, "reason": "killed", "step": 0}
    events = [{**event, "seq": seq} for seq, event in enumerate([*before, first, *lines, ending], 1)]
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


def test_an_ending_that_was_written_late_is_no_damage(run_dir: Path) -> None:
    end_late(run_dir / "reports/events.jsonl", started=True)
    known = {"job_id": "job-late", "resume": True, "from_step": 0}
    edit_json(run_dir / "reports/run_meta.json", lambda v: v["jobs"].append({**v["jobs"][0], **known}))
    assert problems(run_dir) == []


def test_an_outcome_of_another_job_than_the_last_is_found(run_dir: Path) -> None:
    end_late(run_dir / "reports/events.jsonl", started=False)
    assert any("the last job that ended is job-late" in problem for problem in problems(run_dir))
    edit_json(run_dir / "reports/outcome.json", lambda v: v.update(job_id="job-unknown"))
    assert any("it is of job-unknown" in problem for problem in problems(run_dir))


def test_a_run_killed_before_its_journal_was_opened_is_no_damage(run_dir: Path) -> None:
    for name in ("train_metrics.jsonl", "val_metrics.jsonl"):
        (run_dir / "reports" / name).unlink()
    for path in (run_dir / "checkpoints").iterdir():
        path.unlink()
    lines = (run_dir / "reports/events.jsonl").read_text().splitlines()
    ending = {**json.loads(lines[-1]), "event": "failed", "outcome": "crashed", "seq": 1}
    changes = {"status": "crashed", "exit_code": 71, "step": 0, "checkpoint": None, "artifacts": {}}
    edit_json(run_dir / "reports/outcome.json", lambda v: v.update(changes))
    assert any("train_metrics" in problem for problem in problems(run_dir)), "a runner that wrote events made the file"
    (run_dir / "reports/events.jsonl").write_text(json.dumps(ending) + "\n")
    assert problems(run_dir) == []


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_a_change_is_found(run_dir: Path, name: str) -> None:
    path, change = MUTATIONS[name]
    # a copy of its own: in the original, hints share their bytes with checkpoints
    change(run_dir / path)
    if name.startswith("plan"):
        with pytest.raises(VerificationFailed):
            verify_run(run_dir)
        assert main([str(run_dir)]) == 86
        return
    assert problems(run_dir), name
    assert main([str(run_dir)]) == 86


def test_a_folder_without_a_plan_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 86
    assert "this folder is no run" in capsys.readouterr().err


def test_what_a_kill_leaves_behind_is_no_damage(server: ForkServer, tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=400, checkpoint_every=3)
    chance = random.Random(5)
    for number in range(12):
        run_dir = tmp_path / f"run-{number}"
        pid = server.start(command(spec, tmp_path, run_dir.name), tmp_path / "log")
        while not (run_dir / "checkpoints/last.pt").exists():
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.3))
        os.killpg(pid, signal.SIGKILL)
        server.wait(pid)
        assert problems(run_dir) == [], number


def test_a_pipe_in_the_folder_is_named_and_not_waited_for(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "checkpoints/last.pt").unlink()
    os.mkfifo(run_dir / "checkpoints/last.pt")
    assert main([str(run_dir)]) == 86
    assert "checkpoints/last.pt is no plain file" in capsys.readouterr().err
