"""A foreground door in a process of its own, with a child program of the test's choice.

    python door.py RUNS_DIR RUN_ID ARGUMENT...     the child's argv, with {job} and {run_dir} filled in

Prints what `trn run --json` prints, and exits as it does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trn.doors.foreground import run_in_foreground
from trn.doors.progress import display_for
from trn.doors.summary import summary_lines
from trn.doors.watch import Watch
from trn.jobs import Store, open_store
from trn.jobs.ending import Ending
from trn.launch import LocalLauncher
from trn.records import JobRow, new_job_id, pretty_json, utc_now

SCRIPT = Path(__file__)


def row_of(runs_dir: Path, run_id: str, **changes: Any) -> JobRow:
    """A job that is about to be submitted."""
    values: dict[str, Any] = {
        "job_id": new_job_id(),
        "run_id": run_id,
        "run_dir": str(runs_dir / run_id),
        "state": "submitted",
        "config_path": "/spec.yaml",
        "submitted_at": utc_now(),
    }
    return JobRow(**{**values, **changes})


def filled(argv: list[str], row: JobRow) -> list[str]:
    return [part.replace("{job}", row.job_id).replace("{run_dir}", row.run_dir) for part in argv]


def open_door(store: Store, row: JobRow, argv: list[str]) -> Ending:
    """Run the child to its end, as `trn run` does."""
    watch = Watch(store, row, display_for(sys.stderr))
    ending = run_in_foreground(watch, LocalLauncher(), filled(argv, row))
    for line in summary_lines(ending, watch):
        watch.say(line)
    return ending


def start_door(runs_dir: Path, run_id: str, argv: list[str], **options: Any) -> subprocess.Popen[str]:
    """The same in a process of its own."""
    command = [sys.executable, str(SCRIPT), str(runs_dir), run_id, *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Return as soon as `condition` holds; fail the test when it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def main() -> int:
    runs_dir, run_id, *argv = sys.argv[1:]
    with open_store(Path(runs_dir)) as store:
        row = row_of(Path(runs_dir), run_id)
        ending = open_door(store, row, argv)
    sys.stdout.write(pretty_json({"job_id": row.job_id, "state": ending.state, "pid": os.getpid()}).decode())
    return ending.exit_code


if __name__ == "__main__":
    sys.exit(main())
