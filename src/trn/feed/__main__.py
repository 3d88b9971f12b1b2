"""`python -m trn.feed index|inspect|validate|cache|text|pack ...`: the work behind `trn data`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trn.errors import StorageError, TrnError
from trn.feed.manifest import write_manifest
from trn.feed.verbs import VERBS, Parser, add_verbs, run_verb, stoppable, subject_of_paths
from trn.records import json_line


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status. Results go to stdout, errors to stderr as one line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed = _parser(arguments).parse_args(arguments)
        with stoppable():
            return _run(parsed)
    except TrnError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    except OSError as error:
        failed = StorageError(f"{error.strerror or error}.", where=error.filename)
        sys.stderr.write(f"{failed}\n")
        return failed.exit_status


def _run(parsed: argparse.Namespace) -> int:
    if parsed.command == "index":
        return _index(parsed)
    if parsed.command in VERBS:
        return run_verb(parsed, subject_of_paths(parsed))
    # the other half of this room, loaded only when it is asked for: it brings more libraries
    from trn.feed import pack, text

    return pack.run(parsed) if parsed.command == "pack" else text.run(parsed)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = Parser(prog="trn data", description="Look at data sets, and make them.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    index = commands.add_parser("index", help="write the manifest of parquet files")
    index.add_argument("paths", nargs="+", metavar="PATH", help="files, folders, globs or URLs, in this order")
    index.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the manifest goes")
    index.add_argument("--json", action="store_true", help="print a JSON object on stdout")
    add_verbs(commands)
    made = commands.add_parser("text", help="make a token data set of text files")
    if arguments[:1] == ["text"]:
        from trn.feed import text

        text.add_arguments(made)
    packed = commands.add_parser("pack", help="pack documents of varying length into rows of fixed length")
    if arguments[:1] == ["pack"]:
        from trn.feed import pack

        pack.add_arguments(packed)
    return parser


def _index(parsed: argparse.Namespace) -> int:
    dataset = write_manifest(parsed.paths, parsed.out)
    summary = {
        "manifest": str(parsed.out),
        "fingerprint": dataset.fingerprint,
        "files": len(dataset.files),
        "row_groups": sum(len(file.row_groups) for file in dataset.files),
        "rows": dataset.rows,
        "size_bytes": sum(file.size_bytes for file in dataset.files),
        "columns": dataset.columns,
    }
    if parsed.json:
        sys.stdout.write(json_line(summary).decode())
        return 0
    columns = ", ".join(f"{name}: {kind}" for name, kind in dataset.columns.items())
    sys.stderr.write(
        f"{parsed.out}: {dataset.rows} rows in {summary['row_groups']} row groups of {summary['files']} files, "
        f"{summary['size_bytes']} bytes, fingerprint {dataset.fingerprint[:16]}\n  {columns}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
