"""`python -m trn.feed index PATHS... --out FILE` and `python -m trn.feed text ...`: the work behind `trn data`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from trn.errors import TrnError, UsageError, exit_code
from trn.feed.manifest import write_manifest
from trn.records import json_line


class _Parser(argparse.ArgumentParser):
    """Reports misuse as every other door does: one line, and the exit status of the code."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}.", where=self.prog, hint="See --help.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status. Results go to stdout, errors to stderr as one line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed = _parser(arguments).parse_args(arguments)
        if parsed.command == "index":
            return _index(parsed)
        # the other half of this room, loaded only when it is asked for: it brings more libraries
        from trn.feed import text

        return text.run(parsed)
    except TrnError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    except KeyboardInterrupt:
        return exit_code("cancelled")


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m trn.feed", description="Prepare data sets.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    index = commands.add_parser("index", help="write the manifest of parquet files")
    index.add_argument("paths", nargs="+", metavar="PATH", help="files, folders or globs, in this order")
    index.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the manifest goes")
    index.add_argument("--json", action="store_true", help="print a JSON object on stdout")
    made = commands.add_parser("text", help="make a token data set of text files")
    if arguments[:1] == ["text"]:
        from trn.feed import text

        text.add_arguments(made)
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
