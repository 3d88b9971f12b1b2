"""The last words of a door about its job: how it ended, the numbers, a sample, and where everything lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trn.doors.lines import outcome_line, value_line, waiting_line
from trn.doors.standing import data_wait
from trn.doors.text import clean, clean_line
from trn.doors.watch import Watch
from trn.jobs.ending import Ending
from trn.records import Outcome

__all__ = ["summary_lines"]

_SAMPLE_CHARACTERS = 600
_DAMAGE = frozenset({"numerical_instability", "divergence", "divergence_at_first_validation"})
"""Outcomes that follow from the plan: a resume without a change comes to them once more."""


def summary_lines(ending: Ending, watch: Watch) -> Iterator[str]:
    """What to tell a person about a job that has ended, line by line."""
    run_dir = Path(watch.row.run_dir)
    outcome = ending.outcome
    if outcome is None:
        yield from _without_outcome(ending, watch)
        return
    yield f"trn: {outcome_line(outcome.to_json())}"
    if outcome.final or outcome.best:
        yield f"     final  {value_line(outcome.final)}"
        yield f"     best   {value_line(outcome.best)}"
    if waiting := waiting_line(data_wait(watch.standing)):
        yield f"     data   {waiting}"
    yield from _sample(run_dir, watch.sample)
    yield from _places(outcome, watch)


def _without_outcome(ending: Ending, watch: Watch) -> Iterator[str]:
    if ending.state == "rejected":
        yield f"trn: refused (exit {ending.exit_code}); nothing was changed."
        return
    yield f"trn: {ending.state} (exit {ending.exit_code}): {clean_line(ending.reason)}"
    if watch.log.path.is_file():
        yield f"     output {watch.log.path}"


def _places(outcome: Outcome, watch: Watch) -> Iterator[str]:
    run_dir = Path(watch.row.run_dir)
    yield f"     folder {run_dir}"
    if watch.log.path.is_file() and watch.log.path.stat().st_size:
        yield f"     output {watch.log.path}"
    if outcome.resumable:
        again = "; unless something is changed, the same step comes again" if outcome.status in _DAMAGE else ""
        yield f"     resume with: trn resume {run_dir}{again}"


def _sample(run_dir: Path, event: dict[str, Any] | None) -> Iterator[str]:
    """The beginning of the newest sample that is text."""
    paths = event.get("paths") if event else None
    for name in paths if isinstance(paths, list) else []:
        path = (run_dir / str(name)).resolve()
        if not path.is_relative_to(run_dir.resolve()) or not path.is_file():
            continue
        with open(path, "rb") as stream:
            data = stream.read(4 * _SAMPLE_CHARACTERS)
        text = clean(data.decode(errors="ignore"))[:_SAMPLE_CHARACTERS].strip()
        if text and b"\0" not in data:
            yield f"     sample {clean_line(str(name))}"
            yield from (f"       {line}" for line in text.splitlines())
            return
