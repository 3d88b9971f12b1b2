"""A fork is a new run from another one's checkpoint: it ends as that would have, and the other is only read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from support.compare import differences, epoch_artifacts, events, final_payload, lines, outcome
from support.forkserver import OPERATIONS, ForkServer
from support.job import command, write_job
from trn.checkpoint.meta import CheckpointMeta, checkpoint_name, listed_steps, meta_name
from trn.errors import ResumeRefused, Stopped, StorageError
from trn.files import sha256_file
from trn.plan import publish_run
from trn.records import new_job_id, read_json
from trn.runner import fork as forking
from trn.runner.origin import Origin, read_origin
from trn.spec.plan_model import Plan
from trn.verify import verify_run

pytestmark = pytest.mark.slow
STEPS = 120


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 steps in three epochs, a checkpoint every 20, of which all stay."""
    path = write_job(tmp_path_factory.mktemp("job"), max_steps=STEPS)
    path.write_text(path.read_text().replace("{keep: 2}", "{keep: 1000}"))
    return path


@pytest.fixture(scope="module")
def oracle(server: ForkServer, spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("oracle")
    assert server.run(command(spec, folder, "source"), folder / "log") == 0, (folder / "log").read_text()
    return folder / "source"


@pytest.fixture(scope="module")
def killed(server: ForkServer, spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed while it saved step 100: its newest checkpoint is that of step 80."""
    folder = tmp_path_factory.mktemp("killed")
    fault = "op=rename,n=1,do=kill,path=step-00000100.pt"
    assert server.run(command(spec, folder, "source"), folder / "log", fault=fault) == -signal.SIGKILL
    return folder / "source"


@pytest.fixture
def source(oracle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(oracle, tmp_path / "source"))


@pytest.fixture
def unfinished(killed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(killed, tmp_path / "source"))


def run(server: ForkServer, argv: list[str], folder: Path) -> tuple[int, str]:
    log = folder / f"{new_job_id()}.log"
    code = server.run(argv, log)
    said = [line for line in log.read_text().splitlines() if line and not line.startswith(OPERATIONS)]
    return code, "\n".join(said)


def fork(server: ForkServer, source: Path, run_id: str, *more: str) -> tuple[int, str]:
    """By the source's own plan, beside it."""
    argv = ["--job-id", new_job_id(), "--run-dir", str(source), "--run-id", run_id, *more]
    return run(server, argv, source.parent)


def fork_by_spec(server: ForkServer, spec: Path, source: Path, run_id: str, *more: str) -> tuple[int, str]:
    return run(server, command(spec, source.parent, run_id, "--fork-from", str(source), *more), source.parent)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def left_of_forks(source: Path) -> list[str]:
    """All that lies beside the source but logs of these tests: nothing, where nothing was made."""
    staged = [path.name for path in (source.parent / ".trn/staging").glob("*")]
    own = {source.name, ".trn"}
    return staged + [path.name for path in source.parent.iterdir() if path.name not in own and path.suffix != ".log"]


def assert_verified(run_dir: Path) -> None:
    assert [one for one in verify_run(run_dir) if one.problem is not None] == []


def assert_same_end(run_dir: Path, oracle: Path) -> None:
    """Weights, optimizer, streams, cursor, every metrics line, every epoch, and how it ended."""
    for name in ("train_metrics.jsonl", "val_metrics.jsonl"):
        assert lines(run_dir, name) == lines(oracle, name), name
    assert differences("", final_payload(run_dir), final_payload(oracle)) == []
    assert epoch_artifacts(run_dir) == epoch_artifacts(oracle)
    for key in ("status", "step", "final", "best", "epochs_completed", "exit_code", "plan_fingerprint"):
        assert outcome(run_dir)[key] == outcome(oracle)[key], key
    assert_verified(run_dir)


def plan_of(run_dir: Path) -> Plan:
    return Plan.read((run_dir / "reports/resolved_config.json").read_bytes(), "plan")


# what a fork is


@pytest.mark.parametrize("name", ["20", "step-00000080.pt"])
def test_a_fork_without_changes_ends_as_its_source(server: ForkServer, oracle: Path, source: Path, name: str) -> None:
    before = contents(source)
    code, log = fork(server, source, "new", "--checkpoint", name)
    assert code == 0, log
    assert_same_end(source.parent / "new", oracle)
    assert contents(source) == before, "the source is only read"


def test_a_fork_of_an_unfinished_run_begins_at_its_newest_checkpoint(
    server: ForkServer, oracle: Path, unfinished: Path
) -> None:
    before = contents(unfinished)
    best = CheckpointMeta.read(unfinished / "checkpoints" / meta_name(80)).progress["best"]["step"]
    for run_id, name in (("newest", None), ("best", "best"), ("last", "last")):
        code, log = fork(server, unfinished, run_id, *(("--checkpoint", name) if name else ()))
        assert code == 0, log
        assert_same_end(unfinished.parent / run_id, oracle)
        assert read_json(unfinished.parent / run_id / "reports/forked_from.json")["step"] == (
            best if name == "best" else 80
        )
    assert contents(unfinished) == before
    code, log = run(server, ["--job-id", new_job_id(), "--run-dir", str(unfinished)], unfinished.parent)
    assert code == 0, log
    assert_same_end(unfinished, oracle)


def test_a_fork_says_where_it_came_from_and_its_history_is_its_own(server: ForkServer, source: Path) -> None:
    assert fork(server, source, "new", "--checkpoint", "60")[0] == 0
    new, meta = source.parent / "new", CheckpointMeta.read(source / "checkpoints" / meta_name(60))
    origin = {
        "run_id": "source",
        "plan_fingerprint": plan_of(source).fingerprint,
        "checkpoint": "step-00000060.pt",
        "sha256": meta.sha256,
        "step": 60,
    }
    assert read_json(new / "reports/forked_from.json") == {"schema_version": 1, **origin}
    told = events(new)
    assert {one["run_id"] for one in told} == {"new"}
    assert len({one["job_id"] for one in told}) == 1
    assert [one["seq"] for one in told] == list(range(1, len(told) + 1))
    assert events(new, "resumed")[0]["from_step"] == 60
    assert [one["forked_from"] for one in events(new, "plan_written")] == [origin]
    plan = plan_of(new)
    assert (plan.run_id, plan.revision, plan.earlier_fingerprints) == ("new", 0, [])
    assert (plan.run_dir, plan.runs_dir) == (str(new), str(new.parent))
    own = CheckpointMeta.read(new / "checkpoints" / meta_name(60))
    assert (own.run_id, own.job_id, own.sha256) == ("new", told[0]["job_id"], meta.sha256)
    assert [job["job_id"] for job in read_json(new / "reports/run_meta.json")["jobs"]] == [told[0]["job_id"]]
    assert (new / "config_source.yaml").read_bytes() == (source / "config_source.yaml").read_bytes()


def test_no_file_belongs_to_both_runs_and_the_best_checkpoint_comes_along(server: ForkServer, source: Path) -> None:
    """Killed as soon as it is published, the fork has all that it goes on from, and nothing else."""
    log = source.parent / "kill.log"
    argv = ["--job-id", new_job_id(), "--run-dir", str(source), "--run-id", "new", "--checkpoint", "60"]
    fault = f"op=open,n=1,do=kill,path={source.parent / 'new/reports/events.jsonl'}"
    assert server.run(argv, log, fault=fault) == -signal.SIGKILL
    new = source.parent / "new"
    files = {str(path.relative_to(new)) for path in (new / "checkpoints").iterdir()}
    best = CheckpointMeta.read(source / "checkpoints" / meta_name(60)).progress["best"]["step"]
    assert best != 60
    assert files == {
        *(f"checkpoints/{name(step)}" for step in (best, 60) for name in (meta_name, checkpoint_name)),
        "checkpoints/epoch-000.pt",
        "checkpoints/epoch-000.metadata.json",
    }
    assert sha256_file(new / "checkpoints/epoch-000.pt") == sha256_file(source / "checkpoints" / checkpoint_name(40))
    assert (new / "reports/train_metrics.jsonl").read_bytes().count(b"\n") == 60
    theirs = {path.stat().st_ino for path in source.rglob("*") if path.is_file()}
    assert not theirs & {path.stat().st_ino for path in new.rglob("*") if path.is_file()}
    assert run(server, ["--job-id", new_job_id(), "--run-dir", str(new)], new.parent)[0] == 0
    assert_verified(new)
    assert events(new, "plan_written")[0]["forked_from"]["step"] == 60, "also told by the job after the one killed"


def test_a_fork_can_be_forked_and_gone_back_in(server: ForkServer, oracle: Path, source: Path) -> None:
    assert fork(server, source, "child", "--checkpoint", "60")[0] == 0
    child = source.parent / "child"
    assert fork(server, child, "grandchild", "--checkpoint", "80")[0] == 0
    assert_same_end(source.parent / "grandchild", oracle)
    assert read_json(source.parent / "grandchild/reports/forked_from.json")["run_id"] == "child"
    shutil.rmtree(source)
    code, log = run(server, ["--job-id", new_job_id(), "--run-dir", str(child), "--checkpoint", "60"], child.parent)
    assert code == 0, log
    assert_same_end(child, oracle)


# the contract


def test_a_fork_by_spec_may_change_what_a_resume_may(server: ForkServer, spec: Path, source: Path) -> None:
    longer = spec.with_name("longer.yaml")
    longer.write_text(spec.read_text().replace(f"max_steps: {STEPS}", "max_steps: 140"))
    code, log = fork_by_spec(server, longer, source, "new")
    assert code == 78
    assert "--allow-change max_steps" in log
    assert left_of_forks(source) == []
    code, log = fork_by_spec(server, longer, source, "new", "--allow-change", "max_steps")
    assert code == 0, log
    new = source.parent / "new"
    assert lines(new, "train_metrics.jsonl")[:STEPS] == lines(source, "train_metrics.jsonl")
    assert [line["lr"] for line in lines(new, "train_metrics.jsonl")[STEPS:]] == [0.0001] * 20, "it never climbs again"
    assert {"key": "budget.max_steps", "was": STEPS, "now": 140} in events(new, "plan_written")[0]["changes"]
    assert (plan_of(new).revision, plan_of(new).earlier_fingerprints) == (0, [])
    assert read_json(new / "reports/forked_from.json")["plan_fingerprint"] == plan_of(source).fingerprint
    assert_verified(new)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("seed: 42", "seed: 43", "seed: the run has 42, now 43"),
        ("batch_size: 8", "batch_size: 16", "dataset.batch_size"),
        ("width: 16", "width: 32", "trainer.params.width"),
    ],
)
def test_what_decides_the_run_is_refused(
    server: ForkServer, spec: Path, source: Path, old: str, new: str, key: str
) -> None:
    changed = spec.with_name("changed.yaml")
    changed.write_text(spec.read_text().replace(old, new))
    allowed = [part for name in ("max_steps", "lr", "threads", "versions", "code") for part in ("--allow-change", name)]
    code, log = fork_by_spec(server, changed, source, "new", "--checkpoint", "60", *allowed)
    assert code == 78
    assert key in log
    assert left_of_forks(source) == []


def test_a_fork_of_a_revised_run_has_its_newest_spec_and_one_plan(server: ForkServer, spec: Path, source: Path) -> None:
    longer = spec.with_name("revision.yaml")
    longer.write_text(spec.read_text().replace(f"max_steps: {STEPS}", "max_steps: 140"))
    resume = command(longer, source.parent, "source", "--resume", "--allow-change", "max_steps")
    assert run(server, resume, source.parent)[0] == 0
    assert plan_of(source).revision == 1
    code, log = fork(server, source, "new", "--checkpoint", "60")  # made by the plan before the revision
    assert code == 0, log
    new = source.parent / "new"
    assert (new / "config_source.yaml").read_bytes() == longer.read_bytes()
    assert plan_of(new).fingerprint == plan_of(source).fingerprint
    assert outcome(new)["step"] == 140
    assert_verified(new)


def test_with_auto_resume_a_scheduler_forks_once_and_then_continues(
    server: ForkServer, spec: Path, oracle: Path, source: Path
) -> None:
    more = ("--auto-resume", "--checkpoint", "60")
    log = source.parent / "kill.log"
    argv = command(spec, source.parent, "new", "--fork-from", str(source), *more)
    assert server.run(argv, log, fault="op=rename,n=1,do=kill,path=step-00000100.pt") == -signal.SIGKILL
    code, text = fork_by_spec(server, spec, source, "new", *more)
    assert code == 0, text
    assert [one["from_step"] for one in events(source.parent / "new", "resumed")] == [60, 80]
    assert_same_end(source.parent / "new", oracle)


# a source that runs


def is_over(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "Z"


def test_a_running_source_is_forked_and_does_not_notice(server: ForkServer, tmp_path: Path) -> None:
    long = write_job(tmp_path / "job", max_steps=100_000)
    pid = server.start(command(long, tmp_path, "source"), tmp_path / "log")
    source = tmp_path / "source"
    while not (source / "checkpoints" / meta_name(60)).exists():
        time.sleep(0.005)
    for number in range(4):
        new = tmp_path / f"new-{number}"
        argv = ["--job-id", new_job_id(), "--run-dir", str(source), "--run-id", new.name]
        own = server.start(argv, tmp_path / "fork.log")
        while not events(new, "started"):
            assert not is_over(own), (tmp_path / "fork.log").read_text()
            time.sleep(0.005)
        os.kill(own, signal.SIGTERM)
        assert server.wait(own) == 75, (tmp_path / "fork.log").read_text()
        assert_verified(new)
        step = read_json(new / "reports/forked_from.json")["step"]
        assert lines(new, "train_metrics.jsonl")[:step] == lines(source, "train_metrics.jsonl")[:step]
    os.kill(pid, signal.SIGTERM)
    assert server.wait(pid) == 75
    assert_verified(source)
    assert len(events(source, "resumed")) == 0


def publish(origin: Origin, run_id: str, go_on: Callable[[], None] = lambda: None) -> Path:
    """The folder of a fork, as it is before its job begins."""
    new = origin.run_dir.parent / run_id
    plan = origin.plan.model_copy(update={"run_id": run_id, "run_dir": str(new)})
    fill = partial(forking.copy_state, origin, plan, "job-x", go_on)
    publish_run(plan, {}, job_id="job-x", note="", fill=fill).release()
    return new


def test_retention_may_remove_the_checkpoints_while_they_are_copied(source: Path) -> None:
    origin = read_origin(source, "60")
    steps = [taken.meta.step for taken in origin.taken]
    assert steps == [60, 50]
    digests = [sha256_file(source / "checkpoints" / checkpoint_name(step)) for step in steps]
    for step in steps:
        for name in (meta_name(step), checkpoint_name(step)):
            (source / "checkpoints" / name).unlink()
    new = publish(origin, "new")
    assert [sha256_file(new / "checkpoints" / checkpoint_name(step)) for step in steps] == digests


@pytest.mark.parametrize(
    ("victim", "said"),
    [
        ("reports/train_metrics.jsonl", "changed while it was copied"),
        ("reports/val_metrics.jsonl", "cannot be read any more: No such file"),
        ("checkpoints/step-00000060.pt", "changed while it was copied"),
        ("checkpoints/epoch-000.metadata.json", "cannot be read any more: No such file"),
    ],
)
def test_what_else_vanishes_or_changes_while_it_is_copied_refuses_the_fork(
    source: Path, victim: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, path = read_origin(source, "60"), source / victim
    if "No such file" not in said:
        data = path.read_bytes()
        with open(path, "r+b") as stream:
            stream.write(data[:100].swapcase())
    elif path.suffix == ".json":
        monkeypatch.setattr(forking, "listed_epochs", lambda folder: [0])  # it goes just after it was listed
        path.unlink()
    else:
        path.unlink()
    with pytest.raises(ResumeRefused, match=f"{path.name} {said}"):
        publish(origin, "new")
    assert left_of_forks(source) == []


def test_a_stop_that_is_asked_for_while_it_copies_leaves_nothing(source: Path) -> None:
    def stop() -> None:
        raise Stopped("cancelled", "SIGINT was received")

    with pytest.raises(Stopped):
        publish(read_origin(source, "60"), "new", stop)
    assert left_of_forks(source) == []


# what is refused


def assert_refused(source: Path, result: tuple[int, str], code: int, *said: str) -> None:
    """One line, the exit code, and nothing made."""
    found, log = result
    assert found == code, log
    assert len(log.splitlines()) == 1, log
    for text in said:
        assert text in log
    assert left_of_forks(source) == []


def test_bad_requests_are_refused_in_one_line_and_nothing_is_made(
    server: ForkServer, source: Path, tmp_path: Path
) -> None:
    before = contents(source)
    assert_refused(source, fork(server, source, "source"), 2, "a fork needs an id of its own")
    elsewhere = ("--runs-dir", str(tmp_path / "elsewhere.log"))
    assert_refused(source, fork(server, source, "source", *elsewhere), 2, "a fork needs an id of its own")
    assert_refused(source, fork(server, source, "new"), 78, "nothing would be left to train", "--checkpoint")
    assert_refused(
        source, fork(server, source, "new", "--checkpoint", "70"), 78, "there is no checkpoint '70'; there are"
    )
    outside = str(tmp_path / "nowhere/checkpoints/step-00000060.pt")
    assert_refused(
        source, fork(server, source, "new", "--checkpoint", outside), 78, "expected a checkpoint of this run"
    )
    no_run = ["--job-id", new_job_id(), "--run-dir", str(source / "reports"), "--run-id", "new"]
    assert_refused(source, run(server, no_run, tmp_path), 78, "this folder is no run")
    for run_id in ("../up", "a/b", ".hidden", "jobs"):
        code, log = fork(server, source, run_id, "--checkpoint", "60")
        assert code == 2, log
        assert f"{run_id!r} cannot be the id of a run" in log
        assert left_of_forks(source) == []
    assert contents(source) == before


def test_an_id_that_is_taken_is_refused_and_left_as_it_is(server: ForkServer, source: Path) -> None:
    other = Path(shutil.copytree(source, source.parent / "other"))
    before = contents(other)
    code, log = fork(server, source, "other", "--checkpoint", "60")
    assert code == 78
    assert "the run 'other' exists" in log
    assert contents(other) == before
    (source.parent / "notes").mkdir()
    (source.parent / "notes/mine.txt").write_text("precious")
    code, log = fork(server, source, "notes", "--checkpoint", "60")
    assert code == 78
    assert "in the way" in log
    assert (source.parent / "notes/mine.txt").read_text() == "precious"


def test_a_run_without_a_checkpoint_cannot_be_forked(server: ForkServer, spec: Path, tmp_path: Path) -> None:
    fault = "op=rename,n=1,do=kill,path=step-00000020.pt"
    assert server.run(command(spec, tmp_path, "source"), tmp_path / "x.log", fault=fault) == -signal.SIGKILL
    source = tmp_path / "source"
    assert_refused(source, fork(server, source, "new"), 78, "it has no checkpoint yet")
    assert_refused(source, fork(server, source, "new", "--checkpoint", "20"), 78, "there is none")


def test_damage_in_the_source_is_refused_where_it_was_named_and_said_where_not(
    server: ForkServer, oracle: Path, unfinished: Path
) -> None:
    def damage(step: int) -> None:
        path = unfinished / "checkpoints" / checkpoint_name(step)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    damage(80)
    damage(75)
    named = fork(server, unfinished, "new", "--checkpoint", "80")
    assert_refused(unfinished, named, 78, "this checkpoint does not hold", "sha256")
    code, log = fork(server, unfinished, "new")
    assert code == 0, log
    assert log.splitlines()[0].startswith(str(unfinished / "checkpoints/step-00000080.pt") + " was passed over: ")
    assert read_json(unfinished.parent / "new/reports/forked_from.json")["step"] == 60
    assert_same_end(unfinished.parent / "new", oracle)
    shutil.rmtree(unfinished.parent / "new")
    for step in listed_steps(unfinished / "checkpoints"):
        if step not in (75, 80):
            damage(step)
    code, log = fork(server, unfinished, "new")
    assert code == 91
    assert "none holds" in log
    assert left_of_forks(unfinished) == []


def test_a_best_checkpoint_that_is_damaged_is_left_out_and_that_is_said(server: ForkServer, source: Path) -> None:
    path = source / "checkpoints" / checkpoint_name(50)
    path.write_bytes(path.read_bytes()[:-1])
    code, log = fork(server, source, "new", "--checkpoint", "60")
    assert code == 0, log
    assert "the best checkpoint is left out of the fork" in log
    assert not (source.parent / "new/checkpoints" / meta_name(50)).exists()
    assert_verified(source.parent / "new")


@pytest.mark.parametrize(
    "name",
    ["checkpoints", "reports", "checkpoints/step-00000060.pt", "reports/train_metrics.jsonl", "config_source.yaml"],
)
@pytest.mark.parametrize("kind", ["symlink", "fifo"])
def test_links_and_pipes_in_the_source_are_refused(server: ForkServer, source: Path, name: str, kind: str) -> None:
    path, kept = source / name, source.parent / "kept.log"
    path.rename(kept)
    if kind == "symlink":
        path.symlink_to(kept)
    elif name == "reports":
        return  # a pipe in the place of this folder is no run at all
    else:
        os.mkfifo(path)
    result = fork(server, source, "new", "--checkpoint", "60")
    assert_refused(source, result, 78, "is a symbolic link" if kind == "symlink" else "is no plain file")


def test_a_full_disk_is_told_before_anything_is_copied(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "free_bytes", lambda folder: 1000)
    with pytest.raises(StorageError, match="1,000 are free"):
        publish(read_origin(source, "60"), "new")
    assert left_of_forks(source) == []


# by the command


def trn(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if key != "TRN_RUNS_DIR"} | {"OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "trn.doors.cli", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, env=environ, cwd=cwd)


def test_by_the_command_a_fork_has_three_spellings(spec: Path, oracle: Path, tmp_path: Path) -> None:
    shutil.copytree(oracle, tmp_path / "runs/source")
    by_spec = ("run", "--config", str(spec), "--run-id")
    for run_id, arguments in {
        "a": ("resume", "source", "--run-id", "a", "--checkpoint", "60", "--json"),
        "b": (*by_spec, "b", "--resume-from", "runs/source/checkpoints/step-00000080.pt", "--json"),
        "c": (*by_spec, "c", "--resume-from", "source", "--checkpoint", "100", "--json"),
    }.items():
        done = trn(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert (said["run_id"], said["run_dir"]) == (run_id, str(tmp_path / "runs" / run_id))
        assert_same_end(tmp_path / "runs" / run_id, oracle)
    assert trn("verify", "a", cwd=tmp_path).returncode == 0
    listed = json.loads(trn("list", "--json", cwd=tmp_path).stdout)
    assert {row["run_id"] for row in listed} == {"source", "a", "b", "c"}
