"""JSON Schemas of events and of the log of a job: what a line of a kind has, at least.

Consumers outside the house are built on these, so they are frozen: tests/doors/event_schema.json.
"""

from __future__ import annotations

from typing import Any

from trn.doors.schemas_by_hand import COUNT, ID, UTC_TIME, list_of, or_null
from trn.records import EVENT_HEAD, EVENT_KINDS, JOB_LOG_KINDS, JOB_STATES, STEP_KEYS, TIMING_KEYS

__all__ = ["EVENT_FIELDS", "event_schema", "job_log_schema"]

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}

EVENT_FIELDS: dict[str, tuple[str, ...]] = {
    "job_submitted": ("run_dir", "config_path", "devices", "argv"),
    "job_rejected": ("exit_code", "reason"),
    "plan_written": ("fingerprint", "revision", "changes"),
    "job_started": ("pid", "resume"),
    "resumed": ("from_step", "checkpoint", "named"),
    "started": ("step", "max_steps"),
    "metric": tuple(key for key in STEP_KEYS if key not in TIMING_KEYS),
    "heartbeat": ("step", "epoch", "data_wait_share"),
    "checkpoint": ("step", "file", "sha256", "size_bytes"),
    "checkpoint_rejected": ("file", "reason"),
    "metrics_cut": ("from_step", "lines", "side_file"),
    "evaluated": ("step", "metrics"),
    "sample": ("step", "paths"),
    "data_touched": ("files",),
    "data_wrapped": ("step", "pass_index"),
    "weights_loaded": ("sha256", "loaded", "missing", "unexpected", "mismatched"),
    "compile_fallback": ("error",),
    "loss_scale": ("step", "scale"),
    "note": ("about",),
    "exported": ("files", "checkpoint"),
    "parity": ("status", "reason", "max_abs"),
    "epoch": ("epoch", "step", "train_loss", "val_loss", "tokens_seen", "grad_norm_max"),
    "step_skipped": ("step", "field", "value", "row_ids", "skips_in_row", "skips", "lr_factor"),
    "gate": ("gate", "step"),
    "stop_requested": ("reason",),
    **dict.fromkeys(("completed", "preempted", "cancelled", "failed"), ("outcome", "exit_code", "reason", "step")),
}
"""What an event of a kind has beside its head; it may have more."""

_AT_TIMES: dict[str, Schema] = {"metric": {"debug": {"type": "object"}, "debug_truncated": {"const": True}}}
"""What it may have, where there is something to say of that."""


def event_schema() -> Schema:
    head = {
        "event": {"enum": list(EVENT_KINDS)},
        "run_id": ID,
        "job_id": ID,
        "seq": {"type": "integer", "minimum": 1},
        "ts": UTC_TIME,
    }
    assert head.keys() == EVENT_HEAD, "the head is that of the records"
    without_run = {"enum": ["job_submitted", "job_rejected"]}
    return {
        "title": "A line of reports/events.jsonl; of the first two kinds, one of the log of a job",
        "type": "object",
        "required": [key for key in head if key != "seq"],
        "properties": head,
        "allOf": [
            {"if": {"properties": {"event": without_run}}, "else": {"required": ["seq"]}},
            *(
                {"if": {"properties": {"event": {"const": kind}}}, "then": _then(kind, fields)}
                for kind, fields in EVENT_FIELDS.items()
            ),
        ],
        "additionalProperties": True,
    }


def _then(kind: str, fields: tuple[str, ...]) -> Schema:
    at_times = {"properties": _AT_TIMES[kind]} if kind in _AT_TIMES else {}
    return {"required": list(fields), **at_times}


_JOB_LOG_FIELDS: dict[str, tuple[str, ...]] = {
    "job_submitted": ("run_id", *EVENT_FIELDS["job_submitted"]),
    "state": ("state",),
    "output": ("text",),
    "job_rejected": ("run_id", *EVENT_FIELDS["job_rejected"]),
    "ended": ("state", "exit_code", "reason"),
}


def job_log_schema() -> Schema:
    assert tuple(_JOB_LOG_FIELDS) == JOB_LOG_KINDS, "the kinds are those of the records"
    head = {"event": {"enum": list(JOB_LOG_KINDS)}, "job_id": ID, "ts": UTC_TIME}
    told: Schema = {
        "run_id": ID,
        "state": {"enum": list(JOB_STATES)},
        "text": _TEXT,
        "reason": or_null(_TEXT),
        "exit_code": or_null(COUNT),
        "devices": or_null(list_of(_TEXT)),
        "argv": list_of(_TEXT),
    }
    return {
        "title": "A line of logs/YYYY/MM/DD/JOB.jsonl",
        "type": "object",
        "required": list(head),
        "properties": head | told,
        "allOf": [
            {"if": {"properties": {"event": {"const": kind}}}, "then": {"required": list(fields)}}
            for kind, fields in _JOB_LOG_FIELDS.items()
        ],
        "additionalProperties": True,
    }
