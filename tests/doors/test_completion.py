"""`trn completion`: the scripts, and what a shell is offered when it asks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.stand_in import publish
from trn.doors import cli
from trn.doors.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs, the older one first, and what is none."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("TRN_RUNS_DIR", str(folder))
    for number, run_id in enumerate(("demo-a", "other", "demo-b")):
        publish(folder / run_id, f"job-{number}").release()
        os.utime(folder / run_id / "reports" / "resolved_config.json", (number, number))
    (folder / "demo-link").symlink_to(folder / "demo-a")
    (folder / "demo-nothing").mkdir()
    return folder


def offered(capsys: Capture, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """What bash is offered for the last of `words`, as `type,value`."""
    monkeypatch.setenv("_TRN_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    capsys.readouterr()
    assert main([]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


@pytest.mark.parametrize(
    ("shell", "said"), [("bash", "complete -o nosort"), ("zsh", "#compdef trn"), ("fish", "complete --no-files")]
)
def test_each_shell_gets_its_script(capsys: Capture, shell: str, said: str) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_TRN_COMPLETE" in script
    assert said in script
    assert f"{shell}_complete" in script


def test_an_unknown_shell_is_refused(capsys: Capture) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["status", "logs", "resume", "export", "eval", "verify", "gc"])
def test_ids_of_runs_are_offered_newest_first(
    runs_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    assert offered(capsys, monkeypatch, "trn", verb, "de") == ["plain,demo-b", "plain,demo-a"]
    assert offered(capsys, monkeypatch, "trn", verb, "zzz") == [""]
    assert offered(capsys, monkeypatch, "trn", verb, "./de") == ["dir,./de"]


def test_the_folder_of_runs_on_the_line_counts(
    runs_dir: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = ("trn", "status", "--runs-dir")
    assert offered(capsys, monkeypatch, *there, str(runs_dir), "ot") == ["plain,other"]
    assert offered(capsys, monkeypatch, *there, str(tmp_path / "nothing"), "ot") == [""]
    assert offered(capsys, monkeypatch, *there, "x") == ["dir,x"]
    assert not (tmp_path / "nothing").exists()


def test_verbs_options_and_files_are_offered(runs_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert offered(capsys, monkeypatch, "trn", "") == [f"plain,{verb}" for verb in cli._VERBS]
    assert offered(capsys, monkeypatch, "trn", "ver") == ["plain,verify"]
    assert offered(capsys, monkeypatch, "trn", "--ver") == ["plain,--version"]
    assert "plain,--auto-resume" in offered(capsys, monkeypatch, "trn", "run", "--")
    assert offered(capsys, monkeypatch, "trn", "run", "--config", "sp") == ["file,sp"]
    assert offered(capsys, monkeypatch, "trn", "init", "--kind", "h") == ["plain,hooks"]
    assert offered(capsys, monkeypatch, "trn", "fly", "x") == [""]


def test_a_folder_that_cannot_be_read_offers_nothing(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.setenv("TRN_RUNS_DIR", str(tmp_path / "loop"))
    assert offered(capsys, monkeypatch, "trn", "status", "d") == [""]


def test_asking_loads_nothing_heavy_and_only_the_verb_that_is_typed(runs_dir: Path) -> None:
    code = (
        "import sys; from trn.doors.cli import main; main([]);"
        "print([name for name in ('torch', 'pydantic', 'rich', 'trn.doors.doctor') if name in sys.modules])"
    )
    asked = {"_TRN_COMPLETE": "bash_complete", "COMP_WORDS": "trn status demo-b", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, check=True
    )
    assert done.stdout == "plain,demo-b\n[]\n"


def test_bash_completes_a_run(runs_dir: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    program = Path(sys.executable).with_name("trn")
    script = (
        'eval "$(trn completion bash)"; COMP_WORDS=(trn status de); COMP_CWORD=2;'
        ' _trn_completion trn; echo "${COMPREPLY[@]}"'
    )
    path = f"{program.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [bash, "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "demo-b demo-a\n"
