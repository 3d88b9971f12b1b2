"""JSON Schemas of what a user writes and of what a run writes, made from the classes that read and write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter

from trn.errors import UsageError
from trn.records import EVENT_KINDS, JOB_STATES, RUN_ID_PATTERN, STEP_KEYS, JobRow, Outcome
from trn.spec import spec_schema

__all__ = ["schema_of"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ID = {"type": "string", "pattern": f"^{RUN_ID_PATTERN.pattern}$"}
_COUNT = {"type": "integer", "minimum": 0}


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema called `name`. Raises UsageError for an unknown name."""
    if name not in _SCHEMAS:
        raise UsageError(f"there is no schema {name!r}; there are {', '.join(_SCHEMAS)}.", where="trn schema")
    return {"$schema": _DIALECT, **_SCHEMAS[name]()}


def _event() -> dict[str, Any]:
    return {
        "title": "A line of reports/events.jsonl",
        "type": "object",
        "required": ["event", "run_id", "job_id", "seq", "ts"],
        "properties": {
            "event": {"enum": list(EVENT_KINDS)},
            "run_id": _ID,
            "job_id": {"type": "string"},
            "seq": {"type": "integer", "minimum": 1},
            "ts": {"type": "string", "format": "date-time"},
        },
        "additionalProperties": True,
    }


def _metrics() -> dict[str, Any]:
    counted = ("step", "epoch")
    return {
        "title": "A line of reports/train_metrics.jsonl",
        "type": "object",
        "required": list(STEP_KEYS),
        "properties": {key: _COUNT if key in counted else {"type": ["number", "null"]} for key in STEP_KEYS},
        "additionalProperties": True,
    }


def _outcome() -> dict[str, Any]:
    return {**TypeAdapter(Outcome).json_schema(), "title": "reports/outcome.json", "additionalProperties": False}


def _job() -> dict[str, Any]:
    schema = {**TypeAdapter(JobRow).json_schema(), "title": "A job, as `trn list --json` gives it"}
    schema["properties"]["state"] = {"enum": list(JOB_STATES)}
    return {**schema, "additionalProperties": False}


_SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {
    "spec": spec_schema,
    "event": _event,
    "metrics": _metrics,
    "outcome": _outcome,
    "job": _job,
}
