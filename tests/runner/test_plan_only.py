"""--plan-only: the folder is made now and begun later, and the run is the one that would have begun at once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from support.compare import assert_identical, events
from support.forkserver import ForkServer
from support.job import command, write_job
from trn.files import is_locked
from trn.records import read_json
from trn.verify import verify_run

pytestmark = pytest.mark.slow


def plan(server: ForkServer, spec: Path, run_id: str, *more: str) -> Path:
    """The folder of a run that waits to be begun by job-planner."""
    argv = [*("--job-id", "job-planner", "--config", str(spec), "--runs-dir", str(spec.parent.parent))]
    log = spec.parent / "plan.log"
    assert server.run([*argv, "--run-id", run_id, "--plan-only", *more], log) == 0, log.read_text()
    assert log.read_text() == "operations: 0\n"  # the server's own word
    return spec.parent.parent / run_id


def begin(server: ForkServer, run_dir: Path, job_id: str, *more: str) -> tuple[int, str]:
    log = run_dir.parent / "begin.log"
    code = server.run(["--job-id", job_id, "--run-dir", str(run_dir), *more], log)
    return code, log.read_text()


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kinds(run_dir: Path) -> list[str]:
    return [event["event"] for event in events(run_dir)]


def problems(run_dir: Path) -> list[str]:
    return [str(one) for one in verify_run(run_dir) if one.problem]


def test_a_run_that_is_planned_now_and_begun_later_is_the_one_begun_at_once(server: ForkServer, tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=40)
    planned = plan(server, spec, "planned")
    plan_made_at = read_json(planned / "reports/run_meta.json")["created_at"]
    assert not (planned / "reports/events.jsonl").exists()
    assert not (planned / "reports/outcome.json").exists()
    assert is_locked(planned / ".lock") is None
    assert begin(server, planned, "job-planner")[0] == 0
    assert server.run(command(spec, tmp_path, "direct"), tmp_path / "log") == 0
    assert_identical(planned, tmp_path / "direct")
    assert sorted(kinds(planned)) == sorted(kinds(tmp_path / "direct"))  # when a checkpoint is told depends on the disk
    assert kinds(planned)[:3] == ["plan_written", "job_started", "started"]
    assert events(planned, "job_started")[0]["resume"] is False
    meta, direct = (read_json(one / "reports/run_meta.json") for one in (planned, tmp_path / "direct"))
    assert [job["job_id"] for job in meta["jobs"]] == ["job-planner"]
    assert meta["jobs"][0]["resume"] is False
    assert {key for key in meta if meta[key] != direct[key]} == {"run_id", "created_at", "jobs"}
    assert meta["created_at"] > plan_made_at  # it tells of the process that trained, not of the planner
    assert problems(planned) == []


def test_another_job_may_begin_what_was_planned_and_is_then_its_first(server: ForkServer, tmp_path: Path) -> None:
    planned = plan(server, write_job(tmp_path / "job", max_steps=5), "planned")
    assert begin(server, planned, "job-other", "--allow-change", "max_steps")[0] == 0
    assert [job["job_id"] for job in read_json(planned / "reports/run_meta.json")["jobs"]] == ["job-other"]
    assert "resumed" not in kinds(planned)
    assert problems(planned) == []


def test_a_run_that_lost_its_events_is_not_taken_for_one_that_is_still_to_begin(
    server: ForkServer, tmp_path: Path
) -> None:
    spec = write_job(tmp_path / "job", max_steps=100_000)
    spec.write_text(spec.read_text() + "\nlimits: {max_runtime_seconds: 0.3}\n")
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 93
    run_dir = tmp_path / "run"
    (run_dir / "reports/events.jsonl").unlink()
    (run_dir / "reports/outcome.json").unlink()
    assert begin(server, run_dir, "job-next")[0] == 93
    assert events(run_dir, "resumed")[0]["from_step"] > 0


def test_what_was_planned_by_other_code_is_refused_and_stays_as_it_was(server: ForkServer, tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=5)
    planned = plan(server, spec, "planned")
    trainer = spec.parent / "noisy.py"
    trainer.write_text(trainer.read_text() + "\n# changed while it waited\n")
    before = content(planned)
    code, said = begin(server, planned, "job-planner")
    assert code != 0
    assert "--allow-change code" in said
    assert content(planned) == before
    code, said = begin(server, planned, "job-planner", "--allow-change", "code")
    assert code == 0, said
    assert kinds(planned)[:3] == ["plan_written", "job_started", "started"]
    assert events(planned, "plan_written")[0]["revision"] == 1
    assert problems(planned) == []


def test_a_fork_that_is_planned_now_goes_on_later_as_a_fork_at_once(server: ForkServer, tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=40)
    assert server.run(command(spec, tmp_path, "origin"), tmp_path / "log") == 0
    more = ("--fork-from", str(tmp_path / "origin"), "--checkpoint", "25")
    planned = plan(server, spec, "planned", *more)
    assert not (planned / "reports/events.jsonl").exists()
    assert begin(server, planned, "job-planner")[0] == 0
    assert server.run(command(spec, tmp_path, "direct", *more), tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert_identical(planned, tmp_path / "direct")
    assert sorted(kinds(planned)) == sorted(kinds(tmp_path / "direct"))  # when a checkpoint is told depends on the disk
    assert [job["job_id"] for job in read_json(planned / "reports/run_meta.json")["jobs"]] == ["job-planner"]
    assert problems(planned) == []


def test_planning_to_go_on_looks_at_everything_and_changes_nothing(server: ForkServer, tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=100_000)
    spec.write_text(spec.read_text() + "\nlimits: {max_runtime_seconds: 0.3}\n")
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 93
    run_dir = tmp_path / "run"
    before = content(run_dir)
    assert begin(server, run_dir, "job-next", "--plan-only") == (0, "operations: 0\n")
    spec.with_name("noisy.py").write_text("")
    code, said = begin(server, run_dir, "job-next", "--plan-only")
    assert code != 0
    assert "--allow-change code" in said
    assert content(run_dir) == before
