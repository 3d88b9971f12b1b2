"""JSON Schemas of files that are written from plain values: no class stands behind them, so their shape is said here.

What is required is what every writer of this version writes; the tests hold real files of a real run against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trn.gates import EPOCH_KEYS, READING_RANGES
from trn.records import RUN_ID_PATTERN, STEP_KEYS
from trn.subprocess_contract import CONTRACT_VERSION

__all__ = [
    "COUNT",
    "ID",
    "SHA256",
    "UTC_TIME",
    "closed",
    "contract_schema",
    "dataset_schema",
    "epoch_schema",
    "forked_from_schema",
    "heartbeat_schema",
    "list_of",
    "metrics_schema",
    "or_null",
    "run_metadata_schema",
    "runtime_env_schema",
    "validation_schema",
]

Schema = dict[str, Any]

ID: Schema = {"type": "string", "pattern": f"^{RUN_ID_PATTERN.pattern}$"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SHA256: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
UTC_TIME: Schema = {
    "type": "string",
    "format": "date-time",
    "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$",
}
_TEXT: Schema = {"type": "string"}
_STEP: Schema = {"type": "integer", "minimum": 1}
_FLAG: Schema = {"type": "boolean"}
_VERSION: Schema = {"const": 1}


def closed(title: str, properties: Mapping[str, Schema]) -> Schema:
    """An object with exactly these keys."""
    return {
        "title": title,
        "type": "object",
        "required": list(properties),
        "properties": dict(properties),
        "additionalProperties": False,
    }


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def metrics_schema() -> Schema:
    counted = {"step": _STEP, "epoch": COUNT, "tokens_seen": or_null(COUNT)}
    return {
        "title": "A line of reports/train_metrics.jsonl",
        "type": "object",
        "required": list(STEP_KEYS),
        "properties": {key: counted.get(key) or _reading(key) for key in STEP_KEYS},
        "additionalProperties": {"type": "number"},
    }


def _reading(key: str) -> Schema:
    """A number that may be unknown; from a clock or a sensor, within what it can show."""
    least, most = READING_RANGES.get(key, (None, None))
    bounds = {"minimum": least, "maximum": most}
    finite = {word: bound for word, bound in bounds.items() if bound is not None and abs(bound) != float("inf")}
    return {"type": ["number", "null"], **finite}


def heartbeat_schema() -> Schema:
    seconds: Schema = {"type": ["number", "null"], "minimum": 0}
    head = {"ts": UTC_TIME, "event": _TEXT, "job_id": ID, "step": or_null(COUNT), "epoch": or_null(COUNT)}
    periodic = {
        "doing": _TEXT,
        "since_step_s": seconds,
        "rss_bytes": COUNT,
        "device_bytes": or_null(COUNT),
        "cpu_pct": {"type": "number", "minimum": 0},
        "gpu_util_pct": {"type": ["number", "null"]},
        "gpu_memory_used_bytes": or_null(COUNT),
        "gpu_power_w": {"type": ["number", "null"]},
        "gpu_reason": or_null(_TEXT),
        "data_wait_s": seconds,
        "data_wait_total_s": {"type": "number", "minimum": 0},
        "threads": COUNT,
    }
    told = {
        "heartbeat_enabled": {"rank": COUNT, "pid": COUNT, "interval_s": {"type": "number", "minimum": 1}},
        "periodic": periodic,
        "evaluated": {"metrics": list_of(_TEXT)},
        "ended": {"outcome": or_null(_TEXT)},
        "failed": {"exc_type": _TEXT},
    }
    return {
        "title": "A line of reports/train_heartbeat.rankR.jsonl",
        "type": "object",
        "required": list(head),
        "properties": head | {name: one for fields in told.values() for name, one in fields.items()},
        "allOf": [
            {"if": {"properties": {"event": {"const": event}}}, "then": {"required": list(fields)}}
            for event, fields in told.items()
        ],
        "additionalProperties": False,
    }


def validation_schema() -> Schema:
    return {
        "title": "A line of reports/val_metrics.jsonl",
        "type": "object",
        "required": ["step", "epoch"],
        "properties": {"step": _STEP, "epoch": COUNT},
        "additionalProperties": {"type": "number"},
    }


def epoch_schema() -> Schema:
    number: Schema = {"type": ["number", "null"]}
    kinds: dict[str, Schema] = {
        "epoch": COUNT,
        "optimizer_state_sha": or_null(SHA256),
        "wall_seconds": {"type": "number", "minimum": 0},
        "tokens_seen": or_null(COUNT),
    }
    return closed("checkpoints/epoch-NNN.metadata.json", {key: kinds.get(key, number) for key in EPOCH_KEYS})


def contract_schema() -> Schema:
    path: Schema = {"type": "string", "pattern": "^/"}
    return closed(
        "What a worker hands to the process of a trainer",
        {
            "contract_version": {"const": CONTRACT_VERSION},
            "trainer_plugin": {"type": "string", "minLength": 1},
            "job_spec_path": path,
            "arrow_ipc_path": {"type": "string", "pattern": "^(/|$)"},
            "checkpoints_dir": path,
            "samples_dir": path,
            "events_path": path,
        },
    )


def dataset_schema() -> Schema:
    group = closed("A row group", {"rows": COUNT, "offset": COUNT, "size_bytes": COUNT, "sha256": SHA256})
    file = closed(
        "A file",
        {
            "path": {"type": "string", "minLength": 1},
            "size_bytes": COUNT,
            "sha256": SHA256,
            "footer_sha256": SHA256,
            "rows": COUNT,
            "row_groups": list_of(group),
        },
    )
    return closed(
        "The manifest of a data set, as `trn data index` writes it",
        {
            "schema_version": _VERSION,
            "fingerprint": SHA256,
            "rows": COUNT,
            "columns": list_of(closed("A column", {"name": _TEXT, "type": _TEXT})),
            "files": {**list_of(file), "minItems": 1},
            "sha256": SHA256,
        },
    )


def forked_from_schema() -> Schema:
    told = {"run_id": ID, "plan_fingerprint": SHA256, "checkpoint": _TEXT, "sha256": SHA256, "step": COUNT}
    return closed("reports/forked_from.json", {"schema_version": _VERSION, **told})


def run_metadata_schema() -> Schema:
    return closed(
        "reports/run_metadata.json",
        {
            "schema_version": _VERSION,
            "created_at": UTC_TIME,
            "config": _TEXT,
            "base_config": list_of(_TEXT),
            "run_name": ID,
            "output_dir": _TEXT,
            "git_sha": or_null(_TEXT),
            "git_branch": or_null(_TEXT),
            "git_dirty": or_null(_FLAG),
            "git_status_porcelain": list_of(_TEXT),
            "git_reason": or_null(_TEXT),
            "dataset_seed": COUNT,
            "upstream": _upstream(),
            "launcher": _launcher(),
            "run_manifest_files": {"type": "object", "additionalProperties": _TEXT},
            "experiment": {"type": "object"},
        },
    )


def runtime_env_schema() -> Schema:
    counts = ("cpu_count", "cpu_usable")
    texts = ("system", "release", "version", "machine", "platform", "libc", "python_version", "python_implementation")
    facts = {name: or_null(_TEXT) for name in texts} | {name: or_null(_STEP) for name in counts}
    return closed(
        "reports/runtime_env.json",
        {
            "schema_version": _VERSION,
            "env": {"type": "object", "additionalProperties": _TEXT},
            "platform": closed("The platform", facts),
            "upstream": _upstream(),
            "launcher": _launcher(),
        },
    )


def _upstream() -> Schema:
    told = {"anyOf": [closed("Installed", {"version": _TEXT}), closed("Not to be had", {"error": _TEXT})]}
    return {"type": "object", "additionalProperties": told}


def _launcher() -> Schema:
    places = ("world_size", "rank", "local_rank", "local_world_size", "nodes", "node_rank", "restart_count")
    counts = {name: or_null(COUNT) for name in (*places, "master_port")}
    texts = {name: or_null(_TEXT) for name in ("master_addr", "slurm_job_id")}
    return closed("Who started the process", {"kind": _TEXT, **counts, **texts})
