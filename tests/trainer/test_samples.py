"""ctx.sample_requests: the prompts of the spec, each with its own seed or the spec's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from support.with_hooks import write_hooked
from trn.doors.schemas import schema_of
from trn.errors import SpecError
from trn.plan import make_plan
from trn.ranks import World
from trn.records import canonical_json
from trn.runner.contract import plan_differences
from trn.spec import load_spec
from trn.spec.plan_model import Plan
from trn.trainer.samples import SampleRequest, sample_requests


def yaml(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text())


def planned(spec: Path, *sets: str) -> Plan:
    return make_plan(load_spec(spec, sets=sets), run_id="r", runs_dir=spec.parent, world=World())[0]


def test_a_text_is_a_prompt_and_a_seed_of_its_own_wins(tmp_path: Path) -> None:
    plan = planned(write_hooked(tmp_path))
    assert sample_requests(plan) == (
        SampleRequest(0, "a cat", None, None, None, None, 3),
        SampleRequest(1, "a dog", None, None, None, "edit", 7),
    )
    assert Plan.read(plan.to_bytes(), "plan") == plan


def test_a_plan_that_was_made_before_there_were_prompts_and_inputs_is_read(tmp_path: Path) -> None:
    plan = planned(write_hooked(tmp_path))
    older = {
        key: value for key, value in plan.to_json().items() if key not in ("sample_prompts", "sample_seed", "inputs")
    }
    read = Plan.read(canonical_json(older), "plan")
    assert (read.fingerprint, read.sample_prompts, read.sample_seed, read.inputs) == (plan.fingerprint, [], 0, [])


def test_other_prompts_are_the_same_run(tmp_path: Path) -> None:
    spec = write_hooked(tmp_path)
    plan, other = planned(spec), planned(spec, "sample_prompts=[]", "sample_seed=9")
    assert sample_requests(other) == ()
    assert other.fingerprint == plan.fingerprint
    assert plan_differences(plan, other) == []


def test_the_schema_of_a_spec_knows_both_forms(tmp_path: Path) -> None:
    schema = Draft202012Validator(schema_of("spec"))
    spec: Any = yaml(write_hooked(tmp_path))
    schema.validate(spec)
    assert not schema.is_valid(spec | {"sample_prompts": [3]})
    assert not schema.is_valid(spec | {"sample_prompts": [{"prompt": "a", "sed": 1}]})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("[{mode: edit}]", r"sample_prompts\[0\]\.prompt: required"),
        ("[{prompt: a, sed: 1}]", r"sample_prompts\[0\]\.sed: unknown.* did you mean seed"),
        ("[{prompt: a, seed: -1}]", r"sample_prompts\[0\]\.seed"),
        ("[3]", r"sample_prompts\[0\]"),
        ("a cat", "sample_prompts"),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_place(tmp_path: Path, given: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        planned(write_hooked(tmp_path), f"sample_prompts={given}")
