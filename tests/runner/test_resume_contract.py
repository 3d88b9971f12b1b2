"""What a resume compares, what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from pathlib import Path

import pytest

from support.compare import assert_identical, events, lines, outcome
from support.forkserver import ForkServer
from support.job import command, write_job, write_table
from trn.records import new_job_id
from trn.verify import verify_run

pytestmark = pytest.mark.slow


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file of a folder with its digest, but for the lock's note of who held it last."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def stopped(server: ForkServer, tmp_path: Path) -> tuple[Path, Path]:
    """(spec, folder) of a run that its time limit stopped."""
    spec = write_job(tmp_path / "job", max_steps=100_000)
    spec.write_text(spec.read_text() + "\nlimits: {max_runtime_seconds: 0.3}\n")
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 93, (tmp_path / "log").read_text()
    return spec, tmp_path / "run"


def resume(server: ForkServer, spec: Path, run_dir: Path) -> tuple[int, str]:
    log = run_dir.parent / "resume.log"
    code = server.run(command(spec, run_dir.parent, run_dir.name, "--resume"), log)
    return code, log.read_text()


def take_up(server: ForkServer, run_dir: Path) -> tuple[int, str]:
    log = run_dir.parent / "resume.log"
    code = server.run(["--job-id", "job-again", "--run-dir", str(run_dir)], log)
    return code, log.read_text()


def test_a_finished_run_reports_its_outcome_again_and_changes_nothing(server: ForkServer, tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=20)
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 0
    before = fingerprint(tmp_path / "run")
    for code, log in (resume(server, spec, tmp_path / "run"), take_up(server, tmp_path / "run")):
        assert code == 0
        assert "is finished: completed at step 20" in log
    assert fingerprint(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("seed: 42", "seed: 43", "seed: the run has 42, now 43"),
        ("batch_size: 8", "batch_size: 16", "dataset.batch_size"),
        ("lr: 0.01, accumulate: 2", "lr: 0.01, accumulate: 4", "optimizer.accumulate"),
        ("lr_min: 0.0001", "lr_min: 0.0002", "schedule.lr_min"),
        ("width: 16", "width: 32", "trainer.params.width"),
        ("threads: 1", "threads: 2", "threads"),
        ("clip_grad_norm: 1.0", "clip_grad_norm: 2.0", "clip_grad_norm"),
        ("max_steps: 100000", "max_steps: 100001", "budget.max_steps"),
    ],
)
def test_a_changed_spec_is_refused_key_by_key(
    server: ForkServer, stopped: tuple[Path, Path], old: str, new: str, key: str
) -> None:
    spec, run_dir = stopped
    assert old in spec.read_text()
    spec.write_text(spec.read_text().replace(old, new))
    before = fingerprint(run_dir)
    code, log = resume(server, spec, run_dir)
    assert code == 78, log
    assert key in log
    assert fingerprint(run_dir) == before, "a refusal leaves nothing in the run's folder"


def test_a_changed_trainer_is_refused(server: ForkServer, stopped: tuple[Path, Path]) -> None:
    spec, run_dir = stopped
    trainer = spec.parent / "noisy.py"
    ran = spec.parent / "ran"
    trainer.write_text(trainer.read_text() + f"\nopen({str(ran)!r}, 'w')\n")
    before = fingerprint(run_dir)
    # without a spec nobody has asked for this code, so it is refused before it runs
    for again, imports_it in ((take_up, False), (lambda *given: resume(given[0], spec, given[1]), True)):
        code, log = again(server, run_dir)
        assert code == 78, log
        assert "trainer.code_sha256: the run has " in log
        assert "--allow-change code" in log
        assert ran.exists() == imports_it
    assert fingerprint(run_dir) == before
    ran.unlink()
    allowed = ["--job-id", "job-allowed", "--run-dir", str(run_dir), "--allow-change", "code"]
    assert server.run(allowed, run_dir.parent / "allowed.log") == 93
    assert ran.exists()


SEQUENCE = "max_steps: 40"


@pytest.fixture
def ended(server: ForkServer, tmp_path: Path) -> tuple[Path, Path]:
    """(spec, folder) of a run that was completed at step 40."""
    spec = write_job(tmp_path / "job", max_steps=40)
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 0, (tmp_path / "log").read_text()
    return spec, tmp_path / "run"


def resume_allowing(server: ForkServer, spec: Path, run_dir: Path, *names: str) -> tuple[int, str]:
    log = run_dir.parent / "allow.log"
    options = [part for name in names for part in ("--allow-change", name)]
    code = server.run(command(spec, run_dir.parent, run_dir.name, "--resume", *options), log)
    return code, log.read_text()


def test_a_longer_budget_is_allowed_by_name_and_the_schedule_does_not_climb_again(
    server: ForkServer, ended: tuple[Path, Path]
) -> None:
    spec, run_dir = ended
    before = lines(run_dir, "train_metrics.jsonl")
    spec.write_text(spec.read_text().replace(SEQUENCE, "max_steps: 60"))
    code, log = resume(server, spec, run_dir)
    assert code == 78
    assert "budget.max_steps: the run has 40, now 60" in log
    assert "--allow-change max_steps" in log
    assert resume_allowing(server, spec, run_dir, "max_steps")[0] == 0
    after = lines(run_dir, "train_metrics.jsonl")
    assert after[:40] == before
    assert [line["lr"] for line in after[40:]] == [0.0001] * 20
    told = events(run_dir, "plan_written")
    assert [event["revision"] for event in told] == [0, 1]
    assert {"key": "budget.max_steps", "was": 40, "now": 60} in told[1]["changes"]
    assert (run_dir / "reports/plans/0.json").is_file()
    assert [finding for finding in verify_run(run_dir) if finding.problem is not None] == []
    assert (outcome(run_dir)["status"], outcome(run_dir)["step"]) == ("completed", 60)


def test_a_cadence_may_change_without_asking_and_changes_no_weight(server: ForkServer, tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=400)
    assert server.run(command(spec, tmp_path, "oracle"), tmp_path / "log") == 0
    pid = server.start(command(spec, tmp_path, "run"), tmp_path / "log")
    while not (tmp_path / "run/checkpoints/last.pt").exists():
        pass
    os.kill(pid, signal.SIGTERM)
    assert server.wait(pid) == 75
    spec.write_text(spec.read_text().replace("checkpoint_every: 20", "checkpoint_every: 33\nmetric_every: 7"))
    code, log = resume(server, spec, tmp_path / "run")
    assert code == 0, log
    assert_identical(tmp_path / "run", tmp_path / "oracle")
    changed = {one["key"] for one in events(tmp_path / "run", "plan_written")[-1]["changes"]}
    assert changed == {"checkpoint.every_steps", "metric_every"}


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("lr: 0.01, accumulate: 2}", "lr: 0.02, accumulate: 2}", "lr"),
        ("threads: 1", "threads: 2", "threads"),
    ],
)
def test_what_is_named_is_allowed(
    server: ForkServer, stopped: tuple[Path, Path], old: str, new: str, name: str
) -> None:
    spec, run_dir = stopped
    spec.write_text(
        spec.read_text().replace(old, new).replace("lr_max: 0.01", "lr_max: 0.02" if name == "lr" else "lr_max: 0.01")
    )
    code, log = resume(server, spec, run_dir)
    assert code == 78
    assert f"--allow-change {name}" in log
    code, log = resume_allowing(server, spec, run_dir, name)
    assert code == 93, log


def test_changed_code_is_allowed_by_name_without_a_spec(server: ForkServer, stopped: tuple[Path, Path]) -> None:
    spec, run_dir = stopped
    trainer = spec.parent / "noisy.py"
    trainer.write_text(trainer.read_text() + "\n# changed\n")
    log = run_dir.parent / "code.log"
    code = server.run(["--job-id", new_job_id(), "--run-dir", str(run_dir), "--allow-change", "code"], log)
    assert code == 93, log.read_text()
    assert events(run_dir, "plan_written")[-1]["changes"][0]["key"] == "trainer.code_sha256"


def test_what_decides_the_run_is_refused_whatever_is_allowed(server: ForkServer, stopped: tuple[Path, Path]) -> None:
    spec, run_dir = stopped
    spec.write_text(spec.read_text().replace("seed: 42", "seed: 43"))
    before = fingerprint(run_dir)
    for names in (("max_steps", "lr", "threads", "versions", "code"), ("seed",)):
        code, log = resume_allowing(server, spec, run_dir, *names)
        assert code == (2 if "seed" in names else 78), log
    assert fingerprint(run_dir) == before


def test_changed_data_are_refused(server: ForkServer, stopped: tuple[Path, Path]) -> None:
    spec, run_dir = stopped
    write_table(spec.parent / "train-1.parquet", 123, seed=99, row_group_rows=50)
    before = fingerprint(run_dir)
    code, log = take_up(server, run_dir)
    assert code == 65, log
    assert "train-1.parquet" in log
    assert fingerprint(run_dir) == before


def test_a_run_that_exists_is_not_started_again(server: ForkServer, stopped: tuple[Path, Path]) -> None:
    spec, run_dir = stopped
    before = fingerprint(run_dir)
    log = run_dir.parent / "again.log"
    code = server.run(command(spec, run_dir.parent, "run", "--set", "seed=42"), log)
    assert code == 78
    assert "the run 'run' exists" in log.read_text()
    assert "--resume" in log.read_text()
    assert fingerprint(run_dir) == before


def test_a_run_that_does_not_exist_is_not_resumed(server: ForkServer, tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=20)
    code, log = resume(server, spec, tmp_path / "run")
    assert code == 78
    assert "there is no such run" in log
    assert not (tmp_path / "run").exists()


def test_a_second_process_on_one_run_is_refused(server: ForkServer, tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=1_000_000)
    pid = server.start(command(spec, tmp_path, "run"), tmp_path / "log")
    while not (tmp_path / "run/checkpoints/last.pt").exists():
        pass
    code, log = take_up(server, tmp_path / "run")
    assert code == 78
    assert "another process is running it" in log
    os.kill(pid, signal.SIGKILL)
    server.wait(pid)


def test_a_run_whose_folder_was_moved_goes_on_where_it_lies(server: ForkServer, stopped: tuple[Path, Path]) -> None:
    _, run_dir = stopped
    step = outcome(run_dir)["step"]
    moved = run_dir.parent / "elsewhere" / "run"
    moved.parent.mkdir()
    shutil.move(run_dir, moved)
    code, log = take_up(server, moved)
    assert code == 93, log
    assert outcome(moved)["step"] >= step
    assert events(moved, "resumed")[-1]["from_step"] == step
