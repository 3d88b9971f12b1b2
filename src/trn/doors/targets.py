"""Which run is meant: the folder of all runs, and one run by its id, by the id of a job of it, or by its path.

An id never becomes a path without a check, and what it names must be a real folder directly below the runs: no link
may lead elsewhere. A path is taken as the user gave it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from trn.errors import UsageError
from trn.jobs import open_store
from trn.records import RESERVED_RUN_IDS, RUN_ID_PATTERN, JobRow

__all__ = ["Target", "check_run_id", "find", "runs_folder"]


_NEAREST_OF = 1000
"""Of so many of the newest jobs, the nearest names are told."""


class Target(NamedTuple):
    """One run, whose folder may be missing where its job was refused; `job` is set if a job's id was asked for."""

    runs_dir: Path
    run_id: str
    job: JobRow | None = None

    @property
    def run_dir(self) -> Path:
        return self.runs_dir / self.run_id


def runs_folder(flag: str | None, from_spec: str | None = None) -> Path:
    """The folder of all runs, absolute: `--runs-dir`, else TRN_RUNS_DIR, else the spec's, else `runs` right here.

    Raises UsageError for a URL.
    """
    given = flag or os.environ.get("TRN_RUNS_DIR") or from_spec or "runs"
    if "://" in given:
        raise UsageError(
            f"expected a folder on this machine, found {given!r}.", where="--runs-dir" if flag else "TRN_RUNS_DIR"
        )
    return Path(os.path.abspath(given))


def check_run_id(run_id: str) -> str:
    """`run_id`, if it may name a folder. Raises UsageError."""
    if not RUN_ID_PATTERN.fullmatch(run_id) or run_id.lower() in RESERVED_RUN_IDS:
        raise UsageError(
            f"{run_id!r} cannot be the id of a run.",
            where="run_id",
            hint="Use up to 64 letters, digits, dots, dashes and underscores, beginning with a letter or digit; "
            f"{' and '.join(sorted(RESERVED_RUN_IDS))} are taken.",
        )
    return run_id


def find(text: str, runs_dir: Path) -> Target:
    """The run that `text` names. Raises UsageError with the nearest names where there is none."""
    if os.sep in text or text in (".", ".."):
        return _of_path(text)
    if RUN_ID_PATTERN.fullmatch(text) and text not in RESERVED_RUN_IDS:
        if _is_run(runs_dir / text):
            return Target(runs_dir, text)
        with open_store(runs_dir) as store:
            if job := store.get(text):
                return Target(runs_dir, check_run_id(job.run_id), job)
            if rows := store.of_run(text):
                return Target(runs_dir, text, rows[-1])
    if _is_run(Path(text)):
        return _of_path(text)
    raise _unknown(text, runs_dir)


def _is_run(folder: Path) -> bool:
    """A folder with a plan in it; a link to one is none."""
    return not folder.is_symlink() and (folder / "reports" / "resolved_config.json").is_file()


def _of_path(text: str) -> Target:
    folder = Path(text).resolve()
    if not _is_run(folder):
        found = "there is no plan in it" if folder.is_dir() else "there is no such folder"
        raise UsageError(
            f"expected the folder of a run, with reports/resolved_config.json; {found}.",
            where=str(folder),
            hint="`trn list` shows the runs.",
        )
    return Target(folder.parent, folder.name)


def _unknown(text: str, runs_dir: Path) -> UsageError:
    import difflib  # for this message only, and the verbs that come here are to start quickly

    with open_store(runs_dir) as store:
        jobs = store.list(limit=_NEAREST_OF)
        runs = [*(row for row in jobs if row.state != "rejected"), *store.runs_without_jobs(_NEAREST_OF)]
    newest = sorted(runs, key=lambda row: row.submitted_at, reverse=True)
    names = list(dict.fromkeys(row.run_id for row in newest))
    if not names:
        return UsageError(
            f"no run or job is called {text!r}: there are no runs here.",
            where=str(runs_dir),
            hint="Start one with `trn run --config FILE`, or say where they are with --runs-dir or TRN_RUNS_DIR.",
        )
    near = difflib.get_close_matches(text, [*names, *(row.job_id for row in jobs)], n=3)
    return UsageError(
        f"no run or job is called {text!r}.",
        where=str(runs_dir),
        hint=f"{'Nearest' if near else 'The newest runs'}: {', '.join(near or names[:3])}. `trn list` shows more.",
    )
