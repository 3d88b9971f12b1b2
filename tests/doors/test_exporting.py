"""`trn export` and `trn eval`: which run is meant, and what their programs are told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from support.job import write_job
from support.stand_in import publish
from trn.doors import exporting
from trn.doors.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run, found by its id."""
    monkeypatch.setenv("TRN_RUNS_DIR", str(tmp_path / "runs"))
    publish(tmp_path / "runs/demo", "job-1").release()
    return tmp_path / "runs/demo"


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that a verb became."""
    lines: list[list[str]] = []

    def become(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
        assert environ == {}, "as a runner is started"
        lines.append(list(argv))

    monkeypatch.setattr(exporting, "become", become)
    return lines


def test_a_verb_becomes_its_program_with_the_folder_of_the_run(
    demo: Path, became: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["eval", "demo"]) == 0
    assert main(["export", "./runs/demo", "--json"]) == 2  # from another folder
    monkeypatch.chdir(demo.parents[1])
    assert main(["export", "./runs/demo", "--json"]) == 0
    program = [sys.executable, "-u", "-P", "-m"]
    assert became == [[*program, "trn.evaluate", str(demo)], [*program, "trn.export", str(demo), "--json"]]


def test_every_option_is_handed_on(demo: Path, became: list[list[str]]) -> None:
    common = ["--checkpoint", "last", "--device", "cpu", "--code", "-odd-", "--allow-change", "code"]
    own = ["--data", "a.parquet", "--data", "b.parquet", "--batch-size", "3", "--max-batches", "0"]
    assert main(["eval", "demo", *common, *own]) == 0
    export = ["--format", "onnx", "--format", "hf", "--opset", "20", "--parity-policy", "warn", "--atol", "0.001"]
    assert main(["export", "demo", *common, *export]) == 0
    told = [set(line[6:]) for line in became]
    both = {"--checkpoint=last", "--device=cpu", "--code=-odd-", "--allow-change=code"}
    assert told[0] == both | {"--data=a.parquet", "--data=b.parquet", "--batch-size=3", "--max-batches=0"}
    assert told[1] == both | {"--format=onnx", "--format=hf", "--opset=20", "--parity-policy=warn", "--atol=0.001"}


@pytest.mark.parametrize("verb", ["eval", "export"])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing"], "no run or job is called 'nothing'"),
        (["./nothing"], "there is no such folder"),
        (["{empty}"], "there is no plan in it"),
        (["demo", "--checkpoint"], "requires an argument"),
        (["demo", "--nonsense"], "No such option"),
        ([], "Missing argument"),
    ],
)
def test_what_is_no_run_or_no_option_is_refused(
    demo: Path, became: list[list[str]], tmp_path: Path, capsys: Capture, verb: str, words: list[str], told: str
) -> None:
    (tmp_path / "empty").mkdir()
    assert main([verb, *(word.replace("{empty}", str(tmp_path / "empty")) for word in words)]) == 2
    assert told in capsys.readouterr().err
    assert became == []


@pytest.mark.parametrize(
    "words", [["eval", "demo", "--batch-size", "0"], ["eval", "demo", "--max-batches", "-1"],
              ["export", "demo", "--format", "pickle"], ["export", "demo", "--parity-policy", "none"],
              ["export", "demo", "--atol", "x"]]
)  # fmt: skip
def test_values_that_cannot_be_are_refused_before_anything_is_loaded(
    demo: Path, became: list[list[str]], words: list[str]
) -> None:
    assert main(words) == 2
    assert became == []


def trn(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trn.doors.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=cwd)


@pytest.mark.slow
def test_a_run_that_was_copied_elsewhere_is_evaluated_by_the_command_line(tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=30)
    done = trn("run", "--config", str(spec), "--run-id", "demo", "--runs-dir", str(tmp_path / "runs"), "--json")
    assert done.returncode == 0, done.stderr
    moved = Path(shutil.move(tmp_path / "runs/demo", tmp_path / "there/another-name"))
    code = Path(shutil.copytree(tmp_path / "job", tmp_path / "checkout"))
    shutil.rmtree(tmp_path / "job")
    gone = trn("eval", str(moved), "--data", str(code / "validation.parquet"))
    assert (gone.returncode, gone.stdout) == (78, "")
    assert "--code DIR" in gone.stderr
    assert "Traceback" not in gone.stderr
    words = ["eval", str(moved), "--data", "validation.parquet", "--checkpoint", "last", "--json"]
    found = trn(*words, cwd=code)  # the code lies in the current folder
    assert found.returncode == 0, found.stderr
    document: dict[str, Any] = json.loads(found.stdout)
    assert document["is_equal"] is True
    assert document["run_id"] == "demo"
    assert (moved / document["record"]).is_file()
    assert os.listdir(tmp_path / "runs") != ["demo"]
    assert trn("verify", str(moved)).returncode == 0
