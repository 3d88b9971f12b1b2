"""JSON Schemas of what a user writes and of what a run writes, by name: what `trn schema NAME` prints.

Where a class reads or writes a record, its schema is made from the class; the others stand in `schemas_by_hand`. What
no schema can say (digests that must fit, keys that must agree) is checked by `trn verify` and by the readers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter

from trn.checkpoint.meta import CheckpointMeta
from trn.doors.schemas_by_hand import (
    COUNT,
    ID,
    SHA256,
    UTC_TIME,
    closed,
    contract_schema,
    dataset_schema,
    epoch_schema,
    forked_from_schema,
    heartbeat_schema,
    metrics_schema,
    run_metadata_schema,
    runtime_env_schema,
    validation_schema,
)
from trn.doors.schemas_of_events import event_schema, job_log_schema
from trn.doors.schemas_of_exports import export_schema, parity_schema
from trn.errors import STATUS, UsageError
from trn.provenance.evaluation_record import EvaluationRecord
from trn.provenance.run_meta_schema import RunMeta
from trn.records import JOB_STATES, JobRow, Outcome
from trn.spec import spec_schema
from trn.spec.plan_model import Plan

__all__ = ["schema_names", "schema_of"]

Schema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_OPEN = {"type": "object"}


def schema_names() -> tuple[str, ...]:
    """Every name that `schema_of` knows."""
    return tuple(_SCHEMAS)


def schema_of(name: str) -> Schema:
    """The JSON Schema called `name`. Raises UsageError for an unknown name."""
    if name not in _SCHEMAS:
        raise UsageError(f"there is no schema {name!r}; there are {', '.join(_SCHEMAS)}.", where="trn schema")
    return {"$schema": _DIALECT, **_SCHEMAS[name]()}


def _plan() -> Schema:
    return _written(Plan.model_json_schema(), "reports/resolved_config.json: the plan", fingerprint=SHA256)


def _run_meta() -> Schema:
    kind = {"type": "object", "required": ["kind"], "properties": {"kind": {"type": "string", "minLength": 1}}}
    schema = RunMeta.model_json_schema()
    return _written(schema, "reports/run_meta.json", schema_version={"const": 1}, run_id=ID, preprocess=kind)


def _outcome() -> Schema:
    best = closed("The best validation", {"step": COUNT, "metric": {"type": "string"}, "value": {"type": "number"}})
    checkpoint = closed("The last one", {"file": {"type": "string"}, "sha256": SHA256, "step": COUNT})
    schema = _written(
        TypeAdapter(Outcome).json_schema(),
        "reports/outcome.json",
        schema_version={"const": 1},
        status={"enum": list(STATUS)},
        exit_code={"enum": sorted({status.exit for status in STATUS.values()})},
        run_id=ID,
        job_id=ID,
        step=COUNT,
        epochs_completed=COUNT,
        started_at=UTC_TIME,
        ended_at=UTC_TIME,
        best={"anyOf": [best, {"type": "null"}]},
        checkpoint={"anyOf": [checkpoint, {"type": "null"}]},
        artifacts={"type": "object", "additionalProperties": SHA256},
        exact={"type": "boolean"},
        inexact_because={"type": "array", "items": {"type": "string"}},
    )
    schema["required"] = [name for name in schema["required"] if name not in ("exact", "inexact_because")]
    return schema


def _checkpoint() -> Schema:
    position = closed("How much of a file", {"offset": COUNT, "sha256": SHA256, "lines": COUNT})
    schema = TypeAdapter(CheckpointMeta).json_schema()
    schema["properties"]["meta_sha256"] = SHA256
    own_file = closed(
        "A file of the trainer's own", {"path": {"type": "string"}, "size_bytes": COUNT, "sha256": SHA256}
    )
    found = _written(
        schema,
        "checkpoints/step-XXXXXXXX.meta.json",
        schema_version={"const": 1},
        file={"type": "string", "pattern": "^step-[0-9]{8,}\\.pt$"},
        sha256=SHA256,
        size_bytes=COUNT,
        step=COUNT,
        epoch=COUNT,
        run_id=ID,
        job_id=ID,
        plan_fingerprint=SHA256,
        created_at=UTC_TIME,
        journal={"type": "object", "additionalProperties": position},
        rng={"type": "array", "items": _OPEN, "minItems": 1},
        files={"type": "array", "items": own_file, "minItems": 1},
    )
    found["required"] = [name for name in found["required"] if name not in ("files", "hook")]
    return found


def _evaluation() -> Schema:
    environment = {"runtime_env": runtime_env_schema(), "run_metadata": run_metadata_schema()}
    return _written(
        EvaluationRecord.model_json_schema(),
        "reports/evaluations/*.json",
        schema_version={"const": 1},
        run_id=ID,
        created_at=UTC_TIME,
        environment=closed("The process that evaluated", environment),
    )


def _job() -> Schema:
    """The row as it is shown: a run of which no job is known has none, and no config."""
    nullable = {name: {"anyOf": [{"type": "string"}, {"type": "null"}]} for name in ("job_id", "config_path")}
    return _written(
        TypeAdapter(JobRow).json_schema(),
        "A job, as `trn list --json` gives it",
        state={"enum": list(JOB_STATES)},
        run_id=ID,
        submitted_at=UTC_TIME,
        devices={"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        **nullable,
    )


def _written(schema: Schema, title: str, **sharper: Schema) -> Schema:
    """The schema of a class as its writer uses it: every key is there and no other; some are said more sharply."""
    own = {
        name: {word: said for word, said in one.items() if word != "default"}
        for name, one in schema["properties"].items()
    }
    parts = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    return {**closed(title, own | sharper), **parts}


_SCHEMAS: dict[str, Callable[[], Schema]] = {
    "spec": spec_schema,
    "plan": _plan,
    "event": event_schema,
    "job_log": job_log_schema,
    "metrics": metrics_schema,
    "validation": validation_schema,
    "heartbeat": heartbeat_schema,
    "outcome": _outcome,
    "checkpoint": _checkpoint,
    "epoch": epoch_schema,
    "run_meta": _run_meta,
    "run_metadata": run_metadata_schema,
    "runtime_env": runtime_env_schema,
    "forked_from": forked_from_schema,
    "evaluation": _evaluation,
    "export": export_schema,
    "parity": parity_schema,
    "dataset": dataset_schema,
    "job": _job,
    "contract": contract_schema,
}
