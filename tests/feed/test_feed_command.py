"""`python -m trn.feed index`: results on stdout, errors as one line with the exit status of their code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trn.feed import open_manifest
from trn.feed.__main__ import main

WriteParquet = Callable[..., str]


def test_index_writes_a_manifest_and_says_what_is_in_it(
    write: WriteParquet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("d/a.parquet", [3, 4])
    out = tmp_path / "dataset.json"
    assert main(["index", str(tmp_path / "d"), "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "7 rows in 2 row groups of 1 files" in shown.err
    assert open_manifest(out, columns=None).rows == 7


def test_index_prints_one_json_object(write: WriteParquet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "dataset.json"
    assert main(["index", write("a.parquet", [3]), write("b.parquet", [4]), "--out", str(out), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["files"], value["rows"], value["row_groups"]) == (2, 7, 2)
    assert value["fingerprint"] == open_manifest(out, columns=["id"]).fingerprint


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["index", "nowhere.parquet", "--out", "x.json"], 65, "nowhere.parquet: the file does not exist"),
        (["index", "--out", "x.json"], 2, "usage error [usage]"),
        (["index", "a.parquet"], 2, "--out"),
        (["indx"], 2, "invalid choice: 'indx'"),
        ([], 2, "COMMAND"),
    ],
)
def test_errors_are_one_line_with_their_exit_status(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_help_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["text", "--help"])
    assert caught.value.code == 0
    assert "--context" in capsys.readouterr().out
