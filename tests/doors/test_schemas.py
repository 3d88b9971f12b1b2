"""`trn schema`: every name is told where names are told, every schema is one; real records: test_run_folder.py."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from trn.checkpoint.meta import CheckpointMeta
from trn.doors.cli import main
from trn.doors.programs import schema_command
from trn.doors.schemas import schema_names, schema_of
from trn.doors.schemas_of_events import EVENT_FIELDS
from trn.feed import manifest
from trn.gates import EPOCH_KEYS
from trn.records import EVENT_KINDS, JobRow, Outcome
from trn.spec.plan_model import Plan

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", schema_names())
def test_each_name_prints_a_json_schema_and_is_documented(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", name]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)
    assert schema["type"] == "object"
    assert schema["title"]
    assert f"`{name}`" in (DOCS / "cli.md").read_text()
    assert re.search(rf"\b{name}\b", schema_command.help or "")


def test_without_a_name_it_is_the_spec_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema_of("spec")


def test_an_unknown_name_is_answered_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "nonsense"]) == 2
    assert f"there is no schema 'nonsense'; there are {', '.join(schema_names())}." in capsys.readouterr().err


def test_the_schemas_have_the_keys_of_the_classes_behind_them() -> None:
    assert set(schema_of("plan")["required"]) == set(Plan.model_fields)
    outcome = schema_of("outcome")
    assert set(outcome["properties"]) == set(Outcome.__dataclass_fields__)
    assert set(outcome["properties"]) - set(outcome["required"]) == {"exact", "inexact_because"}
    checkpoint = schema_of("checkpoint")
    assert set(checkpoint["properties"]) == {*CheckpointMeta.__dataclass_fields__, "meta_sha256"}
    assert set(checkpoint["properties"]) - set(checkpoint["required"]) == {"files", "hook"}
    assert set(schema_of("job")["required"]) == set(JobRow.__dataclass_fields__)
    assert schema_of("epoch")["required"] == list(EPOCH_KEYS)


def test_the_schema_of_a_manifest_has_the_keys_that_its_reader_wants() -> None:
    top = schema_of("dataset")["properties"]
    file = top["files"]["items"]["properties"]
    assert set(top) == set(manifest._TOP)
    assert set(file) == set(manifest._FILE)
    assert set(file["row_groups"]["items"]["properties"]) == set(manifest._GROUP)


def test_kinds_of_events_that_have_fields_are_kinds_of_events() -> None:
    assert set(EVENT_FIELDS) <= set(EVENT_KINDS)
