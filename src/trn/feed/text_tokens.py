"""Text into tokens, and tokens into parquet rows.

Letters: B rows of a row group, T tokens in sequence.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trn import files
from trn.errors import DataError, UsageError
from trn.feed.text_sources import Source, TextSettings, read_text
from trn.records import from_json, pretty_json

__all__ = [
    "END_OF_TEXT",
    "ReadTokenizer",
    "Say",
    "encode",
    "read_tokenizer",
    "require_tokenizers",
    "train_tokenizer",
    "write_rows",
    "write_tokenizer",
]

END_OF_TEXT = "<|endoftext|>"
_PIECE_CHARS = 1 << 20
_BATCH_CHARS = 4 << 20

Say = Callable[[str], None]


def require_tokenizers() -> None:
    """Raise UsageError where the library that makes tokens is not installed."""
    try:
        import tokenizers  # noqa: F401 - only to see whether it is there
    except ImportError as error:
        raise UsageError("needs the tokenizers library.", hint="pip install 'trn-runtime[lm]'") from error


@dataclass(frozen=True)
class ReadTokenizer:
    """A tokenizer from a file that somebody wrote, and what of it decides the tokens."""

    tokenizer: Any
    sha256: str
    """Of its tokenizer.json: all that it is read from."""
    entries: int
    end_of_text: int | None
    """The id of end-of-text, where it has one."""

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Tokens of all texts, one after the other, and how many each gave. Nothing is added, cut or filled up."""
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        lengths_D = np.fromiter((len(one.ids) for one in encodings), np.int64, len(texts))
        tokens_T = np.fromiter((one for encoding in encodings for one in encoding.ids), np.int32, int(lengths_D.sum()))
        return tokens_T, lengths_D


def read_tokenizer(path: Path) -> ReadTokenizer:
    """The tokenizer in a tokenizer.json, or in a folder with one. Raises UsageError without the library, DataError."""
    require_tokenizers()
    from tokenizers import Tokenizer

    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        data = path.read_bytes()
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception for what it cannot parse
        raise DataError(
            f"cannot open the tokenizer: {' '.join(str(error).split())}.",
            where=str(path),
            hint="Name a tokenizer.json, or the tokenizer folder that `trn data text` wrote.",
        ) from error
    # a file can ask for texts to be cut and filled up: then tokens would be lost unseen
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return ReadTokenizer(
        tokenizer, hashlib.sha256(data).hexdigest(), tokenizer.get_vocab_size(), tokenizer.token_to_id(END_OF_TEXT)
    )


def _pieces(text: str) -> Iterator[str]:
    """`text` in pieces of at most 2^20 characters, cut after a newline where there is one: bounds the memory."""
    start = 0
    while len(text) - start > _PIECE_CHARS:
        newline = text.rfind("\n", start, start + _PIECE_CHARS)
        end = newline + 1 if newline >= start else start + _PIECE_CHARS
        yield text[start:end]
        start = end
    yield text[start:]


def train_tokenizer(sources: Sequence[Source], vocab: int) -> Any:
    """A byte-level BPE tokenizer of exactly `vocab` entries, of which end-of-text is the first.

    Raises DataError where the text does not give that many.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pieces = (piece for source in sources for piece in _pieces(read_text(source)))
    tokenizer.train_from_iterator(pieces, trainer)
    if (size := tokenizer.get_vocab_size()) != vocab:
        raise DataError(
            f"the train side gives a vocabulary of {size} entries, expected {vocab}.",
            where="--vocab",
            hint=f"Give more text or --vocab {size}.",
        )
    # an end-of-text mark that is written out in a source is text like any other
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(sources: Sequence[Source], tokenizer: Any, say: Say) -> Iterator[NDArray[np.int32]]:
    """The tokens of all sources in order, end-of-text after each, some megabytes of text at a time."""
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    batch: list[tuple[str, bool]] = []  # pieces, and whether a file ends with them
    chars = 0
    for number, source in enumerate(sources, 1):
        pieces = list(_pieces(read_text(source)))
        batch += [(piece, count == len(pieces)) for count, piece in enumerate(pieces, 1)]
        chars += sum(map(len, pieces))
        if chars < _BATCH_CHARS and number < len(sources):
            continue
        ids: list[int] = []
        encodings = tokenizer.encode_batch_fast([piece for piece, _ in batch], add_special_tokens=False)
        for encoding, (_, is_end) in zip(encodings, batch, strict=True):
            ids += encoding.ids
            ids += [end_of_text] * is_end
        say(f"encoded {number} of {len(sources)} {source.side} files")
        yield np.asarray(ids, np.int32)
        batch, chars = [], 0


def write_tokenizer(tokenizer: Any, folder: Path) -> str:
    """Write tokenizer.json, and its vocabulary and merges in the older form; returns the sha256 of tokenizer.json."""
    files.make_folder(folder)
    data = tokenizer.to_str(pretty=True).encode()
    model = from_json(data)["model"]
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    files.write_atomic(folder / "vocab.json", pretty_json(model["vocab"]))
    files.write_atomic(folder / "merges.txt", f"#version: 0.2\n{merges}".encode())
    return files.write_atomic(folder / "tokenizer.json", data)


def _row_groups(
    chunks: Iterable[NDArray[np.int32]], settings: TextSettings, counts: Counter[str]
) -> Iterator[NDArray[np.int32]]:
    """The rows of one sequence of tokens, [rows, context + 1], a row group at a time; adds to `counts` as it goes."""
    context = settings.context
    group_tokens = settings.row_group_rows * context
    held_T: NDArray[np.int32] = np.empty(0, np.int32)
    for chunk_T in chunks:
        counts["tokens"] += len(chunk_T)
        held_T = np.concatenate((held_T, chunk_T))
        while len(held_T) > group_tokens:
            yield _rows(held_T[: group_tokens + 1], context)
            counts["rows"] += settings.row_group_rows
            held_T = held_T[group_tokens:]
    if (rows := max(0, len(held_T) - 1) // context) > 0:
        yield _rows(held_T[: rows * context + 1], context)
        counts["rows"] += rows
    counts["dropped_tail_tokens"] = len(held_T) - rows * context - 1


def _rows(part_T: NDArray[np.int32], context: int) -> NDArray[np.int32]:
    return np.lib.stride_tricks.sliding_window_view(part_T, context + 1)[::context]


def write_rows(path: Path, chunks: Iterable[NDArray[np.int32]], settings: TextSettings) -> Counter[str]:
    """Write the rows of one side; returns how many tokens and rows there are, and how many tokens were dropped.

    zstd without a dictionary takes a quarter of the plain size, and a quarter more CPU time for each row that is read
    (the standard library: 3.5 MB against 14 MB, 350 k against 450 k rows per CPU second).
    """
    row_type = pa.list_(pa.int32(), settings.context + 1)
    schema = pa.schema([("tokens", row_type)])
    how = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    counts: Counter[str] = Counter()
    with files.atomic_file(path) as file, pq.ParquetWriter(file, schema, **how) as writer:
        for group_BT in _row_groups(chunks, settings, counts):
            column = pa.FixedSizeListArray.from_arrays(pa.array(group_BT.reshape(-1)), type=row_type)
            writer.write_batch(pa.record_batch([column], schema=schema), row_group_size=settings.row_group_rows)
    if not counts["rows"]:
        raise DataError(
            f"this side has {counts['tokens']} tokens, expected at least {settings.context + 1} for one row.",
            where=path.name,
            hint="Give more files, or change --val-percent or --context: the split is by whole files.",
        )
    return counts
