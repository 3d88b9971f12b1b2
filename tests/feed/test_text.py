"""Real source files into a token data set: what is in it, what is refused, and that it is the same each time."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from trn import files
from trn.errors import DataError, UsageError
from trn.feed.text import TextSettings, add_arguments, build_text, run
from trn.feed.text_sources import side_of
from trn.feed.text_tokens import END_OF_TEXT
from trn.records import read_json, read_lines

SETTINGS = TextSettings(context=32, vocab=400, val_percent=40.0, row_group_rows=16)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Some modules of the standard library in two folders, one of them twice."""
    library = Path(sysconfig.get_paths()["stdlib"])
    folder = tmp_path / "source"
    for name in ("json", "html", "concurrent/futures", "importlib/metadata"):
        shutil.copytree(library / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(library / "json" / "decoder.py", folder / "again.py")
    return folder


def build(source: Path, out: Path, settings: TextSettings = SETTINGS, **options: Any) -> tuple[str, dict[str, Any]]:
    return build_text(source, out, settings, origin="test", **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def sequence(out: Path, side: str, settings: TextSettings = SETTINGS) -> list[int]:
    """The rows of a side put together again: each begins with the last token of the one before."""
    rows: list[list[int]] = pq.read_table(out / f"{side}.parquet")["tokens"].to_pylist()
    assert all(len(row) == settings.context + 1 for row in rows)
    assert all(before[-1] == after[0] for before, after in itertools.pairwise(rows))
    return rows[0][:1] + [token for row in rows for token in row[1:]]


def tokenizer_of(out: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json"))


def command(source: Path, out: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m trn.feed text` as the door starts it."""
    given = ["--context", "32", "--vocab", "400", "--val-percent", "40", "--row-group-rows", "16"]
    return subprocess.run(
        [sys.executable, "-m", "trn.feed", "text", "--source", str(source), "--out", str(out), *given, *more],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


def test_the_same_sources_give_the_same_bytes_with_one_thread_and_with_several(source: Path, tmp_path: Path) -> None:
    for name, parallel in (("one", "false"), ("several", "true")):
        done = command(source, tmp_path / name, TOKENIZERS_PARALLELISM=parallel)
        assert done.returncode == 0, done.stderr
    one, several = contents(tmp_path / "one"), contents(tmp_path / "several")
    assert set(one) == {
        "train.parquet",
        "validation.parquet",
        "sources.jsonl",
        "text.json",
        "tokenizer/tokenizer.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
    }
    assert one == several


def test_a_file_is_on_the_side_that_its_content_says(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out")
    records = list(read_lines(tmp_path / "out" / "sources.jsonl"))
    assert [record["path"] for record in records] == sorted(record["path"] for record in records)
    for record in records:
        assert record["sha256"] == files.sha256_file(source / record["path"])
        number = int.from_bytes(bytes.fromhex(record["sha256"])[:8], "big") % 10_000
        assert record["side"] == ("validation" if number < 4000 else "train")
    by_path = {record["path"]: record["side"] for record in records}
    assert by_path["again.py"] == by_path["json/decoder.py"]
    assert set(by_path.values()) == {"train", "validation"}


def test_the_split_rule_is_what_the_documentation_says() -> None:
    assert side_of(f"{199:016x}" + "f" * 48, 2.0) == "validation"
    assert side_of(f"{200:016x}" + "0" * 48, 2.0) == "train"
    assert side_of(f"{10_199:016x}" + "0" * 48, 2.0) == "validation"


def test_all_counts_add_up_and_no_token_goes_unseen(source: Path, tmp_path: Path) -> None:
    _, summary = build(source, tmp_path / "out")
    records = list(read_lines(tmp_path / "out" / "sources.jsonl"))
    assert sum(part["files"] for part in summary["sides"].values()) == len(records)
    assert summary["repeated_files"] == 1
    tokenizer = tokenizer_of(tmp_path / "out")
    for side, counts in summary["sides"].items():
        mine = [source / record["path"] for record in records if record["side"] == side]
        assert counts["bytes"] == sum(path.stat().st_size for path in mine)
        encoded = [len(tokenizer.encode(path.read_text("utf-8")).ids) + 1 for path in mine]
        assert counts["tokens"] == sum(encoded)
        assert counts["tokens"] == counts["rows"] * SETTINGS.context + 1 + counts["dropped_tail_tokens"]
        assert 0 <= counts["dropped_tail_tokens"] < SETTINGS.context
        meta = pq.read_metadata(tmp_path / "out" / f"{side}.parquet")
        groups = [meta.row_group(index).num_rows for index in range(meta.num_row_groups)]
        assert (meta.num_rows, len(groups)) == (counts["rows"], -(-counts["rows"] // 16))
        assert set(groups[:-1]) <= {16}


def test_the_rows_decode_to_the_files_in_order(source: Path, tmp_path: Path) -> None:
    _, summary = build(source, tmp_path / "out")
    records = list(read_lines(tmp_path / "out" / "sources.jsonl"))
    tokenizer = tokenizer_of(tmp_path / "out")
    for side in ("train", "validation"):
        texts = [(source / one["path"]).read_text("utf-8") for one in records if one["side"] == side]
        expected = tokenizer.encode("".join(text + END_OF_TEXT for text in texts)).ids
        ids = sequence(tmp_path / "out", side)
        dropped = summary["sides"][side]["dropped_tail_tokens"]
        assert ids == expected[: len(expected) - dropped]
        whole = tokenizer.decode(ids, skip_special_tokens=False)
        assert "".join(text + END_OF_TEXT for text in texts).startswith(whole)


@pytest.mark.slow
def test_text_longer_than_a_piece_is_neither_lost_nor_doubled(source: Path, tmp_path: Path) -> None:
    long = "é = 1\n" * 200_000 + "ab cd " * 200_000  # a cut after a newline, and one where there is none
    (source / "long.py").write_text(long, "utf-8")
    build(source, tmp_path / "out", replace(SETTINGS, row_group_rows=4096))
    tokenizer = tokenizer_of(tmp_path / "out")
    side = next(one["side"] for one in read_lines(tmp_path / "out" / "sources.jsonl") if one["path"] == "long.py")
    texts = tokenizer.decode(sequence(tmp_path / "out", side), skip_special_tokens=False).split(END_OF_TEXT)
    assert any(text and long.startswith(text) and len(text) > len(long) - 32 * 16 for text in texts)


def test_an_end_of_text_mark_in_a_source_is_text(source: Path, tmp_path: Path) -> None:
    for number in range(8):
        (source / f"mark{number}.py").write_text(f"mark = '{END_OF_TEXT}' # {number}\n" * 40, "utf-8")
    _, summary = build(source, tmp_path / "out")
    for side, counts in summary["sides"].items():
        ends = sequence(tmp_path / "out", side).count(summary["end_of_text"]["id"])
        # the mark after the last file, and so at most that one, may be in the dropped tail
        assert counts["files"] - 1 <= ends <= counts["files"]


def test_vocabulary_and_merges_are_the_same_tokenizer_in_the_older_form(source: Path, tmp_path: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer

    build(source, tmp_path / "out")
    folder = tmp_path / "out" / "tokenizer"
    older = ByteLevelBPETokenizer.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    text = (source / "json" / "encoder.py").read_text("utf-8")
    assert older.encode(text).ids == tokenizer_of(tmp_path / "out").encode(text).ids
    assert (
        tokenizer_of(tmp_path / "out").get_vocab_size() == len(json.loads((folder / "vocab.json").read_bytes())) == 400
    )


def test_files_that_are_left_out_are_named_with_a_reason(source: Path, tmp_path: Path) -> None:
    (source / "empty.py").touch()
    (source / "latin.py").write_bytes("é".encode("latin-1"))
    (source / "dangling.py").symlink_to(tmp_path / "nowhere")
    (source / "zz_last.py").write_text("x = 1\n" * 100, "utf-8")
    size = sum(path.stat().st_size for path in source.rglob("*.py") if path.is_file())
    _, summary = build(source, tmp_path / "out", replace(SETTINGS, limit_bytes=size - 500))
    reasons = {
        one["path"]: one["left_out"] for one in read_lines(tmp_path / "out" / "sources.jsonl") if "left_out" in one
    }
    assert reasons == {
        "empty.py": "empty",
        "latin.py": "not UTF-8",
        "dangling.py": "not a regular file",
        "zz_last.py": "beyond --limit-bytes",
    }
    assert summary["left_out_files"] == dict.fromkeys(reasons.values(), 1)


def test_its_own_output_below_the_source_is_never_read(source: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, pattern="*")
    _, first = build(source, source / "data", settings)
    left = source / ".data.tmp-1"  # what a killed build leaves
    shutil.copytree(source / "data", left)
    assert build(source, source / "data", settings)[0] == "up_to_date"
    assert read_json(source / "data" / "text.json") == first


def test_a_whole_data_set_from_the_same_text_is_reused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _, summary = build(source, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert build(source, out) == ("up_to_date", summary)
    assert build(source, out, force=True) == ("up_to_date", summary)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_other_text_or_settings_are_refused_until_forced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(source, out)
    before = contents(out)
    with pytest.raises(UsageError, match="holds a data set from other text or settings"):
        build(source, out, replace(SETTINGS, context=16))
    (source / "again.py").write_text("other = 1\n", "utf-8")
    with pytest.raises(UsageError, match="--force"):
        build(source, out)
    assert contents(out) == before
    status, summary = build(source, out, force=True)
    assert (status, summary["repeated_files"]) == ("built", 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_damaged_data_set_is_not_taken_for_whole(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(source, out)
    whole = contents(out)
    with open(out / "train.parquet", "r+b") as stream:
        stream.write(b"x")
    with pytest.raises(UsageError, match=r"holds a damaged train\.parquet"):
        build(source, out)
    assert build(source, out, force=True)[0] == "built"
    assert contents(out) == whole


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_holds_something_else_is_never_touched(source: Path, tmp_path: Path, force: bool) -> None:
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "text.json").write_text('{"kind": "letters"}', "utf-8")
    with pytest.raises(UsageError, match="something else than a text data set"):
        build(source, letters, force=force)
    assert [path.name for path in letters.iterdir()] == ["text.json"]


def test_force_does_not_remove_a_file_that_is_not_ours(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"also holds 'notes\.txt'"):
        build(source, tmp_path / "out", replace(SETTINGS, context=16), force=True)
    assert (tmp_path / "out" / "notes.txt").exists()


def test_a_second_builder_of_the_same_folder_is_refused(source: Path, tmp_path: Path) -> None:
    lock = files.Lock(tmp_path / ".out.lock")
    assert lock.acquire()
    with pytest.raises(UsageError, match="another process is building"):
        build(source, tmp_path / "out")
    lock.release()
    assert build(source, tmp_path / "out")[0] == "built"


def test_a_build_killed_before_its_rename_leaves_nothing_to_trust(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed = command(source, out, TRN_FAULT="op=rename,n=1,do=kill,path=text.json")
    assert killed.returncode == -9
    assert not out.exists()
    assert list(tmp_path.glob(".out.tmp-*"))
    assert build(source, out)[0] == "built"
    assert not list(tmp_path.glob(".out.tmp-*"))


def test_a_full_disk_is_one_line_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    failed = command(source, tmp_path / "out", TRN_FAULT="op=write,n=1,do=enospc,path=train.parquet")
    assert failed.returncode == 74
    assert failed.stderr.splitlines()[-1].startswith("storage error [io_error] at ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"context": 0}, "--context"),
        ({"vocab": 256}, "--vocab"),
        ({"val_percent": 0.0}, "--val-percent"),
        ({"val_percent": float("nan")}, "--val-percent"),
        ({"limit_bytes": -1}, "--limit-bytes"),
        ({"row_group_rows": 0}, "--row-group-rows"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(
    source: Path, tmp_path: Path, change: dict[str, Any], place: str
) -> None:
    with pytest.raises(UsageError, match=f"at {place}: .* expected"):
        build(source, tmp_path / "out", replace(SETTINGS, **change))
    assert not (tmp_path / "out").exists()


def test_too_little_text_is_refused_with_the_numbers(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gives a vocabulary of \d+ entries, expected 60000"):
        build(source, tmp_path / "out", replace(SETTINGS, vocab=60_000))
    with pytest.raises(DataError, match=r"validation.parquet: this side has 0 tokens, expected at least 33"):
        build(source, tmp_path / "out", replace(SETTINGS, val_percent=0.004))
    with pytest.raises(DataError, match="no text in files that match"):
        build(source, tmp_path / "out", replace(SETTINGS, pattern="*.txt"))
    with pytest.raises(DataError, match="no such folder"):
        build(tmp_path / "nowhere", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_without_the_extra_one_line_says_what_to_install(source: Path, tmp_path: Path) -> None:
    script = "import sys; sys.modules['tokenizers'] = None; from trn.feed.__main__ import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, "text", "--source", str(source), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'trn-runtime[lm]'" in done.stderr


def test_the_command_prints_one_document_on_stdout_and_progress_on_stderr(source: Path, tmp_path: Path) -> None:
    done = command(source, tmp_path / "out", "--json")
    document = json.loads(done.stdout)
    assert document.pop("status") == "built"
    assert document.pop("out") == str(tmp_path / "out")
    assert document == read_json(tmp_path / "out" / "text.json")
    assert f"{tmp_path / 'out'}: built" in done.stderr.splitlines()
    again = command(source, tmp_path / "out", "--json")
    assert json.loads(again.stdout)["status"] == "up_to_date"


def test_the_default_source_is_the_standard_library_without_its_tests(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    out = str(tmp_path / "out")
    args = parser.parse_args(["--out", out, "--limit-bytes", "300000", "--vocab", "300", "--val-percent", "30"])
    assert run(args) == 0
    names = [one["path"] for one in read_lines(tmp_path / "out" / "sources.jsonl")]
    assert "argparse.py" in names
    assert not any({"test", "tests", "idle_test", "site-packages"} & set(name.split("/")) for name in names)
    assert np.asarray(sequence(tmp_path / "out", "train", TextSettings())).max() < 300
