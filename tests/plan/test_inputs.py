"""Files that a trainer reads by itself: settled by content, given by path, missed where they are others."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from support.heavy import write_heavy
from trn.errors import PlanRefused, ResumeRefused, SpecError
from trn.plan import make_plan, require_inputs
from trn.ranks import World
from trn.runner.contract import plan_differences, revise
from trn.spec import load_spec
from trn.spec.plan_model import Plan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_heavy(tmp_path)
    (tmp_path / "base.bin").write_bytes(b"base model")
    return tmp_path


def plan_in(folder: Path, *inputs: str) -> Plan:
    spec = folder / "with_inputs.yaml"
    lines = "".join(f"  {one}\n" for one in inputs)
    spec.write_text((folder / "spec.yaml").read_text() + ("inputs:\n" + lines if inputs else ""))
    return make_plan(load_spec(spec), run_id="run", runs_dir=folder / "runs", world=World())[0]


def test_a_file_stands_in_the_plan_with_its_digest_and_belongs_to_the_spec_s_folder(folder: Path) -> None:
    (one,) = plan_in(folder, "base_model: base.bin").inputs
    assert (one.name, one.path) == ("base_model", str(folder / "base.bin"))
    assert (one.sha256, one.size_bytes) == (hashlib.sha256(b"base model").hexdigest(), 10)


def test_its_content_decides_and_not_its_place(folder: Path) -> None:
    was = plan_in(folder, "base_model: base.bin")
    (folder / "elsewhere").mkdir()
    shutil.move(folder / "base.bin", folder / "elsewhere/base.bin")
    moved = plan_in(folder, "base_model: elsewhere/base.bin")
    assert plan_differences(was, moved) == []
    assert was.fingerprint == moved.fingerprint
    assert revise(was, moved, allowed=())[0].inputs[0].path == str(folder / "elsewhere/base.bin")
    (folder / "elsewhere/base.bin").write_bytes(b"another one")
    other = plan_in(folder, "base_model: elsewhere/base.bin")
    with pytest.raises(ResumeRefused, match=r"inputs"):
        revise(was, other, allowed=())


def test_a_resume_misses_the_file_that_it_began_with(folder: Path) -> None:
    plan = plan_in(folder, "base_model: base.bin")
    require_inputs(plan)
    (folder / "base.bin").write_bytes(b"same sizes")
    with pytest.raises(ResumeRefused, match=r"inputs\.base_model: .* is not the file that the run began with"):
        require_inputs(plan)
    (folder / "base.bin").unlink()
    with pytest.raises(ResumeRefused, match="cannot be read: No such file"):
        require_inputs(plan)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("a: none.bin", "is not there"),
        ("a: .", "is a folder"),
        ("a: /dev/null", "is no file"),
        (f"a: {'x' * 300}", "cannot be read: File name too long"),
    ],
)
def test_what_is_no_file_is_refused(folder: Path, line: str, told: str) -> None:
    with pytest.raises(PlanRefused, match=told):
        plan_in(folder, line)


def test_a_name_that_is_none_is_refused(folder: Path) -> None:
    with pytest.raises(SpecError, match="inputs"):
        plan_in(folder, "../up: base.bin")
