"""The run's append-only record: metrics, one line an optimizer step, and events, never cut.

Here: writing lines in order, continuing after a crash, cutting metrics back to a checkpoint. Not here: what a number
means (gates), when something is written (loop), who replays it (sinks).

    loop ──step(...)──> reports/train_metrics.jsonl   exactly one line a step, cut back on resume
    loop ──val(...)───> reports/val_metrics.jsonl     cut likewise
    all  ──emit(...)──> reports/events.jsonl          `seq` rises for ever, over all jobs of the run
"""

from trn.journal.events import EventLog
from trn.journal.metrics import MetricsLog

__all__ = ["EventLog", "MetricsLog"]
