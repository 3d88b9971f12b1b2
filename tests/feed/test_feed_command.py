"""`python -m trn.feed`: results on stdout, errors as one line with the exit status of their code, signals obeyed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trn.errors import Stopped
from trn.feed import open_manifest
from trn.feed.__main__ import main
from trn.feed.verbs import stoppable

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


@pytest.mark.parametrize("url", ["s3://b/c", "https://host/c", "file:///c"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["cache", "a.parquet"],
        ["index", "a.parquet"],
        ["pack", "a.parquet", "--column", "id", "--context", "4"],
        ["text"],
    ],
    ids=lambda one: one[0],
)
def test_what_is_made_is_made_on_this_machine(
    write: WriteParquet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    url: str,
) -> None:
    write("a.parquet", [3])
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--out", url]) == 2
    assert f"--out: expected a path on this machine, found '{url}'" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["a.parquet"]


def test_a_batch_that_the_data_cannot_fill_is_said_to_be_none(
    write: WriteParquet, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("a.parquet", [3, 4])
    assert main(["inspect", path, "--batch-size", "100000"]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith("there is no batch of 100,000 rows: what is read has fewer\n")
    assert "first batch" not in shown
    assert main(["inspect", path, "--batch-size", "100000", "--json"]) == 0
    reading = json.loads(capsys.readouterr().out)["reading"]
    assert (reading["batches"], reading["first_batch_seconds"]) == (0, None)


@pytest.mark.parametrize("seconds", ["-1", "nan", "soon"])
def test_a_time_that_is_none_is_refused(write: WriteParquet, capsys: pytest.CaptureFixture[str], seconds: str) -> None:
    assert main(["inspect", write("a.parquet", [3]), f"--seconds={seconds}"]) == 2
    assert f"expected a number of seconds from 0, found '{seconds}'" in capsys.readouterr().err


def test_help_of_index_names_urls(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["index", "--help"])
    assert "files, folders, globs or URLs" in capsys.readouterr().out


def test_a_verb_that_makes_nothing_leaves_no_lock(
    write: WriteParquet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "documents.parquet"
    pq.write_table(pa.table({"doc": [[1, 2], [-3]]}), path)
    arguments = ["pack", str(path), "--out", str(tmp_path / "out"), "--column", "doc", "--context", "4"]
    assert main(arguments) == 65
    assert [one.name for one in tmp_path.iterdir()] == ["documents.parquet"]
    assert "token id -3" in capsys.readouterr().err


# signals


@pytest.fixture(scope="module")
def many_groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some seconds of decoding, in little space."""
    path = tmp_path_factory.mktemp("many") / "many.parquet"
    numbers = {name: pa.array(range(20_000), pa.int32()) for name in "abcd"}
    table = pa.table({"doc": pa.array([[1, 2]] * 20_000, pa.list_(pa.int32(), 2)), **numbers})
    pq.write_table(table, path, row_group_size=1, compression="none", write_statistics=False)
    return path


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def stopped_by(process: subprocess.Popen[str], number: signal.Signals, begun: Callable[[], bool]) -> str:
    """What it says on standard error, having been sent a signal once it had begun."""
    try:
        while not begun():
            assert process.poll() is None, "it has ended before it could be stopped"
            time.sleep(0.001)
        process.send_signal(number)
        return process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait()


def is_written(folder: Path, pattern: str) -> bool:
    """Whether something stands in the temporary file: whoever made it is ready to remove it."""
    return any(one.stat().st_size > 0 for one in folder.glob(pattern))


SIGNALS = [
    (signal.SIGTERM, 75, "data stopped [preempted]: SIGTERM was received; nothing half made was left.\n"),
    (signal.SIGHUP, 75, "data stopped [preempted]: SIGHUP was received; nothing half made was left.\n"),
    (signal.SIGINT, 92, "data stopped [cancelled]: SIGINT was received; nothing half made was left.\n"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status", "told"), SIGNALS, ids=["TERM", "HUP", "INT"])
def test_a_signal_ends_the_making_of_a_cache_and_leaves_nothing(
    many_groups: Path, tmp_path: Path, number: signal.Signals, status: int, told: str
) -> None:
    out = tmp_path / "out"
    process = start("trn.feed", "cache", str(many_groups), "--out", str(out))
    assert stopped_by(process, number, lambda: is_written(out, ".*.tmp-*")) == told
    assert process.returncode == status
    assert [one.name for one in out.iterdir()] == [".trn-cache.lock"]


@pytest.mark.slow
def test_a_signal_ends_the_making_of_a_packed_data_set_and_leaves_nothing(many_groups: Path, tmp_path: Path) -> None:
    arguments = ("pack", str(many_groups), "--out", str(tmp_path / "out"), "--column", "doc", "--context", "4")
    process = start("trn.feed", *arguments)
    told = stopped_by(process, signal.SIGTERM, lambda: is_written(tmp_path, ".out.tmp-*/.*.tmp-*"))
    assert told.splitlines()[-1] + "\n" == SIGNALS[0][2]
    assert process.returncode == 75
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_of_another_kind_does_not_disturb_the_cleaning_up() -> None:
    cleaned = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            cleaned.append(True)

    with pytest.raises(Stopped, match="SIGTERM") as caught, stoppable():
        work()
    assert cleaned == [True]
    assert caught.value.exit_status == 75
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_was_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
