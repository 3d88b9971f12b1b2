"""The plan of packing agrees with slow, plain loops, loses nothing, and depends on lengths alone."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trn.feed.packing import Pieces, pack_best_fit, pack_concat

Row = list[tuple[int, int]]
"""The cells of a row: document and token of it."""

LENGTHS = st.lists(st.integers(0, 40) | st.integers(0, 4), max_size=60)
CONTEXT = st.integers(1, 12)


def rows_of(pieces: Pieces) -> list[Row]:
    """The rows that a plan describes, with every cell checked to be the next one."""
    rows: list[Row] = [[] for _ in range(pieces.rows)]
    columns = (pieces.row, pieces.cell, pieces.document, pieces.start, pieces.length)
    for row, cell, document, start, length in zip(*(one.tolist() for one in columns), strict=True):
        assert cell == len(rows[row])
        assert length > 0
        rows[row] += [(document, start + one) for one in range(length)]
    assert pieces.row.tolist() == sorted(pieces.row.tolist())
    return rows


def slow_concat(lengths: list[int], context: int) -> list[Row]:
    stream = [(document, token) for document, length in enumerate(lengths) for token in range(length)]
    rows = [stream[at : at + context + 1] for at in range(0, max(len(stream) - 1, 1), context)]
    return [row for row in rows if row]


def slow_best_fit(lengths: list[int], context: int) -> list[Row]:
    pieces: list[Row] = []
    for document, length in enumerate(lengths):
        pieces += slow_concat([0] * document + [length], context)
    order = sorted(range(len(pieces)), key=lambda index: (-len(pieces[index]), index))
    rows: list[list[int]] = []
    for index in order:
        fitting = [
            (context + 1 - sum(len(pieces[one]) for one in row), number)
            for number, row in enumerate(rows)
            if sum(len(pieces[one]) for one in row) + len(pieces[index]) <= context + 1
        ]
        if fitting:
            rows[min(fitting)[1]].append(index)
        else:
            rows.append([index])
    return [[cell for index in sorted(row) for cell in pieces[index]] for row in rows]


@settings(max_examples=400, deadline=None)
@given(lengths=LENGTHS, context=CONTEXT)
@example(lengths=[], context=3)
@example(lengths=[0, 0], context=3)
@example(lengths=[1], context=3)
@example(lengths=[0, 4, 0, 4, 0], context=3)
def test_concat_is_what_a_loop_over_all_tokens_gives(lengths: list[int], context: int) -> None:
    assert rows_of(pack_concat(np.array(lengths, np.int64), context)) == slow_concat(lengths, context)


@settings(max_examples=400, deadline=None)
@given(lengths=LENGTHS, context=CONTEXT)
@example(lengths=[5, 5, 5], context=4)
@example(lengths=[9, 1], context=4)
def test_best_fit_is_what_a_loop_over_all_rows_gives(lengths: list[int], context: int) -> None:
    assert rows_of(pack_best_fit(lengths, context)) == slow_best_fit(lengths, context)


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, context=CONTEXT)
def test_every_token_stands_somewhere_and_every_prediction_inside_a_document_once(
    lengths: list[int], context: int
) -> None:
    expected = {(document, token) for document, length in enumerate(lengths) for token in range(length)}
    pairs = sorted((document, token) for document, token in expected if token)
    for rows in (
        rows_of(pack_concat(np.array(lengths, np.int64), context)),
        rows_of(pack_best_fit(lengths, context)),
    ):
        assert {cell for row in rows for cell in row} == expected
        assert all(len(row) <= context + 1 for row in rows)
        predicted = [
            after for row in rows for before, after in itertools.pairwise(row) if before == (after[0], after[1] - 1)
        ]
        assert sorted(predicted) == pairs


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, context=CONTEXT, data=st.data())
def test_a_stream_goes_on_where_it_was_left(lengths: list[int], context: int, data: st.DataObject) -> None:
    """What `skip` is for: the last row of a window that is not full is packed again with the next window."""
    if not sum(lengths):
        return
    skip = data.draw(st.integers(0, lengths[0]))
    found = rows_of(pack_concat(np.array(lengths, np.int64), context, skip=skip))
    expected = slow_concat([lengths[0] - skip, *lengths[1:]], context)
    assert found == [[(document, token + (document == 0) * skip) for document, token in row] for row in expected]


def test_best_fit_wastes_less_than_rows_of_whole_documents_in_order() -> None:
    lengths = np.random.default_rng(7).geometric(1 / 300, 5_000)
    pieces = pack_best_fit(lengths, 1023)
    wasted = 1 - int(pieces.length.sum()) / (pieces.rows * 1024)
    assert wasted < 0.02
