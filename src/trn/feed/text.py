"""Text files into a parquet token data set; the work behind `trn data text`.

    source folder -> scan (sorted, hashed, split) -> byte-level BPE on the train side -> rows of tokens
                        |                                |                               |
                        sources.jsonl                    tokenizer/                      train.parquet
                                                                                         validation.parquet
                                        text.json: settings, counts, digests of all of it

**Rows**: the files of a side in the order of their paths, an end-of-text token (id 0) after each, are one sequence;
row i holds its tokens `[i * context, i * context + context + 1)`, so that each row gives `context` predictions and no
token is predicted twice. What is left of the sequence after the last whole row is counted as `dropped_tail_tokens`.
The split rule stands in `text_sources`.

The same sources and settings give the same bytes in every file. The folder becomes visible whole, by one rename.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import sysconfig
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trn import files
from trn.feed.products import Product, find_product, make_product
from trn.feed.text_sources import SIDES, SPLIT_RULE, Source, TextSettings, input_digest, scan
from trn.feed.text_tokens import (
    END_OF_TEXT,
    Say,
    encode,
    require_tokenizers,
    train_tokenizer,
    write_rows,
    write_tokenizer,
)
from trn.records import json_line, pretty_json

__all__ = ["TextSettings", "add_arguments", "build_text", "run"]

_PRODUCT = Product(
    kind="trn-text",
    words="text data set",
    inputs="text",
    summary="text.json",
    outputs=(
        "train.parquet",
        "validation.parquet",
        "tokenizer/tokenizer.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "sources.jsonl",
    ),
    neighbours=("dataset.json",),
)
_STDLIB_LEAVES_OUT = ("dist-packages", "idle_test", "site-packages", "test", "tests")

Json = dict[str, Any]


def build_text(
    source: Path,
    out: Path,
    settings: TextSettings,
    *,
    origin: str,
    force: bool = False,
    say: Say = lambda line: None,
) -> tuple[str, Json]:
    """Build the data set at `out`, or find it there; returns "built" or "up_to_date", and the content of text.json.

    `origin` says in words where the text is from. `say` gets a line of progress now and then. `force` replaces another
    text data set, never a folder that holds anything else. Raises UsageError for settings out of range, for such a
    folder and without the `lm` extra, DataError for the text, StorageError.
    """
    settings.check()
    source, out = source.resolve(), out.resolve()
    found = scan(source, settings, out)
    digest = input_digest(found, settings)
    if (summary := find_product(_PRODUCT, out, digest, force=force)) is not None:
        return "up_to_date", summary
    require_tokenizers()
    return make_product(_PRODUCT, out, digest, lambda folder: _fill(folder, found, settings, origin, say), force=force)


def _fill(folder: Path, found: Sequence[Source], settings: TextSettings, origin: str, say: Say) -> Json:
    """Write everything into `folder` but text.json; returns what that says of it."""
    by_side = {side: [source for source in found if source.side == side] for side in SIDES}
    left_out = Counter(source.left_out for source in found if source.left_out)
    size_bytes = {side: sum(source.size_bytes for source in sources) for side, sources in by_side.items()}
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
    say(f"found {len(found)} files, {sum(size_bytes.values()) / 1e6:.1f} MB of text; left out: {reasons or 'none'}")
    say(f"training a tokenizer of {settings.vocab} entries on {len(by_side['train'])} files")
    tokenizer = train_tokenizer(by_side["train"], settings.vocab)
    tokenizer_sha256 = write_tokenizer(tokenizer, folder / "tokenizer")
    sides = {}
    for side, sources in by_side.items():
        counts = write_rows(folder / f"{side}.parquet", encode(sources, tokenizer, say), settings)
        sides[side] = {"files": len(sources), "bytes": size_bytes[side], **counts}
    files.write_atomic(folder / "sources.jsonl", b"".join(json_line(source.record()) for source in found))
    return {
        "origin": origin,
        "settings": asdict(settings) | {"leave_out": list(settings.leave_out)},
        "split_rule": SPLIT_RULE,
        "end_of_text": {"token": END_OF_TEXT, "id": tokenizer.token_to_id(END_OF_TEXT)},
        "sides": sides,
        "left_out_files": dict(sorted(left_out.items())),
        "repeated_files": _repeated(found),
        "tokenizer_sha256": tokenizer_sha256,
        "built_with": {name: version(name) for name in ("tokenizers", "pyarrow")},
    }


def _repeated(found: Sequence[Source]) -> int:
    """How many of the files that were taken hold the same text as another one that was."""
    taken = Counter(source.sha256 for source in found if source.side)
    return sum(taken.values()) - len(taken)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `trn data text`."""
    default = TextSettings()
    parser.add_argument("--source", type=Path, help="folder of text files (default: Python's own standard library)")
    parser.add_argument("--pattern", default=default.pattern, help="names of files to take (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--context", type=int, default=default.context, help="predictions a row (default: %(default)s)")
    parser.add_argument("--vocab", type=int, default=default.vocab, help="tokenizer entries (default: %(default)s)")
    parser.add_argument(
        "--val-percent",
        type=float,
        default=default.val_percent,
        help="about how many of 100 files go to validation (default: %(default)s)",
    )
    parser.add_argument(
        "--limit-bytes", type=int, default=0, help="take the first files that have at most so many bytes (0: all)"
    )
    parser.add_argument(
        "--row-group-rows", type=int, default=default.row_group_rows, help="rows a row group (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="replace another text data set at --out")
    parser.add_argument("--json", action="store_true", help="print text.json, and what was done, on stdout")


def run(args: argparse.Namespace) -> int:
    """Build what the command line asks for; returns 0. Raises TrnError."""
    # threads of the tokenizers library do not change its result; said aloud, so that it has no reason to warn
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    settings = TextSettings(
        pattern=args.pattern,
        context=args.context,
        vocab=args.vocab,
        val_percent=args.val_percent,
        limit_bytes=args.limit_bytes,
        row_group_rows=args.row_group_rows,
        leave_out=() if args.source else _STDLIB_LEAVES_OUT,
    )
    source = args.source or Path(sysconfig.get_paths()["stdlib"])
    origin = str(args.source) if args.source else f"standard library of Python {platform.python_version()}"
    status, summary = build_text(source, args.out, settings, origin=origin, force=args.force, say=_report)
    for side in SIDES:
        counts = summary["sides"][side]
        _report(
            f"{side}: {counts['files']} files, {counts['tokens']} tokens, {counts['rows']} rows of"
            f" {settings.context + 1} ({counts['dropped_tail_tokens']} tokens dropped at the end)"
        )
    _report(f"{args.out}: {status.replace('_', ' ')}")
    if args.json:
        sys.stdout.buffer.write(pretty_json({"status": status, "out": str(args.out), **summary}))
    return 0


def _report(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
