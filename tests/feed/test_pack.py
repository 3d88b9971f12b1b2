"""`trn data pack`: every token of every document is found again in the rows, or counted with its reason."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trn.errors import DataError, UsageError
from trn.feed import Dataset, open_dataset, open_manifest
from trn.feed.__main__ import main
from trn.feed.pack import PackSettings, build_pack

Row = list[int]


def save(path: Path, documents: list[list[int]] | list[str], group_rows: int = 7, kind: Any = None) -> str:
    pq.write_table(pa.table({"doc": pa.array(documents, kind)}), path, row_group_size=group_rows)
    return str(path)


def numbered(lengths: list[int]) -> list[list[int]]:
    """Documents in which each token says which document and which of its tokens it is."""
    return [[document * 1000 + token for token in range(length)] for document, length in enumerate(lengths)]


def read(out: Path) -> tuple[list[list[Row]], dict[str, Any]]:
    """Rows as lists of segments, checked to be laid out as promised; and pack.json."""
    table = pq.read_table(out / "packed.parquet")
    rows = []
    for tokens, segments in zip(table["tokens"].to_pylist(), table["segments"].to_pylist(), strict=True):
        count = max(segments)
        whole = [number for number in range(1, count + 1) for _ in range(segments.count(number))]
        assert segments == whole + [0] * (len(segments) - len(whole))
        assert count > 0
        assert set(tokens[len(whole) :]) <= {PAD}
        rows.append([[t for t, s in zip(tokens, segments, strict=True) if s == n] for n in range(1, count + 1)])
    return rows, json.loads((out / "pack.json").read_text())


PAD = 999_999
LENGTHS = st.lists(st.integers(0, 30) | st.integers(0, 3), min_size=1, max_size=40).filter(any)


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(
    lengths=LENGTHS,
    context=st.integers(1, 9),
    strategy=st.sampled_from(["concat", "best_fit"]),
    long=st.sampled_from(["split", "drop"]),
    window=st.integers(1, 50),
    ends=st.booleans(),
    at_once=st.sampled_from([1, 20, 10**6]),
)
def test_rows_and_counts_are_those_of_a_plain_loop(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    context: int,
    strategy: Any,
    long: Any,
    window: int,
    ends: bool,
    at_once: int,
) -> None:
    tmp_path, cells = tmp_path_factory.mktemp("d"), context + 1
    documents = numbered(lengths)
    kept = [document + [500_000] * ends for document in documents if document]
    expected = [document for document in kept if long == "split" or len(document) <= cells]
    how = PackSettings("doc", context, strategy, window, long, end_id=500_000 if ends else None, pad_id=PAD)
    dataset = open_dataset([save(tmp_path / "a.parquet", documents, kind=pa.list_(pa.int64()))], columns=["doc"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trn.feed.documents._TOKENS_AT_ONCE", at_once)
        patch.setattr("trn.feed.pack_rows._WINDOW_TOKENS", 60)
        if not expected:
            with pytest.raises(DataError, match="no document is left to pack"):
                build_pack(dataset, tmp_path / "out", how)
            return
        build_pack(dataset, tmp_path / "out", how)
    rows, summary = read(tmp_path / "out")

    predictions = Counter(pair for row in rows for segment in row for pair in itertools.pairwise(segment))
    assert predictions == Counter(pair for document in expected for pair in itertools.pairwise(document))
    once = {token for document in expected for token in document}
    assert {token for row in rows for segment in row for token in segment} == once
    if strategy == "concat":
        stream = [token for document in expected for token in document]
        flat = [[token for segment in row for token in segment] for row in rows]
        assert flat == [stream[at : at + cells] for at in range(0, max(len(stream) - 1, 1), context)]

    owner = [segment[0] // 1000 for row in rows for segment in row if segment[0] != 500_000]
    placed = sum(len(segment) for row in rows for segment in row)
    tokens = sum(map(len, expected))
    assert summary["documents"] == {
        "read": len(lengths),
        "packed": len(expected),
        "cut": summary["documents"]["cut"],
        "dropped": {"empty": lengths.count(0), "longer than a row": len(kept) - len(expected)},
    }
    assert summary["tokens"] == {
        "read": sum(lengths),
        "dropped": sum(map(len, kept)) - tokens - ends * (len(kept) - len(expected)),
        "end_of_document": ends * len(expected),
        "packed": tokens,
        "repeated": placed - tokens,
        "padding": len(rows) * cells - placed,
    }
    if not ends:
        assert summary["documents"]["cut"] == sum(count > 1 for count in Counter(owner).values())
    assert summary["rows"] == len(rows)


def test_best_fit_cuts_only_what_is_longer_than_a_row(tmp_path: Path) -> None:
    documents = numbered([3, 4, 2, 9, 5, 1])
    dataset = open_dataset([save(tmp_path / "a.parquet", documents)], columns=["doc"])
    build_pack(dataset, tmp_path / "out", PackSettings("doc", 4, pad_id=PAD))
    rows, summary = read(tmp_path / "out")
    pieces = [segment for row in rows for segment in row]
    assert all(document in pieces for document in documents if len(document) <= 5)
    assert documents[3][:5] in pieces
    assert documents[3][4:] in pieces
    assert (summary["documents"]["cut"], summary["tokens"]["repeated"]) == (1, 1)


def test_documents_that_were_changed_in_place_are_others(tmp_path: Path) -> None:
    def written(middle: int) -> Dataset:
        lists = pa.array([[1, 2, 3], [4, 5, middle], [7, 8, 9]], pa.list_(pa.int32()))
        pq.write_table(pa.table({"doc": lists}), tmp_path / "a.parquet", compression="none", use_dictionary=False)
        return open_dataset([str(tmp_path / "a.parquet")], columns=["doc"])

    before = written(6)
    build_pack(before, tmp_path / "out", PackSettings("doc", 8))
    after = written(5)
    assert after.fingerprint == before.fingerprint, "sizes and footers are the same"
    with pytest.raises(UsageError, match="from other documents"):
        build_pack(after, tmp_path / "out", PackSettings("doc", 8))
    assert build_pack(written(6), tmp_path / "out", PackSettings("doc", 8))[0] == "up_to_date"


def test_the_same_documents_and_settings_give_the_same_bytes_and_others_do_not(tmp_path: Path) -> None:
    dataset = open_dataset([save(tmp_path / "a.parquet", numbered([3, 4, 2, 9, 5, 1]))], columns=["doc"])
    for name in ("one", "two"):
        build_pack(dataset, tmp_path / name, PackSettings("doc", 4))
    for name in ("packed.parquet", "dataset.json", "pack.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert build_pack(dataset, tmp_path / "one", PackSettings("doc", 4))[0] == "up_to_date"
    with pytest.raises(UsageError, match="holds a data set from other documents or settings"):
        build_pack(dataset, tmp_path / "one", PackSettings("doc", 4, "concat"))
    assert build_pack(dataset, tmp_path / "one", PackSettings("doc", 4, "concat"), force=True)[0] == "built"


def test_the_manifest_opens_and_its_fingerprint_knows_the_settings(tmp_path: Path) -> None:
    dataset = open_dataset([save(tmp_path / "a.parquet", numbered([2, 2]))], columns=["doc"])
    found = set()
    for name, how in {"a": PackSettings("doc", 4), "b": PackSettings("doc", 4, window=3)}.items():
        _, summary = build_pack(dataset, tmp_path / name, how)
        opened = open_manifest(tmp_path / name / "dataset.json", columns=["tokens", "segments"])
        assert opened.fingerprint == summary["fingerprint"]
        assert opened.columns["tokens"].endswith("[5]")
        found.add(opened.fingerprint)
    assert len(found) == 2


def test_segments_mask_as_the_page_on_data_says(tmp_path: Path) -> None:
    """The two lines of docs/data.md: predictions inside documents, and attention that stays in one."""
    dataset = open_dataset([save(tmp_path / "a.parquet", numbered([3, 4, 2, 9, 5, 1]))], columns=["doc"])
    build_pack(dataset, tmp_path / "out", PackSettings("doc", 6))
    segments = torch.tensor(pq.read_table(tmp_path / "out" / "packed.parquet")["segments"].to_pylist())
    names: dict[str, torch.Tensor] = {}
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    code = "\n".join(line for line in page.splitlines() if line.startswith(("same = ", "counts = ")))
    exec(code, {"segments": segments}, names)
    inside = sum(length - 1 for length in (3, 4, 2, 9, 5, 1))
    assert int(names["counts"].sum()) == inside
    assert names["same"].shape == (len(segments), 7, 7)
    assert int(names["same"].sum()) == sum(int((segments == n).sum(1).square().sum()) for n in range(1, 8))


# text and tokenizers


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A byte-level tokenizer that, as its file says, would cut texts to two tokens."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["one two three four"] * 3, trainer)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.enable_truncation(2)
    made.enable_padding(length=8)
    (tmp_path / "tokenizer").mkdir()
    made.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_text_is_tokenized_whole_and_ends_with_end_of_text(tmp_path: Path, tokenizer: Path, kind: pa.DataType) -> None:
    texts = ["one two", "", "three <|endoftext|> four è", "two" * 30]
    path = save(tmp_path / "a.parquet", texts, kind=kind)
    how = [
        "--column",
        "doc",
        "--context",
        "200",
        "--pad-id",
        "1",
        "--tokenizer",
        str(tokenizer),
        "--strategy",
        "concat",
    ]
    assert main(["pack", path, "--out", str(tmp_path / "out"), *how]) == 0
    table = pq.read_table(tmp_path / "out" / "packed.parquet")
    ids = [one for one, s in zip(table["tokens"][0].as_py(), table["segments"][0].as_py(), strict=True) if s]
    assert ids.count(0) == 3, "the mark that stands in a text is text"
    reader = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    assert reader.decode(ids, skip_special_tokens=False) == "".join(text + "<|endoftext|>" for text in texts if text)


def test_the_fingerprint_knows_the_tokenizer(tmp_path: Path, tokenizer: Path) -> None:
    path = save(tmp_path / "a.parquet", ["one two"])
    how = ["--column", "doc", "--context", "20", "--tokenizer", str(tokenizer)]
    assert main(["pack", path, "--out", str(tmp_path / "one"), *how]) == 0
    file = tokenizer / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    assert main(["pack", path, "--out", str(tmp_path / "two"), *how]) == 0
    one, two = (json.loads((tmp_path / name / "pack.json").read_text()) for name in ("one", "two"))
    assert one["tokenizer_sha256"] != two["tokenizer_sha256"]
    assert one["fingerprint"] != two["fingerprint"]
    assert main(["pack", path, "--out", str(tmp_path / "one"), *how]) == 2


# the door, and what is refused


def test_the_command_says_what_became_of_the_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.parquet", numbered([3, 0, 12, 4]))
    how = ["--column", "doc", "--context", "4", "--long", "drop", "--end-id", "7", "--json"]
    assert main(["pack", path, "--out", str(tmp_path / "out"), *how]) == 0
    shown = capsys.readouterr()
    assert "2 of 4 documents packed, 0 of them cut; dropped: 1 empty, 1 longer than a row" in shown.err
    assert (
        "9 tokens (2 of them ends of documents) in 2 rows of 5; 0 stand twice, 1 cells of padding (10.00%)" in shown.err
    )
    value = json.loads(shown.out)
    assert (value["status"], value["tokens"]["dropped"], value["settings"]["long"]) == ("built", 12, "drop")


@pytest.mark.parametrize(
    ("documents", "options", "status", "message"),
    [
        ([[1, 2]], ["--context", "0"], 2, "--context: 0 is out of range; expected 1 to 1048576"),
        ([[1, 2]], ["--window", "0"], 2, "--window: 0 is out of range"),
        ([[1, 2]], ["--pad-id", "-1"], 2, "--pad-id: -1 is out of range"),
        ([[1, 2]], ["--column", "dog"], 65, 'there is no column "dog"'),
        (["text"], [], 2, 'column "doc" is text, and needs a tokenizer'),
        ([[1.5]], [], 2, 'column "doc" is list<element: double>, expected lists of integers'),
        ([1, 2], [], 2, 'column "doc" is int64, expected lists of integers'),
        ([[1], None], [], 65, "a.parquet, row group 0: document 1 of it (from 0) is null, or holds a null"),
        ([[1], [2], [3, None]], [], 65, "document 2 of it (from 0) is null, or holds a null"),
        ([[1], [-2]], [], 65, "token id -2 is outside of 0 to 2147483647"),
        ([[1], [2**31]], [], 65, "token id 2147483648 is outside of 0"),
        ([[1] * 9, []], ["--long", "drop"], 65, "no document is left to pack, of 2: 1 are empty, 1 longer than a row"),
        (
            [[1], [1] * 9],
            ["--long", "refuse"],
            65,
            'a.parquet, row group 0: document 1 of all (from 0) has 9 tokens in column "doc", a row 5',
        ),
        ([[1, 2]], ["--tokenizer", "nowhere"], 65, "nowhere: cannot open the tokenizer"),
        ([[1, 2]], ["--strategy", "worst_fit"], 2, "invalid choice: 'worst_fit'"),
        ([], [], 65, "there are no rows"),
    ],
)
def test_what_cannot_be_packed_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    documents: Any,
    options: list[str],
    status: int,
    message: str,
) -> None:
    path = save(tmp_path / "a.parquet", documents)
    before = sorted(tmp_path.iterdir())
    arguments = ["pack", path, "--out", str(tmp_path / "out"), "--column", "doc", "--context", "4", *options]
    assert main(arguments) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert [one for one in sorted(tmp_path.iterdir()) if one.name != ".out.lock"] == before


def test_ids_that_the_tokenizer_does_not_have_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    path = save(tmp_path / "a.parquet", [[1], [5_000]])
    how = ["--column", "doc", "--context", "4", "--tokenizer", str(tokenizer)]
    assert main(["pack", path, "--out", str(tmp_path / "out"), *how]) == 65


def test_a_folder_with_other_things_is_never_replaced(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", [[1, 2]])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert main(["pack", path, "--out", str(tmp_path / "out"), "--column", "doc", "--context", "4", "--force"]) == 2
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
