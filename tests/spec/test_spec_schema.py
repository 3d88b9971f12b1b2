"""The schema: what is required, what is defaulted, which values are taken."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from trn.spec import DatasetSpec, Spec, spec_schema
from trn.spec.rules import _DEFAULT_BATCH

DOCUMENT: dict[str, Any] = {
    "config_version": 1,
    "trainer": "my_package.train:Trainer",
    "dataset": {"parquet_paths": ["/data/a.parquet"]},
    "seed": 0,
    "device": "cuda:0",
    "precision": "bf16",
    "ddp": False,
    "max_steps": 10,
}


def spec_of(**more: Any) -> Spec:
    return Spec.model_validate({**DOCUMENT, **more})


def test_a_minimal_spec_has_the_documented_defaults() -> None:
    spec = spec_of()
    assert spec.run_id is None
    assert spec.runs_dir is None
    assert spec.validation is None
    assert spec.clip_grad_norm is None
    assert (spec.metric_every, spec.checkpoint_every, spec.sample_every) == (10, 200, 0)
    assert (spec.dataset.batch_size, spec.dataset.readahead, spec.dataset.window) == (32, 2, 8)
    assert (spec.dataset.shuffle, spec.dataset.remainder, spec.dataset.end) == (True, "carry", "stop")
    assert (spec.optimizer.name, spec.optimizer.lr, spec.optimizer.betas) == ("adamw", 1e-3, (0.9, 0.999))
    assert (spec.optimizer.accumulate, spec.optimizer.fused) == (1, None)
    assert (spec.schedule.kind, spec.schedule.lr_max) == ("constant", 1e-3)
    assert (spec.checkpoint.keep, spec.checkpoint.best.metric, spec.checkpoint.best.mode) == (3, "val_loss", "min")
    assert (spec.gates.patience, spec.gates.min_epochs, spec.gates.telemetry) == (None, 3, "warn")
    assert (spec.guard.policy, spec.guard.max_skips, spec.guard.lr_decay) == ("stop", 3, 0.5)
    assert (spec.limits.max_runtime_seconds, spec.limits.grace_seconds) == (0, 20)
    assert (spec.threads, spec.deterministic, spec.export.onnx) == (0, True, None)


def test_model_fields_set_holds_what_was_given_and_nothing_else() -> None:
    spec = spec_of(schedule={"kind": "linear", "lr_max": 0.5}, gates=None, ema={})
    assert spec.model_fields_set == {*DOCUMENT, "schedule", "ema"}


def test_the_default_batch_size_of_the_rules_is_that_of_the_schema() -> None:
    assert DatasetSpec.model_fields["batch_size"].default == _DEFAULT_BATCH


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValidationError):
        spec_of().seed = 7


def test_a_spec_survives_the_way_through_json() -> None:
    spec = spec_of(schedule={"kind": "linear", "lr_max": 0.5}, validation={"manifest": "/v.json"})
    assert Spec.model_validate(json.loads(spec.model_dump_json())) == spec


def test_no_spec_exists_that_breaks_a_rule() -> None:
    with pytest.raises(ValidationError, match="expected one budget"):
        spec_of(epochs=3)


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [({"lr": 0.5}, {"kind": "linear"}), ({}, {"kind": "linear", "lr_max": 0.5}), ({"lr": 0.5}, None)],
)
def test_the_highest_learning_rate_stands_in_both_places(optimizer: dict[str, Any], schedule: Any) -> None:
    spec = spec_of(optimizer=optimizer, schedule=schedule)
    assert spec.optimizer.lr == spec.schedule.lr_max == 0.5


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("max_steps", 1e6, 1_000_000),
        ("seed", 2**63 - 1, 2**63 - 1),
        ("clip_grad_norm", 1, 1.0),
        ("clip_grad_norm", 0, 0.0),
        ("deterministic", "warn", "warn"),
        ("deterministic", False, False),
        ("run_id", "v0-2026.11_a", "v0-2026.11_a"),
        ("run_id", "a" * 64, "a" * 64),
        ("trainer", "lm", "lm"),
        ("trainer", "train", "train"),
        ("trainer", "a.b_c:D.E", "a.b_c:D.E"),
        ("device", "mps", "mps"),
        ("precision", "fp16", "fp16"),
        ("trainer_api_version", "v1", "v1"),
        ("owner", "org", "org"),
        ("threads", 4096, 4096),
        ("hyperparams", {"a": [1, 2.5, None, {"b": True}]}, {"a": [1, 2.5, None, {"b": True}]}),
    ],
)
def test_good_values_are_taken(key: str, value: object, read: object) -> None:
    got = getattr(spec_of(**{key: value}), key)
    assert got == read
    assert type(got) is type(read)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("ema", {"enabled": True, "decay": 0, "evaluate": True}),
        ("checkpoint", {"keep": 2, "save_delay_steps": 5, "best": {"metric": "map50_95", "mode": "max"}}),
        ("checkpoint", {"best": None}),
        ("gates", {"regime": "from_scratch", "target_val_loss": 2, "patience": 0, "divergence_factor": 1.5}),
        ("guard", {"policy": "skip", "max_skips": 1, "lr_decay": 1}),
        ("export", {"onnx": True, "opset": 20, "parity_policy": "warn", "atol": 0}),
        ("limits", {"max_runtime_seconds": 1.5, "grace_seconds": 2, "hang_seconds": 60}),
        ("validation", {"parquet_paths": ["s3://bucket/v.parquet"], "every_steps": 3, "every_epochs": 0}),
        ("optimizer", {"name": "sgd", "momentum": 0.9, "nesterov": True, "accumulate": 8, "fused": False}),
        ("optimizer", {"betas": [0, 0.95]}),
        ("schedule", None),
    ],
)
def test_good_sections_are_taken(section: str, values: object) -> None:
    spec_of(**{section: values})


def test_the_json_schema_describes_every_key() -> None:
    schema = spec_schema()
    json.dumps(schema, allow_nan=False)
    assert {"extends", "profiles", "defaulted", "amp", "use_amp", *Spec.model_fields} == set(schema["properties"])
    models = [schema, *(one for one in schema["$defs"].values() if "properties" in one)]
    for model in models:
        for name, field in model["properties"].items():
            assert "description" in field or "$ref" in field, name
            assert not {"ge", "gt", "le", "lt"} & set(field), f"{name} has a bound that JSON Schema does not know"
        assert model["additionalProperties"] is False


def test_the_json_schema_requires_what_must_be_written() -> None:
    whole = spec_schema()["anyOf"][1]
    assert set(whole["required"]) == {"config_version", "trainer", "dataset", "seed", "device", "ddp"}


def test_importing_the_room_needs_no_heavy_library() -> None:
    code = "import sys, trn.spec; print(sorted({'torch', 'numpy', 'pyarrow', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
