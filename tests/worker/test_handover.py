"""Decoding for the trainer's process, by a real child: once, stopped at once, and failing in the child's own words."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.door import until
from support.job import write_table
from support.processes import marked
from trn.errors import DataError, Stopped, StorageError
from trn.feed import open_cache_at, open_dataset
from trn.worker.handover import decode

pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"train-{index}.parquet" for index in (0, 1)]
    write_table(paths[0], 50, seed=1)
    write_table(paths[1], 30, seed=2)
    return [str(path) for path in paths]


def test_data_are_decoded_once_and_the_same_each_time(tmp_path: Path, data: list[str]) -> None:
    first = decode(data, ["y", "x"], tmp_path / "arrow")
    made = first.stat()
    assert decode(data, ["y", "x"], tmp_path / "arrow") == first
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    again = decode(data, ["y", "x"], tmp_path / "another")
    assert (again.name, again.read_bytes()) == (first.name, first.read_bytes())
    with_all = decode(data, [], tmp_path / "arrow")
    assert with_all != first
    for path in (first, with_all):
        rows = open_cache_at(path, open_dataset(data, columns=["y"]), ["y"])
        assert (rows.rows, rows.schema.names) == (80, ["y"])
        rows.close()


def test_columns_whose_names_cannot_be_said_are_among_all_of_them(tmp_path: Path) -> None:
    path = tmp_path / "odd.parquet"
    pq.write_table(pa.table({"a,b": [1, 2], "--out": [3, 4]}), path)
    arrow = decode([str(path)], ["a,b"], tmp_path / "arrow")
    rows = open_cache_at(arrow, open_dataset([str(path)], columns=["a,b"]), ["a,b"])
    assert rows.schema.names == ["a,b"]
    rows.close()


def test_the_child_s_own_line_and_exit_status_come_back(tmp_path: Path, data: list[str]) -> None:
    missing = str(tmp_path / "none.parquet")
    with pytest.raises(DataError) as failed:
        decode([missing], [], tmp_path / "arrow")
    assert str(failed.value).startswith(f"data error [data_error] at {missing}: the file does not exist.")
    with pytest.raises(DataError, match='there is no column "z"; the file has "x", "y"'):
        decode(data, ["z"], tmp_path / "arrow")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as refused:
        decode(data, [], tmp_path / "file")
    assert str(refused.value).startswith("storage error [io_error] at ")
    assert str(refused.value).count("storage error") == 1


def test_more_paths_than_a_command_line_holds_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.parquet_paths: the decoder cannot be started: .*Name a folder"):
        decode([f"/data/{index:0100}.parquet" for index in range(100_000)], [], tmp_path / "arrow")


def test_the_child_sees_no_token(tmp_path: Path, data: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        f"import json, os; open({str(tmp_path / 'seen')!r}, 'w').write(json.dumps(dict(os.environ)))"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TRAINER_CAPABILITY_TOKEN", "header.payload.signature")
    decode(data, [], tmp_path / "arrow")
    assert "PYTHONPATH" in (tmp_path / "seen").read_text()
    assert "payload" not in (tmp_path / "seen").read_text()


@pytest.mark.parametrize("how", ["asked", "killed"])
def test_a_child_that_is_at_work_ends_when_asked_and_nothing_whole_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    pipe = tmp_path / "waits.parquet"
    write_table(pipe, 50, seed=1)
    # a sitecustomize that waits: as if the data took their time
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TRN_TEST_MARK", str(tmp_path))
    children: list[int] = []

    def is_stopped() -> bool:
        children.extend(marked(str(tmp_path)))
        if children and how == "killed":
            os.kill(children[0], signal.SIGKILL)
        return bool(children) and how == "asked"

    began_s = time.monotonic()
    with pytest.raises(Stopped if how == "asked" else StorageError) as ended:
        decode([str(pipe)], [], tmp_path / "arrow", is_stopped=is_stopped)
    assert time.monotonic() - began_s < 5
    if how == "killed":
        assert "the decoder was killed by SIGKILL." in str(ended.value)
    until(lambda: not marked(str(tmp_path)))
    assert not (tmp_path / "arrow").exists()
