"""docs/events.md and `trn schema event`: every kind is emitted and explained, and what consumers rely on stays."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from trn.doors.schemas import schema_of
from trn.doors.schemas_of_events import EVENT_FIELDS
from trn.records import ENDINGS, EVENT_HEAD, EVENT_KINDS, REPORTED_KINDS

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("event_schema.json")
SECTIONS = re.split(r"^### ", (ROOT / "docs/events.md").read_text(), flags=re.MULTILINE)[1:]
BY_KIND = {section.split("\n", 1)[0]: section for section in SECTIONS}


def test_the_schema_of_events_is_the_one_that_consumers_know() -> None:
    """When it differs: a kind or a field that is new may be added to the golden file, with a line in the changelog.

    One that goes, or is required no more, or means something else breaks consumers: it needs a new `schema_version`
    for events, told in docs/events.md, and a release that says so.
    """
    assert schema_of("event") == json.loads(GOLDEN.read_text())


def test_each_kind_is_explained_once_with_its_fields() -> None:
    assert len(SECTIONS) == len(BY_KIND)
    assert set(BY_KIND) == set(EVENT_KINDS) == set(EVENT_FIELDS)
    for kind, section in BY_KIND.items():
        (fields,) = re.findall(r"^Fields: (.*)\.$", section, re.MULTILINE)
        assert tuple(re.findall(r"`(\w+)`", fields)) == EVENT_FIELDS[kind], kind


@pytest.mark.parametrize("kind", EVENT_KINDS)
def test_each_example_is_a_line_of_its_kind(kind: str) -> None:
    (example,) = re.findall(r"^    (\{.*\})$", BY_KIND[kind], re.MULTILINE)
    fields = json.loads(example)
    head = {"event": kind, "run_id": "exp01", "job_id": "job-1", "seq": 7, "ts": "2026-11-22T12:00:00.000000Z"}
    assert head.keys() == EVENT_HEAD
    Draft202012Validator(schema_of("event")).validate({**head, **fields})
    assert set(fields) >= set(EVENT_FIELDS[kind])


def test_each_kind_is_emitted_somewhere() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "src/trn").rglob("*.py"))
    emitted = set(re.findall(r'\bemit\(\s*"(\w+)"', source)) | set(re.findall(r'\bnote\("(job_\w+)"', source))
    assert len(re.findall(r"\bemit\(\s*ending_of\(", source)) == 2  # of the runner, and of a door in its place
    reported = set(re.findall(r'report\(\s*"(\w+)"', source))
    assert reported >= REPORTED_KINDS
    assert emitted | ENDINGS | REPORTED_KINDS == set(EVENT_KINDS)
