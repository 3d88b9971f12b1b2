"""A checkpoint that the user named is used or refused: never replaced by another, and a refusal changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.compare import differences, events, final_payload, lines, outcome
from support.forkserver import ForkServer
from support.job import command, stride_of, write_job
from trn.checkpoint.meta import CheckpointMeta, checkpoint_name, listed_steps, meta_name
from trn.checkpoint.named import named_step, parse_name
from trn.errors import ResumeRefused
from trn.files import sha256_file
from trn.records import new_job_id
from trn.verify import verify_run

STEPS = 120


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder with its digest, but for the lock's note of who held it last."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


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
    assert server.run(command(spec, folder, "oracle"), folder / "log") == 0, (folder / "log").read_text()
    return folder / "oracle"


@pytest.fixture
def ended(oracle: Path, tmp_path: Path) -> Path:
    """A copy of it, to be gone back in."""
    return Path(shutil.copytree(oracle, tmp_path / "run"))


def resume(server: ForkServer, run_dir: Path, name: str, *more: str) -> tuple[int, str]:
    log = run_dir.parent / f"{new_job_id()}.log"
    code = server.run(["--job-id", new_job_id(), "--run-dir", str(run_dir), "--checkpoint", name, *more], log)
    return code, log.read_text()


def assert_same_training(run_dir: Path, oracle: Path) -> None:
    """Weights, optimizer, streams, every metrics line, samples, best checkpoint and how it ended: bit for bit."""
    for name in ("train_metrics.jsonl", "val_metrics.jsonl"):
        assert lines(run_dir, name) == lines(oracle, name), name
    assert differences("", final_payload(run_dir), final_payload(oracle)) == []
    for path in sorted((oracle / "samples").iterdir()):
        assert (run_dir / "samples" / path.name).read_bytes() == path.read_bytes(), path.name
    for key in ("status", "step", "final", "best", "epochs_completed", "exit_code"):
        assert outcome(run_dir)[key] == outcome(oracle)[key], key
    assert sha256_file(run_dir / "checkpoints/best.pt") == sha256_file(
        run_dir / "checkpoints" / checkpoint_name(outcome(oracle)["best"]["step"])
    )
    assert [one for one in verify_run(run_dir) if one.problem is not None] == []


# what a name means


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("last", "last"),
        ("best", "best"),
        ("last.pt", "last"),
        ("best.meta.json", "best"),
        ("200", 200),
        ("step-00000200", 200),
        ("step-200", 200),
        ("step-00000200.pt", 200),
        ("step-00000200.meta.json", 200),
        ("step-123456789.pt", 123456789),
    ],
)
def test_a_checkpoint_has_several_spellings(text: str, name: str | int) -> None:
    assert parse_name(text) == name


@pytest.mark.parametrize(
    "text",
    ["", "demo", "LAST", "-1", "1.5", "step-", "200.pt", "step-1.onnx", "epoch-001.pt", "9" * 19, "２００", "2\n"],
)
def test_anything_else_is_no_name_of_a_checkpoint(text: str) -> None:
    assert parse_name(text) is None


@pytest.mark.slow
def test_every_spelling_finds_its_checkpoint_in_a_run(ended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ended / "checkpoints"
    best = CheckpointMeta.read(folder / meta_name(STEPS)).progress["best"]["step"]
    for text in (
        "100",
        "step-00000100",
        f"{folder}/step-00000100.pt",
        f"{folder}/../checkpoints/step-00000100.meta.json",
    ):
        assert named_step(ended, text) == 100
    assert named_step(ended, "last") == named_step(ended, f"{folder}/last.pt") == STEPS
    assert named_step(ended, "best") == named_step(ended, f"{folder}/best.meta.json") == best
    monkeypatch.chdir(ended.parent)
    assert named_step(ended, "run/checkpoints/step-00000100.pt") == 100


@pytest.mark.slow
def test_best_is_what_the_newest_checkpoint_says_and_not_where_a_hint_points(ended: Path) -> None:
    folder = ended / "checkpoints"
    best = CheckpointMeta.read(folder / meta_name(STEPS)).progress["best"]["step"]
    for kind, name in ((".pt", checkpoint_name(20)), (".meta.json", meta_name(20))):
        shutil.copy(folder / name, folder / f"best{kind}")
    assert named_step(ended, "best") == best
    (folder / meta_name(STEPS)).write_text("{}")
    with pytest.raises(ResumeRefused, match="nobody knows which checkpoint is the best"):
        named_step(ended, "best")


# going back


@pytest.mark.slow
def test_a_finished_run_goes_on_from_an_older_checkpoint_and_ends_the_same(
    server: ForkServer, oracle: Path, ended: Path
) -> None:
    first = outcome(ended)
    code, log = resume(server, ended, "step-00000060.pt")
    assert code == 0, log
    assert_same_training(ended, oracle)
    last = events(ended)[-1]
    resumed = events(ended, "resumed")[-1]
    assert (resumed["from_step"], resumed["checkpoint"], resumed["named"]) == (60, "step-00000060.pt", True)
    job_id = last["job_id"]
    aside = sorted(path.name for path in (ended / f"checkpoints/abandoned-{job_id}").glob("*.pt"))
    assert [name for name in aside if name.startswith("step-")] == [
        checkpoint_name(step) for step in sorted(listed_steps(oracle / "checkpoints")) if step > 60
    ]
    assert [name for name in aside if name.startswith("epoch-")] == ["epoch-001.pt", "epoch-002.pt"]
    cut = {one["side_file"]: one["lines"] for one in events(ended, "metrics_cut") if one["job_id"] == job_id}
    assert cut[f"reports/train_metrics.cut-{job_id}.jsonl"] == STEPS - 60
    assert (ended / f"reports/val_metrics.cut-{job_id}.jsonl").is_file()
    archived = json.loads((ended / f"reports/outcomes/{first['job_id']}.json").read_text())
    assert archived == first
    jobs = json.loads((ended / "reports/run_meta.json").read_text())["jobs"]
    assert [job["from_step"] for job in jobs] == [None, 60]


@pytest.mark.slow
def test_a_run_can_be_gone_back_in_again_and_again(server: ForkServer, oracle: Path, ended: Path) -> None:
    for name in ("best", "100", "step-00000020", "60"):
        code, log = resume(server, ended, name)
        assert code == 0, f"{name}: {log}"
        assert_same_training(ended, oracle)


@pytest.mark.slow
def test_by_its_spec_and_in_the_other_spelling_it_is_the_same(
    server: ForkServer, spec: Path, oracle: Path, ended: Path
) -> None:
    log = ended.parent / "log"
    code = server.run(command(spec, ended.parent, "run", "--resume", "--checkpoint", "40"), log)
    assert code == 0, log.read_text()
    assert_same_training(ended, oracle)
    for door in (
        ["resume", str(ended), "--checkpoint", f"{ended}/checkpoints/step-00000080.pt"],
        ["run", "--config", str(spec), "--runs-dir", str(ended.parent), "--run-id", "run", "--resume-from", "100"],
        ["run", "--config", str(spec), "--runs-dir", str(ended.parent), "--run-id", "run",
         "--resume-from", f"{ended}/checkpoints/step-00000060.pt"],
    ):  # fmt: skip
        done = trn(*door)
        assert done.returncode == 0, done.stderr
        assert_same_training(ended, oracle)
    assert [one["from_step"] for one in events(ended, "resumed")] == [40, 80, 100, 60]


def trn(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "trn.doors.cli", *arguments], capture_output=True, text=True, env=environ
    )


@pytest.mark.slow
def test_an_unfinished_run_goes_back_too(server: ForkServer, spec: Path, oracle: Path, tmp_path: Path) -> None:
    long = spec.with_name("slow.yaml")
    long.write_text(spec.read_text())
    pid = server.start(command(long, tmp_path, "run"), tmp_path / "log")
    while not (tmp_path / "run/checkpoints" / meta_name(60)).exists():
        pass
    os.kill(pid, signal.SIGKILL)
    server.wait(pid)
    code, log = resume(server, tmp_path / "run", "20")
    assert code == 0, log
    assert_same_training(tmp_path / "run", oracle)


@pytest.mark.slow
def test_the_last_checkpoint_of_a_finished_run_has_nothing_to_train(server: ForkServer, ended: Path) -> None:
    before = contents(ended)
    for name in ("last", str(STEPS)):
        code, log = resume(server, ended, name)
        assert code == 0
        assert f"is finished: completed at step {STEPS}" in log
    assert contents(ended) == before


# what is refused


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("70", "there is no checkpoint '70'; there are step-00000120, "),
        ("0", "there is no checkpoint '0'"),
        ("nonsense", "there is no checkpoint 'nonsense'; there are"),
        ("epoch-001.pt", "there is no checkpoint 'epoch-001.pt'"),
        ("/nowhere/checkpoints/step-00000060.pt", "expected a checkpoint of this run"),
        ("../run/reports/step-00000060.pt", "expected a checkpoint of this run"),
    ],
)
def test_an_unknown_name_is_refused_with_what_there_is(server: ForkServer, ended: Path, name: str, said: str) -> None:
    before = contents(ended)
    code, log = resume(server, ended, name)
    assert code == 78, log
    assert said in log
    assert len([line for line in log.splitlines() if line and not line.startswith("operations")]) == 1
    assert contents(ended) == before


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # it may have a second name
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "said"),
    [
        ("checkpoints/step-00000060.pt", "the sha256 of step-00000060.pt is not the one in its meta"),
        ("checkpoints/step-00000060.meta.json", "step-00000060.meta.json: "),
        ("reports/train_metrics.jsonl", "train_metrics.jsonl does not begin with the 60 lines"),
    ],
)
def test_a_named_checkpoint_that_does_not_hold_is_refused_and_no_other_taken(
    server: ForkServer, ended: Path, victim: str, said: str
) -> None:
    if victim.endswith(".jsonl"):
        whole = (ended / victim).read_bytes().splitlines(keepends=True)
        whole[10] = whole[11]
        (ended / victim).write_bytes(b"".join(whole))
    else:
        flip(ended / victim)
    before = contents(ended)
    code, log = resume(server, ended, "60")
    assert code == 78, log
    assert "[resume_refused]" in log
    assert said in log
    assert contents(ended) == before


@pytest.mark.slow
def test_a_deleted_checkpoint_is_refused(server: ForkServer, ended: Path) -> None:
    (ended / "checkpoints" / checkpoint_name(60)).unlink()
    before = contents(ended)
    code, log = resume(server, ended, "60")
    assert code == 78
    assert "cannot be read" in log
    assert contents(ended) == before


@pytest.mark.slow
def test_what_a_resume_went_back_behind_is_told_and_cannot_be_named(server: ForkServer, ended: Path) -> None:
    assert resume(server, ended, "60")[0] == 0
    aside = next((ended / "checkpoints").glob("abandoned-*"))
    for step in (100, STEPS):
        for name in (meta_name(step), checkpoint_name(step)):
            (ended / "checkpoints" / name).unlink()
    before = contents(ended)
    code, log = resume(server, ended, "100")
    assert code == 78
    assert f"but for the one in {aside.name} that a resume went back behind" in log
    code, log = resume(server, ended, str(aside / "step-00000100.pt"))
    assert code == 78
    assert f"it lies in {aside.name}: a resume went back behind it and cut its metrics" in log
    assert contents(ended) == before


@pytest.mark.slow
def test_another_runs_checkpoint_is_refused(server: ForkServer, oracle: Path, ended: Path) -> None:
    before = contents(ended)
    code, log = resume(server, ended, str(oracle / "checkpoints/step-00000060.pt"))
    assert code == 78
    assert "expected a checkpoint of this run" in log
    assert "--resume-from PATH" in log
    assert contents(ended) == before


@pytest.mark.slow
def test_the_contract_holds_for_a_named_one_too(server: ForkServer, spec: Path, ended: Path) -> None:
    changed = spec.with_name("changed.yaml")
    changed.write_text(spec.read_text().replace("seed: 42", "seed: 43"))
    before = contents(ended)
    log = ended.parent / "log"
    code = server.run(command(changed, ended.parent, "run", "--resume", "--checkpoint", "60"), log)
    assert code == 78
    assert "seed: the run has 42, now 43" in log.read_text()
    assert contents(ended) == before


@pytest.mark.slow
def test_a_run_without_checkpoints_has_none_to_name(server: ForkServer, spec: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    fault = "op=rename,n=1,do=kill,path=step-00000020.pt"
    assert server.run(command(spec, tmp_path, "run"), log, fault=fault) == -signal.SIGKILL
    for name in ("last", "best", "20"):
        code, text = resume(server, tmp_path / "run", name)
        assert code == 78
        assert f"there is no checkpoint '{name}'; there is none" in text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_going_back_may_be_killed_at_every_operation(
    server: ForkServer, spec: Path, oracle: Path, tmp_path: Path
) -> None:
    """Whatever is left, a plain resume goes on from it and ends the same; nothing is trusted that does not hold."""
    stride = stride_of("kill", of_kills=2)
    passed, n = False, 1 - stride
    while not passed:
        n += stride
        run_dir = Path(shutil.copytree(oracle, tmp_path / f"{n}/run"))
        log = tmp_path / f"{n}/log"
        argv = ["--job-id", new_job_id(), "--run-dir", str(run_dir), "--checkpoint", "80"]
        # the training itself is killed elsewhere: here until it has begun
        code = server.run(argv, log, fault=f"op=any,n={n},do=kill")
        passed = any(one["from_step"] == 80 for one in events(run_dir, "resumed"))
        assert code == -signal.SIGKILL
        again = server.run(["--job-id", new_job_id(), "--run-dir", str(run_dir)], log)
        assert again == 0, log.read_text()
        assert_same_training(run_dir, oracle)
        assert not list(run_dir.rglob(".*.tmp-*"))
    assert n > 20
