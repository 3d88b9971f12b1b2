"""Documents out of parquet files: a column of lists of token ids, or of text and a tokenizer, some at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds
from numpy.typing import NDArray

from trn.errors import DataError, UsageError
from trn.feed.blocks import ParquetBlocks
from trn.feed.dataset import Dataset
from trn.feed.nulls import first_null
from trn.feed.text_tokens import ReadTokenizer

__all__ = ["Documents", "read_documents"]

_TEXTS_AT_ONCE = 4096
_TOKENS_AT_ONCE = 4 << 20
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Documents:
    """Consecutive documents: their tokens one after the other `[T]`, and how many each has `[D]`."""

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int64]
    where: str = ""
    """File and row group that they were read from; empty where they are from several."""


def read_documents(dataset: Dataset, tokenizer: ReadTokenizer | None) -> Iterator[Documents]:
    """The documents of a data set of one column, in its order; not more at a time than memory takes well.

    Raises DataError for a null, a token id that is negative, above 2^31 - 1 or not in the tokenizer's vocabulary;
    UsageError for a column that is neither lists of integers nor text with a tokenizer.
    """
    (name,) = dataset.columns
    blocks = ParquetBlocks(dataset, [name])
    try:
        kind = blocks.schema.field(0).type
        is_text = kinds.is_string(kind) or kinds.is_large_string(kind)
        if is_text and tokenizer is None:
            raise UsageError(f'column "{name}" is text, and needs a tokenizer.', where="--tokenizer")
        if not is_text and not _is_tokens(kind):
            raise UsageError(
                f'column "{name}" is {kind}, expected lists of integers, or text and a tokenizer.', where="--column"
            )
        for number, block in enumerate(dataset.blocks):
            where = f"{dataset.files[block.file].path}, row group {block.row_group}"
            for column in blocks.read(number).column(0).chunks:
                if (row := first_null(column)) is not None:
                    raise DataError(
                        f'document {row} of it (from 0) is null, or holds a null, in column "{name}".',
                        where=where,
                        hint="Write the files again without it.",
                    )
                yield from (
                    _texts(column, tokenizer, where) if is_text and tokenizer else _lists(column, tokenizer, where)
                )
    finally:
        blocks.close()


def _is_tokens(kind: pa.DataType) -> bool:
    is_list = kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)
    return bool(is_list and kinds.is_integer(kind.value_type))


def _texts(column: pa.Array, tokenizer: ReadTokenizer, where: str) -> Iterator[Documents]:
    for start in range(0, len(column), _TEXTS_AT_ONCE):
        yield Documents(*tokenizer.encode(column.slice(start, _TEXTS_AT_ONCE).to_pylist()), where)


def _lists(column: pa.Array, tokenizer: ReadTokenizer | None, where: str) -> Iterator[Documents]:
    lengths_D = pc.list_value_length(column).to_numpy().astype(np.int64)
    values = pc.list_flatten(column)
    if len(values):
        low, high = pc.min_max(values).values()
        most = _LARGEST if tokenizer is None else tokenizer.entries - 1
        if low.as_py() < 0 or high.as_py() > most:
            raise DataError(
                f"token id {low if low.as_py() < 0 else high} is outside of 0 to {most}.",
                where=where,
                hint="The documents are from another tokenizer." if tokenizer else None,
            )
    tokens_T = values.cast(pa.int32()).to_numpy()
    ends_D = np.cumsum(lengths_D)
    begin = done = 0
    while begin < len(lengths_D):
        end = max(begin + 1, int(np.searchsorted(ends_D, done + _TOKENS_AT_ONCE, side="right")))
        stop = int(ends_D[end - 1])
        yield Documents(tokens_T[done:stop], lengths_D[begin:end], where)
        begin, done = end, stop
