"""Documents of varying length into a parquet data set of fixed rows; the work behind `trn data pack`.

    parquet files -> documents -> dropped, each with its reason | packed (see `packing`) -> packed.parquet
                                                     dataset.json: the manifest          pack.json: settings, counts

**Rows**: `tokens` are `context + 1` ids, filled up with `pad_id` at their end; `segments` says of each cell which piece
of a document it is, counted from 1 in each row, 0 where it is padding. A trainer masks attention and loss with it:
two cells belong together where their segments are equal and not 0.

No token is lost unseen: cells = tokens packed + tokens repeated where a document was cut + padding, and documents that
are left out are counted by reason. The same documents and settings give the same bytes. The settings and the digest of
the tokenizer stand in the file's own metadata, so they are part of the data's fingerprint.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from trn import files
from trn.errors import DataError
from trn.feed.dataset import Dataset, open_dataset
from trn.feed.documents import Documents, read_documents
from trn.feed.manifest import content_sha256, write_manifest
from trn.feed.pack_rows import Long, PackSettings, Strategy, packed_rows
from trn.feed.products import Product, find_product, make_product
from trn.feed.text_tokens import ReadTokenizer, Say, read_tokenizer
from trn.records import canonical_json, pretty_json, sha256_json

__all__ = ["PackSettings", "add_arguments", "build_pack", "run"]

_PRODUCT = Product(
    kind="trn-pack",
    words="packed data set",
    inputs="documents",
    summary="pack.json",
    outputs=("packed.parquet", "dataset.json"),
)
_FORMAT = 1
Json = dict[str, Any]


def build_pack(
    dataset: Dataset,
    out: Path,
    settings: PackSettings,
    tokenizer: ReadTokenizer | None = None,
    *,
    force: bool = False,
    say: Say = lambda line: None,
) -> tuple[str, Json]:
    """Build the data set at `out`, or find it there; returns "built" or "up_to_date", and the content of pack.json.

    `dataset` has the one column of the settings. `force` replaces another packed data set, never a folder that holds
    anything else. Raises UsageError for settings and for such a folder, DataError for the documents, StorageError.
    """
    settings.check(tokenizer)
    out = out.resolve()
    head = {
        "settings": asdict(settings),
        "documents_fingerprint": dataset.fingerprint,
        "documents_sha256": content_sha256(dataset),
        "tokenizer_sha256": None if tokenizer is None else tokenizer.sha256,
    }
    digest = sha256_json({"format": _FORMAT, **head})
    if (summary := find_product(_PRODUCT, out, digest, force=force)) is not None:
        return "up_to_date", summary

    def fill(folder: Path) -> Json:
        documents = read_documents(dataset, tokenizer)
        counts = _write(folder / "packed.parquet", documents, settings, {"format": _FORMAT, **head}, say)
        made = write_manifest([str(folder / "packed.parquet")], folder / "dataset.json")
        libraries = ("pyarrow", "numpy") if tokenizer is None else ("pyarrow", "numpy", "tokenizers")
        return {
            **head,
            "fingerprint": made.fingerprint,
            **_told(counts, settings),
            "built_with": {name: version(name) for name in libraries},
        }

    return make_product(_PRODUCT, out, digest, fill, force=force)


def _told(counts: Counter[str], settings: PackSettings) -> Json:
    cells = counts["rows"] * (settings.context + 1)
    assert cells == counts["placed"] + counts["padding"], "a cell is a token or padding"
    assert counts["placed"] == counts["tokens"] + counts["repeated"], "no token is lost"
    return {
        "documents": {
            "read": counts["read"],
            "packed": counts["documents"],
            "cut": counts["cut"],
            "dropped": {"empty": counts["dropped_empty"], "longer than a row": counts["dropped_long"]},
        },
        "tokens": {
            "read": counts["tokens_read"],
            "dropped": counts["tokens_dropped"],
            "end_of_document": counts["end_tokens"],
            "packed": counts["tokens"],
            "repeated": counts["repeated"],
            "padding": counts["padding"],
        },
        "rows": counts["rows"],
        "cells": cells,
    }


def _write(path: Path, source: Iterable[Documents], settings: PackSettings, head: Json, say: Say) -> Counter[str]:
    row_type = pa.list_(pa.int32(), settings.context + 1)
    schema = pa.schema([("tokens", row_type), ("segments", row_type)], metadata={"trn_pack": canonical_json(head)})
    how = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    counts: Counter[str] = Counter()
    with files.atomic_file(path) as file, pq.ParquetWriter(file, schema, **how) as writer:
        for tokens_RT, segments_RT in packed_rows(source, settings, counts):
            columns = [
                pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), type=row_type)
                for part in (tokens_RT, segments_RT)
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema), row_group_size=settings.row_group_rows)
            say(f"packed {counts['documents']} documents into {counts['rows']} rows")
    if not counts["rows"]:
        raise DataError(
            f"no document is left to pack, of {counts['read']}: {counts['dropped_empty']} are empty,"
            f" {counts['dropped_long']} longer than a row.",
            where=f'column "{settings.column}"',
        )
    return counts


# the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `trn data pack`."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="parquet files, folders, globs or URLs, in this order")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--column", required=True, help="lists of token ids, or text with --tokenizer")
    parser.add_argument("--context", type=int, required=True, help="predictions a row; a row has one token more")
    parser.add_argument(
        "--strategy",
        choices=get_args(Strategy),
        default="best_fit",
        help="keep documents whole as far as they fit, or lay them end to end and cut (default: %(default)s)",
    )
    parser.add_argument(
        "--long",
        choices=get_args(Long),
        default="split",
        help="what happens to a document that is longer than a row (default: %(default)s)",
    )
    parser.add_argument(
        "--window", type=int, default=10_000, help="documents that best_fit sorts together (default: %(default)s)"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="a tokenizer.json, or the folder of one")
    parser.add_argument(
        "--end-id",
        type=int,
        metavar="ID",
        help="token put after each document (default with text: the tokenizer's end of text)",
    )
    parser.add_argument("--pad-id", type=int, default=0, metavar="ID", help="token of padding (default: %(default)s)")
    parser.add_argument("--row-group-rows", type=int, default=256, help="rows a row group (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace another packed data set at --out")
    parser.add_argument("--json", action="store_true", help="print pack.json, and what was done, on stdout")


def run(args: argparse.Namespace) -> int:
    """Build what the command line asks for; returns 0. Raises TrnError."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # see `text.run`
    tokenizer = None if args.tokenizer is None else read_tokenizer(args.tokenizer)
    dataset = open_dataset(args.paths, columns=[args.column])
    is_text = dataset.columns[args.column] in ("string", "large_string")
    settings = PackSettings(
        column=args.column,
        context=args.context,
        strategy=args.strategy,
        window=args.window,
        long=args.long,
        # a list of ids has its end tokens already, or was made without
        end_id=tokenizer.end_of_text if args.end_id is None and tokenizer and is_text else args.end_id,
        pad_id=args.pad_id,
        row_group_rows=args.row_group_rows,
    )
    status, summary = build_pack(dataset, args.out, settings, tokenizer, force=args.force, say=_progress())
    for line in _lines(summary):
        _report(line)
    _report(f"{args.out}: {status.replace('_', ' ')}")
    if args.json:
        sys.stdout.buffer.write(pretty_json({"status": status, "out": str(args.out), **summary}))
    return 0


def _lines(summary: Json) -> Iterator[str]:
    documents, tokens = summary["documents"], summary["tokens"]
    dropped = ", ".join(f"{count} {reason}" for reason, count in documents["dropped"].items() if count)
    yield (
        f"{documents['packed']} of {documents['read']} documents packed, {documents['cut']} of them cut;"
        f" dropped: {dropped or 'none'}"
    )
    share = tokens["padding"] / summary["cells"]
    yield (
        f"{tokens['packed']} tokens ({tokens['end_of_document']} of them ends of documents) in {summary['rows']} rows"
        f" of {summary['settings']['context'] + 1}; {tokens['repeated']} stand twice,"
        f" {tokens['padding']} cells of padding ({share:.2%})"
    )


def _progress() -> Say:
    """Says a line only now and then: after each time as many rows as before."""
    told = [1024]

    def say(line: str) -> None:
        rows = int(line.split()[-2])
        if rows >= told[0]:
            told[0] = 2 * rows
            _report(line)

    return say


def _report(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
