"""What --resume-from, --checkpoint and --resume mean together, and which combinations are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from trn.doors.beginning import Beginning, fork_options, read_beginning
from trn.doors.targets import find
from trn.errors import UsageError


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the runs `demo` and `200`, which is the current folder's `runs`."""
    for run_id in ("demo", "200"):
        (tmp_path / "runs" / run_id / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / run_id / "reports").mkdir()
        (tmp_path / "runs" / run_id / "reports/resolved_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def read(
    runs: Path,
    resume_from: str | None = None,
    checkpoint: str | None = None,
    *,
    run_id: str = "new",
    resume: bool = False,
    auto_resume: bool = False,
) -> Beginning:
    return read_beginning(resume_from, checkpoint, run_dir=runs / run_id, resume=resume, auto_resume=auto_resume)


def test_without_them_nothing_changes(runs: Path) -> None:
    assert read(runs) == Beginning(False)
    assert read(runs, resume=True) == Beginning(True)
    assert read(runs).options == []


def test_a_name_of_a_checkpoint_is_a_resume_of_the_run_itself(runs: Path) -> None:
    for resume in (True, False):
        for name in ("last", "best", "200", "step-00000200.pt"):
            begin = read(runs, name, run_id="demo", resume=resume)
            assert begin == Beginning(True, name)
            assert begin.options == [("--checkpoint", name)]
    assert read(runs, checkpoint="best", resume=True) == Beginning(True, "best")


def test_the_path_of_an_own_checkpoint_is_one_too(runs: Path) -> None:
    for text in ("runs/demo/checkpoints/step-00000200.pt", f"{runs}/200/../demo/checkpoints/step-00000200.pt"):
        begin = read(runs, text, run_id="demo")
        assert begin.resume
        assert begin.fork_from is None
        assert Path(begin.checkpoint or "").resolve() == runs / "demo/checkpoints/step-00000200.pt"


def test_another_run_is_forked_by_its_id_its_path_or_a_checkpoint_of_it(runs: Path) -> None:
    demo = runs / "demo"
    assert read(runs, "demo") == Beginning(False, None, demo)
    assert read(runs, "runs/demo/") == Beginning(False, None, demo)
    assert read(runs, "demo", "best") == Beginning(False, "best", demo)
    assert read(runs, "demo", auto_resume=True) == Beginning(False, None, demo)
    path = demo / "checkpoints/step-00000200.meta.json"
    assert read(runs, "runs/demo/checkpoints/step-00000200.meta.json") == Beginning(False, str(path), demo)
    assert read(runs, "./runs/200") == Beginning(False, None, runs / "200"), "a run that is called like a step"
    abandoned = demo / "checkpoints/abandoned-job-1/step-00000300.pt"
    assert read(runs, str(abandoned)) == Beginning(False, str(abandoned), demo), "for the runner to refuse, with why"
    assert read(runs, "demo").options == [("--fork-from", str(demo))]


@pytest.mark.parametrize(
    ("resume_from", "checkpoint", "flags", "said"),
    [
        (None, "best", {}, "it says where a resume begins"),
        (None, "best", {"auto_resume": True}, "it says where a resume begins"),
        ("last", "best", {}, "--resume-from names a checkpoint already"),
        ("runs/demo/checkpoints/step-00000200.pt", "best", {}, "--resume-from names a checkpoint already"),
        ("last", None, {"auto_resume": True}, "never replaced by a fresh start"),
        ("demo", None, {"resume": True}, "it forks the run 'demo' into a new one"),
        ("demo", None, {"run_id": "demo"}, "a fork needs an id of its own"),
        ("runs/demo", None, {"run_id": "demo", "resume": True}, "a fork needs an id of its own"),
        ("nobody", None, {}, "no run or job is called 'nobody'"),
        ("runs/nobody/checkpoints/step-00000200.pt", None, {}, "there is no such folder"),
        ("runs/demo/step-00000200.pt", None, {}, "expected a run, or a file in the folder checkpoints of a run"),
        ("/model.pt", None, {}, "expected a run, or a file in the folder checkpoints of a run"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    runs: Path, resume_from: str | None, checkpoint: str | None, flags: dict[str, bool], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        read(runs, resume_from, checkpoint, **flags)


def test_a_strangers_checkpoint_without_a_plan_beside_it_is_refused(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "download/checkpoints/last.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    with pytest.raises(UsageError, match="there is no plan in it"):
        read(runs, str(path))


def test_a_fork_by_the_runs_own_plan_needs_another_id(runs: Path, tmp_path: Path) -> None:
    target = find("demo", runs)
    assert fork_options(target, "new", tmp_path) == [
        *("--run-dir", str(runs / "demo"), "--run-id", "new", "--runs-dir", str(tmp_path))
    ]
    with pytest.raises(UsageError, match="a fork needs an id of its own"):
        fork_options(target, "demo", tmp_path)
