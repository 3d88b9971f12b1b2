"""The log of one job, as its door sees it: `logs/YYYY/MM/DD/<job_id>.jsonl`, beside the raw output of the child.

    {"event": KIND, "job_id": ..., "ts": ..., ...}

    job_submitted  before anything is started: run_id, run_dir, config_path, devices, argv
    state          the job's row moved: state, and what was recorded with it
    output         a line that the child, or its trainer, printed: text
    job_rejected   the end of a job that was refused: run_id, exit_code, reason
    ended          any other end: state, exit_code, reason

It has what the run's own journal cannot have: what came before there was a run, and what was said of one that never
began. One door writes it at a time; a torn last line, of a door that was killed, is cut by the next. Times are UTC, the
day of the folder is that of the submission. Secrets: the arguments come in redacted, the child masks what it prints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trn.files import AppendLog, make_folder
from trn.records import JOB_LOG_KINDS, json_line, utc_now

__all__ = ["JobLog", "job_log_lines"]


class JobLog:
    """Appends lines to the file at `path`, which is named by the job; opened with the first of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log: AppendLog | None = None

    def write(self, event: str, **fields: Any) -> None:
        """One line. Raises StorageError; ValueError for a kind that is not in JOB_LOG_KINDS."""
        if event not in JOB_LOG_KINDS:
            raise ValueError(f"unknown kind {event!r}")
        if self._log is None:
            make_folder(self.path.parent)
            self._log = AppendLog(self.path)
        self._log.append(json_line({"event": event, "job_id": self.path.stem, "ts": utc_now(), **fields}))

    def close(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            log.close()


def job_log_lines(output: Path) -> Path:
    """Where the log of the job is whose raw output goes to `output`."""
    return output.with_suffix(".jsonl")
