"""The kit for trainer authors: is my trainer what a run needs it to be? For pytest, or a plain script.

    check_trainer       proves what a run relies on, in this process and in seconds
    run_steps           some steps of a real run on rows in memory; `bad_batch` spoils one of them
    make_context        a Context, to call a single hook with; `memory_rows` gives the batches for it
    run_whole, run_killed, assert_same_end
                        a spec run in processes of its own, killed where you say, and compared bit for bit

Here: what runs a trainer on purpose to find its faults. Nothing is imitated: plan, loop, checkpoints and feed are those
of every run. No room of trn imports this one.
"""

from trn.testing.check import CheckReport, check_trainer
from trn.testing.compare import Difference, assert_same_end, differences
from trn.testing.context import make_context
from trn.testing.killing import run_killed, run_whole
from trn.testing.memory import memory_feed, memory_rows, random_rows, write_rows
from trn.testing.promise import BrokenPromise
from trn.testing.steps import Ran, bad_batch, run_steps

__all__ = [
    "BrokenPromise",
    "CheckReport",
    "Difference",
    "Ran",
    "assert_same_end",
    "bad_batch",
    "check_trainer",
    "differences",
    "make_context",
    "memory_feed",
    "memory_rows",
    "random_rows",
    "run_killed",
    "run_steps",
    "run_whole",
    "write_rows",
]
