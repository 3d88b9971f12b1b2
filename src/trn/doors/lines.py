"""One line for a person: a step, an event, an outcome, a size, a duration. Plain text, free of control characters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trn.doors.standing import DataWait, Standing, data_wait, eta_s
from trn.doors.text import clean_line
from trn.records import ENDINGS

__all__ = [
    "attempt_line",
    "duration",
    "event_line",
    "number",
    "outcome_line",
    "size",
    "standing_line",
    "value_line",
    "waiting_line",
]

_MUCH_WAITING = 0.2


def number(value: float) -> str:
    """Four significant digits; a whole number that is beyond any float is told as that."""
    try:
        return f"{value:.4g}"
    except OverflowError:
        return "beyond 1e308" if value > 0 else "below -1e308"


def size(size_bytes: float) -> str:
    """Bytes, in decimal units."""
    for unit in ("bytes", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} GB"


def duration(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"


def _rate(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 10_000 else f"{value:.0f}" if value >= 100 else number(value)


def standing_line(standing: Standing) -> str:
    """`step 120/400  loss 3.412  lr 5.0e-04  12.3k tokens/s  val_loss 3.1  eta 0:45`, as far as known."""
    parts = [f"step {standing.step}" + (f"/{standing.max_steps}" if standing.max_steps else "")]
    if standing.loss is not None:
        parts.append(f"loss {number(standing.loss)}")
    if standing.lr is not None:
        parts.append(f"lr {standing.lr:.1e}")
    if standing.rate is not None:
        parts.append(f"{_rate(standing.rate)} {standing.rate_unit}")
    if (wait := data_wait(standing)) and wait.share > _MUCH_WAITING:
        parts.append(f"{wait.share:.0%} waiting for data")
    if standing.val_loss is not None:
        parts.append(f"val_loss {number(standing.val_loss)}")
    if eta := eta_s(standing):
        parts.append(f"eta {duration(eta)}")
    return "  ".join(parts)


def waiting_line(wait: DataWait | None) -> str | None:
    """What to say of a run that waits much for its data; None for one that does not."""
    if wait is None or wait.share <= _MUCH_WAITING:
        return None
    return (
        f"{wait.share:.0%} of the last {wait.steps} steps was waiting for rows; "
        "see dataset.readahead, workers, cache (docs/data.md)"
    )


def value_line(value: Mapping[str, Any] | None) -> str:
    """An outcome's `final` or `best`: `val_loss 2.412 (step 400)`."""
    if not value:
        return "none"
    named = {str(value["metric"]): value.get("value")} if "metric" in value else dict(value)
    values = (f"{name} {_value(one)}" for name, one in named.items() if name != "step")
    return clean_line(f"{'  '.join(values)} (step {value.get('step')})")


def outcome_line(outcome: Mapping[str, Any]) -> str:
    """`completed at step 400 (exit 0)`, and the reason where it says more than the word."""
    line = f"{outcome.get('status')} at step {outcome.get('step')} (exit {outcome.get('exit_code')})"
    reason = str(outcome.get("reason") or "")
    return clean_line(f"{line}: {reason}" if reason and reason != outcome.get("status") else line)


def attempt_line(row: Mapping[str, Any]) -> str:
    """One job of a run: `2026-11-22 09:30:00  job-...  crashed (exit 71): the runner was killed`."""
    code = "" if row.get("exit_code") is None else f" (exit {row['exit_code']})"
    reason = f": {row['reason']}" if row.get("reason") and row["reason"] != row["state"] else ""
    submitted = str(row["submitted_at"])[:19].replace("T", " ")
    return clean_line(f"{submitted}  {row['job_id'] or 'unknown'}  {row['state']}{code}{reason}")


def event_line(event: Mapping[str, Any]) -> str:
    """What one event says. Kinds without words of their own are shown with their fields."""
    kind = str(event.get("event"))
    if kind in ENDINGS:
        return outcome_line({**event, "status": event.get("outcome", kind)})
    words = _WORDS.get(kind, _plain)
    try:
        line = words(event)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        line = _plain(event)
    return clean_line(line)


_HEAD = frozenset({"event", "run_id", "job_id", "seq", "ts"})


def _plain(event: Mapping[str, Any]) -> str:
    fields = (f"{key}={value}" for key, value in event.items() if key not in _HEAD)
    return " ".join([str(event.get("event")), *fields])


def _evaluated(event: Mapping[str, Any]) -> str:
    values = (f"{name} {_value(value)}" for name, value in event["metrics"].items())
    return f"evaluated at step {event['step']}: {'  '.join(values)}"


def _value(value: object) -> str:
    return number(value) if isinstance(value, (int, float)) else str(value)


def _gate(event: Mapping[str, Any]) -> str:
    if event.get("outcome"):
        return f"{event['outcome']} at step {event['step']}: {event['reason']}"
    if event["gate"] == "telemetry":
        return f"not believed at step {event['step']}: {', '.join(event['fields'])}"
    return f"step {event['step']} refused: {event['field']} is {event['value']} ({_rows(event['row_ids'])})"


def _skipped(event: Mapping[str, Any]) -> str:
    why = f"{event['field']} is {event['value']} ({_rows(event['row_ids'])})"
    return (
        f"a batch for step {event['step']} left out: {why}; learning rate x {number(event['lr_factor'])} from here on"
    )


def _parity(event: Mapping[str, Any]) -> str:
    if event["status"] == "passed":
        return f"the export agrees with the model, largest difference {number(event['max_abs'])}"
    return f"parity {event['status']}: {event['reason']}"


def _rows(row_ids: Sequence[int]) -> str:
    if not row_ids:
        return "no rows of the training data"
    shown = ", ".join(map(str, row_ids[:_ROWS_SHOWN]))
    return f"rows {shown}{' ...' if len(row_ids) > _ROWS_SHOWN else ''}"


_ROWS_SHOWN = 4


_WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "job_started": lambda e: f"job {e['job_id']} {'resumes' if e['resume'] else 'starts'} (process {e['pid']})",
    "plan_written": lambda e: f"planned, fingerprint {e['fingerprint'][:12]}",
    "resumed": lambda e: f"resumed from step {e['from_step']} ({e['checkpoint'] or 'no checkpoint yet'})",
    "started": lambda e: f"training from step {e['step']} to {e['max_steps']}",
    "checkpoint": lambda e: f"checkpoint {e['file']} at step {e['step']} ({size(e['size_bytes'])})",
    "checkpoint_rejected": lambda e: f"checkpoint {e['file']} rejected: {e['reason']}",
    "metrics_cut": lambda e: f"{e['lines']} lines after step {e['from_step']} moved to {e['side_file']}",
    "evaluated": _evaluated,
    "sample": lambda e: f"sample at step {e['step']}: {', '.join(e['paths'])}",
    "data_wrapped": lambda e: f"the data begins again after step {e['step']}",
    "weights_loaded": lambda e: f"began with given weights: {e['loaded']} tensors",
    "compile_fallback": lambda e: f"the model is not compiled: {e['error']}",
    "loss_scale": lambda e: f"step {e['step']} made again with loss scale {number(e['scale'])}: a gradient overflowed",
    "note": lambda e: f"{e['about']} at step {e['step']}",
    "exported": lambda e: f"exported {e['checkpoint']}: {', '.join(e['files'])}",
    "parity": _parity,
    "stop_requested": lambda e: f"asked to stop: {e['reason']}",
    "epoch": lambda e: f"epoch {e['epoch']} ended at step {e['step']}",
    "gate": _gate,
    "step_skipped": _skipped,
}
