"""A job that is done is not done again: its end is told once more, and nothing is fetched or started for it.

What was asked for lies in `.trn/worker/<run_id>/asked.json` beside the runs. A job file that asks for something else by
now, a longer budget for example, is the runner's to judge.
"""

from __future__ import annotations

from trn.files import write_atomic
from trn.records import JsonError, Outcome, canonical_json, read_json
from trn.worker.ending import Terminal, terminal_of_outcome
from trn.worker.job import Job

__all__ = ["finished", "note_asked"]

_NAME = "asked.json"


def note_asked(job: Job) -> None:
    """Remember what is asked for. Raises StorageError."""
    write_atomic(job.own_folder / _NAME, canonical_json(job.document()))


def finished(job: Job) -> Terminal | None:
    """How the run ended, where it ended well and nothing else is asked for now."""
    try:
        outcome = Outcome.from_json(read_json(job.run_dir / "reports" / "outcome.json"))
        is_same = (job.own_folder / _NAME).read_bytes() == canonical_json(job.document())
    except (JsonError, OSError):
        return None
    return terminal_of_outcome(outcome) if is_same and outcome.exit_code == 0 else None
