"""The JSON Schema of a spec document: what `trn schema` prints and an editor can check against."""

from __future__ import annotations

from typing import Any

from trn.spec.defaulted import DEFAULTED_KEYS
from trn.spec.schema import Spec

__all__ = ["DOCUMENT_KEYS", "spec_schema"]

DOCUMENT_KEYS: dict[str, Any] = {
    "extends": {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}],
        "description": "Files that this one is laid over, relative to its own folder; a later one wins.",
    },
    "profiles": {
        "anyOf": [{"type": "object", "additionalProperties": {"type": "object"}}, {"type": "null"}],
        "description": "Named overlays of this document; `--profile NAME` chooses one.",
    },
    "defaulted": {
        "type": "object",
        "propertyNames": {"enum": list(DEFAULTED_KEYS)},
        "description": "What was filled in where a job file is silent, by dotted path; every other layer wins.",
    },
    "amp": {"enum": ["none", "fp16", "bf16"], "description": "Another spelling of `precision`."},
    "use_amp": {"type": "boolean", "description": "The old spelling of `precision`: true is fp16, false is none."},
}
"""Keys that a document may have and a Spec has not."""


def spec_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a document. One that `extends` others may lack what they have."""
    schema = Spec.model_json_schema()
    required = [key for key in schema.pop("required") if key != "precision"]
    schema["properties"] = {**schema["properties"], **DOCUMENT_KEYS}
    whole = {
        "required": required,
        "allOf": [_one_of("precision", "amp", "use_amp"), _one_of("max_steps", "epochs")],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "trn spec",
        "anyOf": [{"required": ["extends"]}, whole],
    }


def _one_of(*keys: str) -> dict[str, Any]:
    """At least one of the keys, and not null; that they agree is for `load_spec` to say."""
    return {"anyOf": [{"required": [key], "properties": {key: {"not": {"type": "null"}}}} for key in keys]}
