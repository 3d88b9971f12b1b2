"""The number of threads is part of the contract; where the spec leaves it to the machine, a resume keeps the run's."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.job import write_job
from trn.errors import ResumeRefused
from trn.plan import make_plan, planner
from trn.ranks import World
from trn.runner.contract import compare_with_spec, revise
from trn.spec import load_spec


def test_a_resume_on_other_cores_keeps_the_threads_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write_job(tmp_path / "job")
    left_open = load_spec(spec, sets=["threads=0"])
    monkeypatch.setattr(planner, "cpu_threads", lambda: 7)  # as --cpus 7, or another machine, would have it
    plan, _ = make_plan(left_open, run_id="r", runs_dir=tmp_path, world=World())
    assert plan.threads == 7
    monkeypatch.setattr(planner, "cpu_threads", lambda: 3)
    wanted, _ = compare_with_spec(plan, left_open, World())
    assert wanted.threads == 7
    assert revise(plan, wanted, allowed=())[1] == ()
    wanted, _ = compare_with_spec(plan, load_spec(spec, sets=["threads=3"]), World())
    with pytest.raises(ResumeRefused, match="threads: the run has 7, now 3"):
        revise(plan, wanted, allowed=())
