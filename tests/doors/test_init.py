"""`trn init`: a folder that is whole or absent, and trainings that run as they are written."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trn import files
from trn.doors.cli import main
from trn.doors.starters import STARTERS
from trn.spec import load_spec

Capture = pytest.CaptureFixture[str]

TABLE = ["make_data.py", "spec.yaml", "train.parquet", "trainer.py", "validation.parquet"]


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    files.set_fault(None)


@pytest.mark.parametrize(("kind", "names"), [("torch", TABLE), ("hooks", TABLE), ("lm", ["spec.yaml"])])
def test_each_kind_is_a_folder_with_a_valid_spec(tmp_path: Path, capsys: Capture, kind: str, names: list[str]) -> None:
    folder = tmp_path / "above" / "my start"
    assert main(["init", str(folder), "--kind", kind]) == 0
    assert sorted(os.listdir(folder)) == names
    assert os.listdir(folder.parent) == ["my start"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())
    loaded = load_spec(folder / "spec.yaml")
    assert loaded.spec.dataset.parquet_paths is not None
    assert all(Path(path).is_relative_to(folder) for path in loaded.spec.dataset.parquet_paths)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"trn: wrote {', '.join(names)} into {folder}. Next:"
    assert [shlex.split(line)[0] for line in said[1:]] == ["trn", "trn"]
    assert f"trn run --config '{folder}/spec.yaml'" in {line.strip() for line in said[1:]}


def test_the_default_is_a_torch_trainer_and_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    assert main(["init", str(tmp_path / "start")]) == 0
    assert (tmp_path / "start" / "trainer.py").read_text() == STARTERS["torch"].files["trainer.py"]


def test_what_is_there_is_named_and_left_alone(tmp_path: Path, capsys: Capture) -> None:
    for name in ("notes", "a", "b", "c", "d", ".hidden\x1b[2J"):
        (tmp_path / name).write_text("mine")
    before = sorted(os.listdir(tmp_path))
    assert main(["init", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "expected an empty or a new folder; in it: .hidden, a, b, c, d and 1 more. Name another folder." in said
    assert sorted(os.listdir(tmp_path)) == before
    assert main(["init", str(tmp_path / "notes")]) == 2
    assert "this is no folder" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert main(["init", str(tmp_path / "link")]) == 2
    assert "this is a link" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_the_current_folder_is_not_pulled_away(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "."]) == 2
    assert "while you are in it" in capsys.readouterr().err
    assert main(["init", "here", "--kind", "lm"]) == 0
    assert "trn data text --out here/data" in capsys.readouterr().out


def test_data_that_cannot_be_made_leave_nothing(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "pyarrow.py").write_text("raise ImportError('no such library')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    assert main(["init", str(tmp_path / "start")]) == 65
    said = capsys.readouterr().err
    assert said.startswith("data error [data_error] at make_data.py: the data could not be made: ImportError: no such")
    assert os.listdir(tmp_path) == ["broken"]


@pytest.mark.parametrize("op", ["mkdir", "open", "write", "fsync", "rename"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, op: str, capsys: Capture) -> None:
    files.set_fault(f"op={op},n=1,do=enospc")
    assert main(["init", str(tmp_path / "start"), "--kind", "lm"]) == 74
    assert "Free some space" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_killed_anywhere_it_is_whole_or_absent_and_the_next_clears_up(tmp_path: Path) -> None:
    folder = tmp_path / "start"
    status, n = -signal.SIGKILL, 0
    while status == -signal.SIGKILL:
        n += 1
        status = _in_child(["init", str(folder), "--kind", "lm"], f"op=any,n={n},do=kill")
        if folder.exists():
            assert os.listdir(folder) == ["spec.yaml"]
            (folder / "spec.yaml").unlink()
    assert status == 0
    assert n > 8
    # a folder in which the lock was never held is left: nobody can say whether its maker is gone
    left = [path for path in tmp_path.iterdir() if path != folder]
    assert all(not (path / "new").exists() for path in left)


def _in_child(arguments: list[str], fault: str) -> int:
    pid = os.fork()
    if pid == 0:
        status = 99
        with contextlib.suppress(BaseException):
            files.set_fault(fault)
            status = main(arguments)
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(STARTERS))
def test_the_two_commands_that_are_printed_work(tmp_path: Path, kind: str) -> None:
    def trn(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "trn.doors.cli", *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TRN_RUNS_DIR": str(tmp_path / "runs")}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    made = trn("init", "start", "--kind", kind)
    assert made.returncode == 0, made.stderr
    changes = ("max_steps=3", "schedule.warmup_steps=1", "sample_every=3", "validation.max_batches=2")
    shorter = [part for change in changes for part in ("--set", change)]
    for line in made.stdout.splitlines()[1:]:
        program, *arguments = shlex.split(line)
        assert program == "trn"
        done = trn(*arguments, *(shorter if kind == "lm" and arguments[0] == "run" else ()))
        assert done.returncode == 0, (line, done.stderr)
    (row,) = json.loads(trn("list", "--json").stdout)
    assert row["state"] == "completed"
    assert trn("verify", row["run_id"]).returncode == 0
    if kind == "lm":
        assert list((tmp_path / "runs" / row["run_id"] / "samples").iterdir())
    else:
        best = json.loads(trn("status", "--json").stdout)["outcome"]["best"]["value"]
        assert best < 0.1  # y alone has a mean square of about 0.8
