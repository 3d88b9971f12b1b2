"""`python -m trn.validate_run_meta FILE`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trn.provenance import StartupFacts, startup_artifacts
from trn.validate_run_meta import main


@pytest.fixture
def record(facts: StartupFacts, tmp_path: Path) -> Path:
    path = tmp_path / "run_meta.json"
    path.write_bytes(startup_artifacts(facts)["reports/run_meta.json"])
    return path


def test_a_good_file_is_ok(record: Path) -> None:
    command = [sys.executable, "-m", "trn.validate_run_meta", str(record)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"OK: {record}\n", "")


def test_each_problem_is_a_line_and_the_status_is_86(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = record.read_text()
    record.write_text(good.replace('"interop_threads": 1', '"interop_threads": 0').replace('"cwd"', '"cwt"'))
    assert main([str(record)]) == 86
    shown = capsys.readouterr()
    assert shown.out == ""
    places = [line.split(": ")[1] for line in shown.err.splitlines()]
    assert places == ["runtime.interop_threads", "command.cwd", "command.cwt"]
    record.write_text(good.replace('"kind": "none"', '"x": 1'))
    assert main([str(record)]) == 86
    assert "preprocess.kind is missing" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["no/such/file"], ["."], ["a\0b"]])
def test_no_readable_file_is_a_mistake_of_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
    assert "Traceback" not in shown.err


def test_the_validator_needs_neither_torch_nor_pyarrow() -> None:
    code = "import sys, trn.validate_run_meta; print(sorted({'torch', 'pyarrow', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
