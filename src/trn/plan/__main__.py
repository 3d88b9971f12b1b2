"""`python -m trn.plan inspect|validate|cache SPEC`: the work behind `trn data` where it is a spec that names the data.

The trainer is found only to ask which columns it reads, and no plan is made: data that no run could be planned over
can be looked at all the same.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trn.errors import SpecError, StorageError, TrnError, UsageError
from trn.feed.subject import Named, Subject
from trn.feed.verbs import Parser, add_verbs, run_verb, stoppable
from trn.plan.mock import make_mock
from trn.plan.planner import use_spec_folder
from trn.provenance.process import process_redactor
from trn.spec import DatasetSpec, LoadedSpec, ValidationSpec, load_spec
from trn.trainer import load_trainer


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb over a spec; returns the exit status."""
    try:
        parser = Parser(prog="trn data", description="Look at the data of a spec.")
        add_verbs(parser.add_subparsers(dest="command", required=True, metavar="COMMAND"))
        parsed = parser.parse_args(argv)
        if len(parsed.data) > 1:
            raise UsageError("a spec is looked at alone.", where=f"trn data {parsed.command}")
        loaded = load_spec(Path(parsed.data[0]))
        with stoppable(), tempfile.TemporaryDirectory(prefix="trn-data-") as scratch:
            return run_verb(parsed, _subject(loaded, _columns(parsed.columns, loaded), Path(scratch)))
    except SpecError as error:
        # a value that is shown in a problem may be a token that was put into the wrong place
        words = process_redactor().words
        shown = [replace(one, path=words(one.path), message=words(one.message)) for one in error.problems]
        sys.stderr.write(f"{SpecError(shown)}\n")
        return error.exit_status
    except TrnError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    except OSError as error:
        failed = StorageError(f"{error.strerror or error}.", where=error.filename)
        sys.stderr.write(f"{failed}\n")
        return failed.exit_status


def _columns(asked: str | None, loaded: LoadedSpec) -> tuple[str, ...] | None:
    """Those of the spec, else those that its trainer names; None: all. Raises PlanRefused."""
    if asked or loaded.spec.dataset.columns:
        return loaded.spec.dataset.columns or None
    use_spec_folder(loaded.folder)
    return tuple(getattr(load_trainer(loaded.spec.trainer), "columns", ())) or None


def _subject(loaded: LoadedSpec, columns: tuple[str, ...] | None, scratch: Path) -> Subject:
    """What is to be looked at; batches that stand in the spec as a file in the folder `scratch`."""
    spec, part = loaded.spec, loaded.spec.dataset
    passes = spec.epochs if spec.epochs is not None and spec.steps_per_epoch is None else 1
    return Subject(
        training=_named(part) if part.mock_batches is None else _mocked(part.mock_batches, scratch),
        validation=None if spec.validation is None else _named(spec.validation),
        columns=columns,
        fills=part.fills,
        seed=spec.seed,
        batch_size=part.batch_size,
        readahead=part.readahead,
        shuffle=part.shuffle,
        window=part.window if isinstance(part.window, int) else "all",
        remainder=part.remainder,
        passes=None if part.end == "cycle" else passes,
        cache=None if part.cache is None else Path(part.cache),
        is_planned=True,
    )


def _mocked(batches: Sequence[Mapping[str, Any]], scratch: Path) -> Named:
    mock = make_mock(batches, scratch)
    mock.write()
    return Named(paths=(str(mock.path),))


def _named(part: DatasetSpec | ValidationSpec) -> Named:
    return Named(paths=part.parquet_paths or (), manifest=part.manifest)


if __name__ == "__main__":
    sys.exit(main())
