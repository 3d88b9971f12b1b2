"""`trn data inspect`, `validate` and `cache`: their options, and what they print, for paths here and specs in trn.plan.

Results go to standard output, or as one JSON object with --json; errors are raised.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from trn.errors import STATUS, Stopped, UsageError
from trn.feed.cache import Cache, has_cache, make_cache
from trn.feed.checks import validate_data
from trn.feed.inspection import inspect_data, inspection_lines
from trn.feed.stores import is_url
from trn.feed.subject import Subject, named
from trn.records import json_line

__all__ = ["VERBS", "Parser", "add_verbs", "run_verb", "stoppable", "subject_of_paths"]

VERBS = ("inspect", "validate", "cache")
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WHAT = "a spec; or files, folders, globs or URLs, in this order, or one manifest"


class Parser(argparse.ArgumentParser):
    """Reports misuse as every other door does: one line, and the exit status of the code.

    What is taken as a `Path` is on this machine: a URL is refused, for it would become a folder called `s3:`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register("type", Path, _path_here)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}.", where=self.prog, hint="See --help.")


def _path_here(text: str) -> Path:
    if is_url(text):
        raise argparse.ArgumentTypeError(f"expected a path on this machine, found {text!r}")
    return Path(text)


class _Asked(Stopped):
    """A verb was asked to stop."""

    kind = "data"


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP end what is done inside as Ctrl-C does: what was half made is removed. Raises Stopped.

    The first one counts; another kind does not disturb the cleaning up, the same kind again ends that too. A signal
    that the user had ignored (nohup) stays ignored. Only in the main thread.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1 or number in received[:-1]:
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in _STOPPING}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, stop)
        yield
    except KeyboardInterrupt:
        first = signal.Signals((*received, signal.SIGINT)[0])
        outcome = "cancelled" if first == signal.SIGINT else "preempted"
        raise _Asked(outcome, f"{first.name} was received; nothing half made was left.") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def add_verbs(commands: Any) -> None:
    """Add the three to the subcommands of a parser."""
    inspect = commands.add_parser("inspect", help="what data are, their order, and how fast they come")
    _add_common(inspect)
    inspect.add_argument("--batch-size", type=_positive, metavar="N", help="rows of a batch; 32, or the spec's")
    inspect.add_argument(
        "--seconds", type=_seconds, default=3.0, metavar="S", help="how long to read at most; %(default)s"
    )
    validate = commands.add_parser("validate", help="all that is wrong with data; exit status 65 where something is")
    _add_common(validate)
    validate.add_argument(
        "--validation", action="append", metavar="PATH", help="validation data, to be compared with; repeatable"
    )
    cache = commands.add_parser("cache", help="decode data once into memory-mapped Arrow, for dataset.cache")
    _add_common(cache)
    cache.add_argument("--out", type=Path, metavar="DIR", help="the folder of caches; dataset.cache of the spec")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="+", metavar="SPEC|PATH", help=_WHAT)
    parser.add_argument("--columns", metavar="A,B", help="only these columns, in this order")
    parser.add_argument("--json", action="store_true", help="print a JSON object on stdout")


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if (seconds := float(text)) >= 0:
            return seconds
    raise argparse.ArgumentTypeError(f"expected a number of seconds from 0, found {text!r}")


def subject_of_paths(parsed: argparse.Namespace) -> Subject:
    """What the paths of a command line mean, with default settings."""
    return Subject(training=named(parsed.data))


def run_verb(parsed: argparse.Namespace, subject: Subject) -> int:
    """Do what was asked, and print it; returns the exit status. Raises TrnError."""
    if parsed.columns:
        columns = tuple(name for name in parsed.columns.split(",") if name)
        fills = {name: value for name, value in (subject.fills or {}).items() if name in columns}
        subject = replace(subject, columns=columns, fills=None if subject.fills is None else fills)
    if parsed.command == "inspect":
        return _inspect(parsed, subject)
    return _validate(parsed, subject) if parsed.command == "validate" else _cache(parsed, subject)


def _inspect(parsed: argparse.Namespace, subject: Subject) -> int:
    if parsed.batch_size:
        subject = replace(subject, batch_size=parsed.batch_size)
    report = inspect_data(subject, seconds=parsed.seconds)
    _print(json_line(report).decode() if parsed.json else "\n".join(inspection_lines(report)) + "\n")
    return 0


def _validate(parsed: argparse.Namespace, subject: Subject) -> int:
    if parsed.validation:
        subject = replace(subject, validation=named(parsed.validation))
    findings = validate_data(subject)
    errors = sum(one.level == "error" for one in findings)
    if parsed.json:
        value = {"errors": errors, "warnings": len(findings) - errors, "findings": [one.to_json() for one in findings]}
        _print(json_line(value).decode())
    else:
        _print("".join(f"{one}\n" for one in findings))
        sys.stderr.write(f"{errors} errors, {len(findings) - errors} warnings\n" if findings else "nothing is wrong\n")
    return STATUS["data_error"].exit if errors else 0


def _cache(parsed: argparse.Namespace, subject: Subject) -> int:
    folder = parsed.out or subject.cache
    if folder is None:
        raise UsageError("it is not said where the cache goes.", where="trn data cache", hint="Give --out DIR.")
    dataset = subject.training.open(subject.columns, None)
    columns = list(dataset.columns)
    was_there = has_cache(dataset, columns, folder)
    made = make_cache(dataset, columns, folder)
    _print(_cache_json(made) if parsed.json else _cache_line(made, folder, was_there=was_there))
    return 0


def _cache_json(made: Cache) -> str:
    value = {"path": str(made.path), "rows": made.rows, "size_bytes": made.size_bytes, "sha256": made.sha256}
    return json_line(value).decode()


def _cache_line(made: Cache, folder: Path, *, was_there: bool) -> str:
    done = "was there already" if was_there else "made"
    return f"{made.path}: {done}, {made.rows:,} rows, {made.size_bytes:,} bytes; use it with dataset.cache: {folder}\n"


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
