"""Where each token of a document goes: rows of fixed length from documents of any, as a pure function of their lengths.

A row has `context + 1` cells, which give `context` predictions, as in `trn data text`. A *piece* is a run of tokens of
one document in one row. A document that is cut goes on with the last token of the piece before, so that no prediction
is lost: that token stands twice, and is counted as repeated.

    concat     all documents, laid end to end, cut at the ends of rows: no padding but in the last row
    best_fit   whole documents, the longest first, each into the fullest row that has room (best-fit decreasing)
               within a window of documents; only what is longer than a row is cut

Letters: D documents, P pieces, R rows.
Source: best-fit decreasing of Johnson 1973; for language models Ding et al. 2024, "Fewer Truncations Improve Language
Modeling".
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Pieces", "pack_best_fit", "pack_concat"]

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """Runs of tokens, in the order of their rows and, in a row, of their cells; all arrays `[P]`."""

    row: Int64
    cell: Int64
    """The first cell of the row that it fills."""
    document: Int64
    start: Int64
    """The first token of the document that it holds."""
    length: Int64
    rows: int

    def before(self, row: int) -> Pieces:
        """The pieces of the rows before this one."""
        end = int(np.searchsorted(self.row, row))
        some = slice(0, end)
        return Pieces(self.row[some], self.cell[some], self.document[some], self.start[some], self.length[some], row)


def pack_concat(lengths_D: Int64, context: int, *, skip: int = 0) -> Pieces:
    """Documents laid end to end. Row r has the cells `[r * context, r * context + context + 1)` of them all.

    The last row may be short: it is then not full. `skip` leaves out the first tokens of the first document.
    """
    ends_D = np.cumsum(lengths_D) - skip
    total = int(ends_D[-1]) if len(ends_D) else 0
    rows = _rows_of(total, context)
    begin_R = np.arange(rows, dtype=np.int64) * context
    end_R = np.minimum(begin_R + context + 1, total)
    # a piece begins where a row does, and where a document does that is not empty
    first_R = np.searchsorted(ends_D, begin_R, side="right")
    last_R = np.searchsorted(ends_D, end_R, side="left")
    count_R = last_R - first_R + 1
    row_P = np.repeat(np.arange(rows, dtype=np.int64), count_R)
    document_P = np.arange(len(row_P)) - np.repeat(np.cumsum(count_R) - count_R, count_R) + first_R[row_P]
    begin_D = ends_D - lengths_D
    from_P = np.maximum(begin_D[document_P], begin_R[row_P])
    to_P = np.minimum(ends_D[document_P], end_R[row_P])
    some = to_P > from_P
    row_P, document_P, from_P, to_P = row_P[some], document_P[some], from_P[some], to_P[some]
    return Pieces(
        row=row_P,
        cell=from_P - begin_R[row_P],
        document=document_P,
        start=from_P - begin_D[document_P],
        length=to_P - from_P,
        rows=rows,
    )


def _rows_of(tokens: int, context: int) -> int:
    """How many rows so many tokens need: each but the last gives `context` predictions."""
    return 0 if tokens == 0 else max(1, -(-(tokens - 1) // context))


def pack_best_fit(lengths_D: Sequence[int] | Int64, context: int) -> Pieces:
    """Whole documents, the longest first, each into the row with the least room that is enough; of several, the first.

    Documents that do not fit into one row are cut into full rows, and what is left of them is packed like a document.
    Of equal lengths the earlier comes first. In a row, pieces stand in the order of their documents.
    """
    cells = context + 1
    pieces = [
        (document, start, min(cells, length - start))
        for document, length in enumerate(map(int, lengths_D))
        for start in range(0, _rows_of(length, context) * context, context)
    ]
    row_of = _best_fit([length for _, _, length in pieces], cells)
    rows = max(row_of, default=-1) + 1
    order = sorted(range(len(pieces)), key=lambda index: (row_of[index], index))
    table = np.array([(row_of[index], *pieces[index]) for index in order], np.int64).reshape(-1, 4)
    row_P, length_P = table[:, 0], table[:, 3]
    before_P = np.cumsum(length_P) - length_P
    first_R = np.searchsorted(row_P, np.arange(rows))
    return Pieces(
        row=row_P,
        cell=before_P - before_P[first_R][row_P] if rows else before_P,
        document=table[:, 1],
        start=table[:, 2],
        length=length_P,
        rows=rows,
    )


def _best_fit(sizes: Sequence[int], cells: int) -> list[int]:
    """The row of each size. Rows with the same room wait in a heap, and the bits of a number say which rooms exist."""
    row_of = [0] * len(sizes)
    waiting: list[list[int]] = [[] for _ in range(cells + 1)]
    rooms = rows = 0
    for index in sorted(range(len(sizes)), key=lambda one: -sizes[one]):  # stable: of equal sizes the earlier first
        size = sizes[index]
        enough = rooms >> size
        if enough:
            room = size + (enough & -enough).bit_length() - 1
            row = heapq.heappop(waiting[room])
            if not waiting[room]:
                rooms ^= 1 << room
        else:
            room, row = cells, rows
            rows += 1
        row_of[index] = row
        if left := room - size:
            heapq.heappush(waiting[left], row)
            rooms |= 1 << left
    return row_of
