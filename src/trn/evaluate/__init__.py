"""A checkpoint of a run, evaluated at any time: the same code path, and the same numbers, as the run's own cadence.

    reopened run, data (the plan's validation, or others) -> trn.loop.evaluation -> metrics
        -> reports/evaluations/<UTC time>-<checkpoint>.json

Here: which rows, comparing with what the run itself found at that step, the record. Nothing is judged: gates, best and
journal belong to the run. Not here: reopening (reopen), how a trainer evaluates (trainer, loop).

    python -m trn.evaluate RUN_DIR [--checkpoint NAME] [--data DATA]... [--json]
"""

from trn.evaluate.data import ValidationData, given_data, planned_data
from trn.evaluate.evaluation import Evaluated, evaluate
from trn.evaluate.record import record_of, write_record

__all__ = [
    "Evaluated",
    "ValidationData",
    "evaluate",
    "given_data",
    "planned_data",
    "record_of",
    "write_record",
]
