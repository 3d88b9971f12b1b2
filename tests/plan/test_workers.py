"""`dataset.workers` in the plan: refused where there is nothing for a worker to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.heavy import write_heavy
from trn.errors import PlanRefused, SpecError
from trn.plan import make_plan
from trn.ranks import World
from trn.runner.contract import plan_differences, revise
from trn.spec import load_spec
from trn.spec.plan_model import Plan

PLAIN = """
from torch import nn

from trn import Step, TorchTrainer


class Heavy(TorchTrainer):
    columns = ("x", "y")

    def build(self, ctx):
        return nn.Linear(4, 1)

    def loss(self, model, batch):
        return Step((model(batch["x"]).squeeze(1) - batch["y"]).square().mean())
"""


def plan_in(folder: Path, *sets: str) -> Plan:
    loaded = load_spec(folder / "spec.yaml", sets=sets)
    return make_plan(loaded, run_id="run", runs_dir=folder / "runs", world=World())[0]


def test_workers_stand_in_the_plan_and_may_change_at_a_resume(tmp_path: Path) -> None:
    write_heavy(tmp_path)
    none, two = plan_in(tmp_path), plan_in(tmp_path, "dataset.workers=2")
    assert (none.dataset.workers, two.dataset.workers) == (0, 2)
    assert [one.key for one in plan_differences(none, two)] == ["dataset.workers"]
    revised, _ = revise(none, two, allowed=())
    assert (revised.dataset.workers, revised.revision) == (2, 1)


def test_workers_for_a_trainer_without_a_transform_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    write_heavy(folder)
    (folder / "laden.py").rename(folder / "unused.py")
    (folder / "plain_rows.py").write_text(PLAIN)
    sets = ("trainer=plain_rows:Heavy", "dataset.workers=2")
    with pytest.raises(
        PlanRefused, match=r"dataset\.workers: trainer 'plain_rows:Heavy' has no `transform` of its own"
    ):
        plan_in(folder, *sets)
    assert plan_in(folder, sets[0]).dataset.workers == 0


@pytest.mark.parametrize("workers", ["-1", "257", "1.5", "many"])
def test_a_number_of_workers_that_is_none_is_refused(tmp_path: Path, workers: str) -> None:
    write_heavy(tmp_path)
    with pytest.raises(SpecError, match=r"dataset\.workers"):
        plan_in(tmp_path, f"dataset.workers={workers}")
