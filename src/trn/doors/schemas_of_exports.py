"""JSON Schemas of what an export leaves: its sidecar, and the report on how an ONNX file was held against its model."""

from __future__ import annotations

from typing import Any

from trn.doors.schemas_by_hand import (
    COUNT,
    ID,
    SHA256,
    UTC_TIME,
    closed,
    list_of,
    or_null,
    run_metadata_schema,
    runtime_env_schema,
)

__all__ = ["export_schema", "parity_schema"]

Schema = dict[str, Any]

_VERSION: Schema = {"const": 1}
_TEXT: Schema = {"type": "string"}
_NAME: Schema = {"type": "string", "minLength": 1}
_FLAG: Schema = {"type": "boolean"}
_SIZE: Schema = {"type": "number", "minimum": 0}
_OPSET: Schema = {"type": "integer", "minimum": 18}
_WORDS: Schema = {"type": "object", "additionalProperties": _TEXT}
_POLICY: Schema = {"enum": ["fail", "warn"]}
_STATISTICS = ("max", "mean", "p50", "p90", "p95", "p99")
_PARTS = {"onnx": ("onnx", "parity"), "safetensors": ("safetensors",), "hf": ("hf",)}
"""What the sidecar of a format has, and no other's."""


def export_schema() -> Schema:
    file = closed("A file of it", {"name": _NAME, "sha256": SHA256, "size_bytes": COUNT})
    parts = {name for names in _PARTS.values() for name in names}
    told = closed(
        "exports/NAME.meta.json",
        {
            "schema_version": _VERSION,
            "format": {"enum": list(_PARTS)},
            "created_at": UTC_TIME,
            **_whose(),
            "files": {**list_of(file), "minItems": 1},
            "versions": _WORDS,
            "onnx": _onnx(),
            "parity": _verdict(),
            "safetensors": closed("The tensors", {"tensors": COUNT, "tied": _WORDS}),
            "hf": closed("The model", {"class": _NAME, "tensors": COUNT}),
            "environment": closed(
                "The process that exported",
                {"runtime_env": runtime_env_schema(), "run_metadata": run_metadata_schema()},
            ),
            "meta_sha256": SHA256,
        },
    )
    told["required"] = [name for name in told["required"] if name not in parts]
    told["allOf"] = [
        {
            "if": {"properties": {"format": {"const": name}}},
            "then": {"required": list(own), "properties": dict.fromkeys(sorted(parts - set(own)), False)},
        }
        for name, own in _PARTS.items()
    ]
    return told


def _whose() -> Schema:
    checkpoint = {
        "file": {"type": "string", "pattern": r"^step-[0-9]{8,}\.pt$"},
        "sha256": SHA256,
        "step": COUNT,
        "epoch": COUNT,
    }
    return {
        "run_id": ID,
        "plan_fingerprint": SHA256,
        "code_sha256": SHA256,
        "checkpoint": closed("What it was made of", checkpoint),
        "weights": {"enum": ["live", "average"]},
    }


def _onnx() -> Schema:
    shape = or_null(list_of({"type": ["integer", "string", "null"]}))
    limits = closed("Sizes that an axis may have", {"min": COUNT, "max": or_null(COUNT)})
    return closed(
        "What the file takes and gives",
        {
            "opset_asked": _OPSET,
            "opset": _OPSET,
            "inputs": list_of(closed("An input", {"name": _NAME, "dtype": _NAME, "shape": shape})),
            "outputs": list_of(closed("An output", {"name": _NAME, "dtype": or_null(_NAME)})),
            "axes": {"type": "object", "additionalProperties": limits},
            "sets": {"type": "object", "additionalProperties": COUNT},
        },
    )


def _verdict() -> Schema:
    return closed(
        "The comparison",
        {
            "status": {"enum": ["passed", "failed"]},
            "policy": _POLICY,
            "reason": or_null(_TEXT),
            "max_abs": {"type": "object", "additionalProperties": _SIZE},
        },
    )


def parity_schema() -> Schema:
    """Of a report without a file, skipped or failed, the head alone."""
    head: Schema = {
        "schema_version": _VERSION,
        "timestamp_utc": UTC_TIME,
        "onnx": or_null({"enum": ["exports/model.onnx", "exports/rejected/model.onnx"]}),
        "onnx_sha256": or_null(SHA256),
        "policy": _POLICY,
        "status": {"enum": ["passed", "failed", "skipped"]},
        "passed": or_null(_FLAG),
        "available": _FLAG,
        "reason": or_null(_TEXT),
    }
    body = _compared()
    told = closed("reports/onnx_parity.json", head | _whose() | body)
    told["required"] = [*head, "run_id", "plan_fingerprint"]
    told["allOf"] = [
        {"if": {"properties": {"onnx": {"type": "string"}}}, "then": {"required": [*_whose(), *body]}},
        *(
            {"if": {"properties": {"status": {"const": status}}}, "then": {"properties": {"passed": {"const": passed}}}}
            for status, passed in (("passed", True), ("failed", False), ("skipped", None))
        ),
    ]
    return told


def _compared() -> Schema:
    tensor = closed("A tensor", {"shape": list_of(COUNT), "dtype": _NAME, "sha256": SHA256})
    names = list_of(_TEXT)
    return {
        "thresholds": {"type": "object", "additionalProperties": _threshold()},
        "inputs": list_of(
            closed("A set of inputs", {"what": _NAME, "tensors": {"type": "object", "additionalProperties": tensor}})
        ),
        "inputs_left_out": _WORDS,
        "outputs": {"type": "object", "additionalProperties": _output()},
        "overall": {"anyOf": [closed("All outputs", _statistics()), closed("None", {})]},
        "initialisers": closed(
            "The weights in the file",
            {
                "compared": COUNT,
                "equal": COUNT,
                "different": names,
                "made_by_exporter": names,
                "tied": _WORDS,
                "left_out": names,
                "not_in_checkpoint": names,
            },
        ),
        "onnxrt": closed("The runtime", {"version": _NAME, "providers": names, "input_names": names, "threads": COUNT}),
    }


def _threshold() -> Schema:
    return closed(
        "How far an output may be off",
        {
            "atol": _SIZE,
            "scale": _SIZE,
            "own_gap": or_null(_SIZE),
            "rule": {"enum": ["own_gap", "type", "given", "equal"]},
            "note": or_null(_TEXT),
            "far_from": or_null(_SIZE),
            "far_atol": or_null(_SIZE),
        },
    )


def _output() -> Schema:
    trial = {"input": _NAME, "shape": list_of(COUNT), "ok": _FLAG, "max": or_null(_SIZE), "reason": or_null(_TEXT)}
    return closed(
        "An output",
        {
            "ok": _FLAG,
            "reason": or_null(_TEXT),
            "dtype": _NAME,
            "compared_as": {"enum": ["set", "elements"]},
            **_statistics(),
            "by_input": list_of(closed("On a set of inputs", trial)),
            "undecided": COUNT,
        },
    )


def _statistics() -> Schema:
    relative = closed("Relative to the larger of both", dict.fromkeys(_STATISTICS, _SIZE))
    return {**dict.fromkeys(_STATISTICS, or_null(_SIZE)), "relative": or_null(relative)}
