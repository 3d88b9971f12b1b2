"""Documents into rows of fixed length, a window at a time: what `packing` plans is filled in here, and all is counted.

    documents -> dropped, each with its reason | end tokens put in -> windows -> Pieces -> tokens and segments

Letters: D documents, T tokens or cells, R rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trn.errors import DataError, UsageError
from trn.feed.documents import Documents
from trn.feed.packing import Pieces, pack_best_fit, pack_concat
from trn.feed.text_tokens import ReadTokenizer

__all__ = ["Long", "PackSettings", "Rows", "Strategy", "packed_rows"]

_WINDOW_TOKENS = 16 << 20
"""A window closes at so many tokens too, so that long documents do not fill the memory."""

Rows = tuple[NDArray[np.int32], NDArray[np.int32]]
"""Tokens and segments, both `[R, context + 1]`."""

Strategy = Literal["concat", "best_fit"]
Long = Literal["split", "refuse", "drop"]


@dataclass(frozen=True)
class PackSettings:
    """What decides the content of the data set, beside the documents themselves."""

    column: str
    context: int
    strategy: Strategy = "best_fit"
    window: int = 10_000
    """Documents that best_fit sorts together."""
    long: Long = "split"
    """What happens to a document that is longer than a row."""
    end_id: int | None = None
    """A token put after each document."""
    pad_id: int = 0
    row_group_rows: int = 256

    def check(self, tokenizer: ReadTokenizer | None) -> None:
        """Raise UsageError for the first value that is out of range."""
        most = 2**31 - 1 if tokenizer is None else tokenizer.entries - 1
        rules = (
            ("--context", self.context, 1, 2**20),
            ("--window", self.window, 1, 2**24),
            ("--end-id", 0 if self.end_id is None else self.end_id, 0, most),
            ("--pad-id", self.pad_id, 0, most),
            ("--row-group-rows", self.row_group_rows, 1, 2**24),
        )
        for name, value, low, high in rules:
            if not low <= value <= high:
                raise UsageError(f"{value} is out of range; expected {low} to {high}.", where=name)


def packed_rows(source: Iterable[Documents], settings: PackSettings, counts: Counter[str]) -> Iterator[Rows]:
    """The rows of all documents, a row group at a time; adds to `counts` as it goes.

    Raises DataError for a document that the settings refuse.
    """
    kept = (_kept(documents, settings, counts) for documents in source)
    pack = _concat_rows if settings.strategy == "concat" else _best_fit_rows
    for rows in _row_groups(pack(kept, settings, counts), settings.row_group_rows):
        counts["rows"] += len(rows[0])
        yield rows


def _kept(documents: Documents, settings: PackSettings, counts: Counter[str]) -> Documents:
    """The documents that are packed, each with its end token; adds what is dropped, and why, to `counts`."""
    lengths_D, tokens_T = documents.lengths, documents.tokens
    ends = settings.end_id is not None
    is_empty = lengths_D == 0
    is_long = lengths_D + ends > settings.context + 1
    if settings.long == "refuse" and is_long.any():
        at = int(np.flatnonzero(is_long)[0])
        raise DataError(
            f"document {counts['read'] + at} of all (from 0) has {int(lengths_D[at]) + ends} tokens in column"
            f' "{settings.column}", a row {settings.context + 1}.',
            where=documents.where or None,
            hint="Use a larger --context, or --long split or drop.",
        )
    is_dropped = is_empty | (is_long if settings.long == "drop" else False)
    counts["read"] += len(lengths_D)
    counts["tokens_read"] += len(tokens_T)
    counts["dropped_empty"] += int(is_empty.sum())
    counts["dropped_long"] += int(is_dropped.sum() - is_empty.sum())
    if is_dropped.any():
        kept_T = tokens_T[np.repeat(~is_dropped, lengths_D)]
        counts["tokens_dropped"] += len(tokens_T) - len(kept_T)
        lengths_D, tokens_T = lengths_D[~is_dropped], kept_T
    if settings.end_id is not None:
        tokens_T = np.insert(tokens_T, np.cumsum(lengths_D), np.int32(settings.end_id))
        counts["end_tokens"] += len(lengths_D)
        lengths_D = lengths_D + 1
    counts["documents"] += len(lengths_D)
    counts["tokens"] += len(tokens_T)
    return Documents(tokens_T, lengths_D)


def _best_fit_rows(source: Iterable[Documents], settings: PackSettings, counts: Counter[str]) -> Iterator[Rows]:
    for window in _windows(source, settings.window):
        pieces = pack_best_fit(window.lengths, settings.context)
        counts["cut"] += int((np.bincount(pieces.document) > 1).sum())
        counts["repeated"] += int((pieces.start > 0).sum())
        yield _laid_out(window, pieces, settings, counts)


def _windows(source: Iterable[Documents], most: int) -> Iterator[Documents]:
    """The same documents, so many at a time or fewer where they are long: where a window ends follows from lengths."""
    held: list[Documents] = []
    held_documents = held_tokens = 0
    for documents in source:
        at = token = 0
        ends_D = np.cumsum(documents.lengths)
        while at < len(ends_D):
            room = max(_WINDOW_TOKENS - held_tokens, 0)
            fitting = int(np.searchsorted(ends_D, token + room, side="right")) - at
            count = min(most - held_documents, max(fitting, 0 if held else 1), len(ends_D) - at)
            if count:
                stop = int(ends_D[at + count - 1])
                held.append(Documents(documents.tokens[token:stop], documents.lengths[at : at + count]))
                held_documents, held_tokens = held_documents + count, held_tokens + stop - token
                at, token = at + count, stop
            if held_documents == most or at < len(ends_D):
                yield _joined(held)
                held, held_documents, held_tokens = [], 0, 0
    if held:
        yield _joined(held)


def _joined(parts: list[Documents]) -> Documents:
    return Documents(np.concatenate([part.tokens for part in parts]), np.concatenate([part.lengths for part in parts]))


def _concat_rows(source: Iterable[Documents], settings: PackSettings, counts: Counter[str]) -> Iterator[Rows]:
    """One stream through all documents; the row that is not full yet, and what of it was packed, waits for more."""
    held = Documents(np.empty(0, np.int32), np.empty(0, np.int64))
    skip, was_cut = 0, False
    for documents in source:
        held = _joined([held, documents])
        pieces = pack_concat(held.lengths, settings.context, skip=skip)
        if pieces.rows < 2:
            continue
        done = pieces.before(pieces.rows - 1)
        was_cut = _count_cut(pieces, held, was_cut, counts)
        counts["repeated"] += done.rows  # the last token of each row is the first of the next
        yield _laid_out(held, done, settings, counts)
        last = len(done.row)
        first, skip = int(pieces.document[last]), int(pieces.start[last])
        held = Documents(held.tokens[int(held.lengths[:first].sum()) :], held.lengths[first:])
    if len(held.lengths):
        pieces = pack_concat(held.lengths, settings.context, skip=skip)
        _count_cut(pieces, held, was_cut, counts)
        counts["repeated"] += pieces.rows - 1
        yield _laid_out(held, pieces, settings, counts)


def _count_cut(pieces: Pieces, held: Documents, was_cut: bool, counts: Counter[str]) -> bool:
    """Count documents that stand in several rows, each once; whether the one that goes on is counted already."""
    is_cut = np.bincount(pieces.document, minlength=len(held.lengths)) > 1
    counts["cut"] += int(is_cut.sum()) - int(was_cut and bool(is_cut[0]))
    last = int(np.searchsorted(pieces.row, pieces.rows - 1))
    goes_on = int(pieces.document[last])
    return bool(is_cut[goes_on]) or (was_cut and goes_on == 0)


def _laid_out(documents: Documents, pieces: Pieces, settings: PackSettings, counts: Counter[str]) -> Rows:
    """The rows of a plan, filled in; a copy of every token, without a step of Python for each."""
    cells = settings.context + 1
    begin_D = np.cumsum(documents.lengths) - documents.lengths
    within = np.arange(int(pieces.length.sum())) - np.repeat(np.cumsum(pieces.length) - pieces.length, pieces.length)
    place = np.repeat(pieces.row * cells + pieces.cell, pieces.length) + within
    first_of_row = np.searchsorted(pieces.row, pieces.row)
    segment = np.arange(len(pieces.row)) - first_of_row + 1
    tokens = np.full(pieces.rows * cells, settings.pad_id, np.int32)
    segments = np.zeros(pieces.rows * cells, np.int32)
    tokens[place] = documents.tokens[np.repeat(begin_D[pieces.document] + pieces.start, pieces.length) + within]
    segments[place] = np.repeat(segment, pieces.length)
    counts["placed"] += len(place)
    counts["padding"] += len(tokens) - len(place)
    return tokens.reshape(-1, cells), segments.reshape(-1, cells)


def _row_groups(source: Iterable[Rows], rows: int) -> Iterator[Rows]:
    """The same rows, so many at a time; fewer in the last."""
    held: Rows | None = None
    for part in source:
        both = part if held is None else (np.concatenate((held[0], part[0])), np.concatenate((held[1], part[1])))
        whole = len(both[0]) // rows * rows
        for start in range(0, whole, rows):
            yield both[0][start : start + rows], both[1][start : start + rows]
        held = both[0][whole:], both[1][whole:]
    if held is not None and len(held[0]):
        yield held
