"""Requests to bring a run forward: their rows, what the disk says about them, and how one ends whose runner died.

Here: the store (SQLite beside the runs) with its index of lines, the truth of a job as read from its run's folder,
and the outcome that a door writes when the runner could not. Not here: starting processes (launch), showing anything
(doors), and what happens inside a run (runner, journal): a job is a row, a run is a folder, and the folder wins.

    door ──add, advance──> Store ──────────> <runs_dir>/.trn/jobs.db       one row a job
                             └─────────────> <runs_dir>/jobs/index.jsonl   one line a change
    index, or runs and requests ──rebuild──> Store         where its file was lost
    row ──observe──> row    state as the locks and reports/outcome.json have it: `lost` is found here
    row, exit status ──settle──> Ending      the runner is gone: its outcome, or `crashed` written in its place

`settle` is imported from `trn.jobs.ending`: it brings the journal, and verbs that only read start quicker without.
"""

from trn.jobs.folders import outcome_of, row_of_folder, rows_of_folders
from trn.jobs.observe import OPEN_STATES, UNREADABLE, launch_lock, observe, record_lost
from trn.jobs.store import MOVES, Store, job_log, open_store

__all__ = [
    "MOVES",
    "OPEN_STATES",
    "UNREADABLE",
    "Store",
    "job_log",
    "launch_lock",
    "observe",
    "open_store",
    "outcome_of",
    "record_lost",
    "row_of_folder",
    "rows_of_folders",
]
