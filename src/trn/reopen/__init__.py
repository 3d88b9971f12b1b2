"""A run's folder made alive again: plan, code, checkpoint -> the trainer with its state, as it was at that step.

    folder ──plan──> code found and compared ──import──> torch as planned, configure ──checkpoint verified──> Reopened

Here: reading the plan, finding the trainer's code and comparing it before it runs, choosing and verifying a checkpoint,
setting torch as planned, giving trainer and random streams their state back. Nothing in the folder is changed, and the
data are not needed. Not here: what is done with it (export, evaluate; the runner, which trains on).

The folder may have been copied to another machine. Import paths never come from the checkpoint, and the plan's own
`spec_folder` counts only where it belongs to whoever reopens: see `code`.
"""

from trn.reopen.checkpoint import announced_steps, chosen_checkpoint, progress_of
from trn.reopen.code import other_code
from trn.reopen.folder import read_run, refuse_foreign
from trn.reopen.run import Reopened, reopen
from trn.reopen.settings import prepare_torch
from trn.reopen.state import apply_state

__all__ = [
    "Reopened",
    "announced_steps",
    "apply_state",
    "chosen_checkpoint",
    "other_code",
    "prepare_torch",
    "progress_of",
    "read_run",
    "refuse_foreign",
    "reopen",
]
