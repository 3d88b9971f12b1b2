"""What the plan makes of `gates` and `guard`, and which rules it refuses because nothing could ever carry them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.job import write_job
from trn.errors import PlanRefused
from trn.plan import make_plan
from trn.ranks import World
from trn.spec import load_spec
from trn.spec.plan_model import Plan

SIX_HOOKS = """
class Plain:
    {more}

    def setup(self, ctx): pass
    def configure(self, ctx): return {{}}
    def prepare_batch(self, raw_batch, state, ctx): return raw_batch
    def train_step(self, batch, state, ctx): return None
    def state_dict(self, state): return {{}}
    def load_state_dict(self, state, payload, ctx): pass
"""


def plan_with(folder: Path, *sets: str) -> Plan:
    loaded = load_spec(write_job(folder), sets=sets)
    return make_plan(loaded, run_id="run", runs_dir=folder / "runs", world=World())[0]


def test_what_the_spec_leaves_open_is_settled(tmp_path: Path) -> None:
    plan = plan_with(tmp_path)
    assert plan.gates.model_dump() == {
        "cross_entropy": False,
        "vocab_size": None,
        "regime": "from_scratch",
        "target_val_loss": None,
        "require_target": False,
        "patience": None,
        "min_epochs": 3,
        "min_delta": 0.0,
        "divergence_factor": None,
        "telemetry": "warn",
    }
    assert plan.guard.model_dump() == {"policy": "stop", "max_skips": 3, "lr_decay": 0.5}


def test_every_rule_is_part_of_what_a_run_computes(tmp_path: Path) -> None:
    sets = [
        "gates.patience=2",
        "gates.regime=finetune",
        "gates.telemetry=stop",
        "guard.policy=skip",
        "guard.max_skips=9",
    ]
    prints = {plan_with(tmp_path, *([] if one is None else [one])).fingerprint for one in (None, *sets)}
    assert len(prints) == len(sets) + 1


@pytest.mark.parametrize("rule", ["target_val_loss=2.0", "patience=1", "divergence_factor=2.0"])
def test_a_rule_about_a_loss_that_nobody_measures_is_refused(tmp_path: Path, rule: str) -> None:
    with pytest.raises(
        PlanRefused, match=f"gates.{rule.split('=')[0]}: it is about val_loss, and there is no validation"
    ):
        plan_with(tmp_path, "validation=null", f"gates.{rule}")


def test_patience_without_validations_at_the_end_of_epochs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanRefused, match=r"gates.patience: it counts validations at the end of an epoch"):
        plan_with(tmp_path, "validation.every_epochs=0", "gates.patience=1")


def test_a_trainer_that_makes_its_own_updates_cannot_skip_unless_it_says_so(tmp_path: Path) -> None:
    spec = write_job(tmp_path)
    text = spec.read_text()
    for key in ("optimizer", "schedule", "clip_grad_norm"):
        text = "\n".join(line for line in text.splitlines() if not line.startswith(f"{key}:"))
    spec.write_text(text)
    for more, is_refused in (("pass", True), ("honours = frozenset({'guard'})", False)):
        module = f"plain_{is_refused}"
        (tmp_path / f"{module}.py").write_text(SIX_HOOKS.format(more=more))
        loaded = load_spec(spec, sets=(f"trainer={module}:Plain", "validation=null", "guard.policy=skip"))
        if is_refused:
            with pytest.raises(PlanRefused, match=r"guard.policy: trainer .* makes its own updates"):
                make_plan(loaded, run_id="run", runs_dir=tmp_path / "runs", world=World())
        else:
            plan, _ = make_plan(loaded, run_id="run", runs_dir=tmp_path / "runs", world=World())
            assert plan.guard.policy == "skip"


def test_a_vocab_size_that_is_no_number_is_refused(tmp_path: Path) -> None:
    spec = write_job(tmp_path)
    trainer = tmp_path / "odd_vocab.py"
    trainer.write_text((tmp_path / "noisy.py").read_text() + "\n    vocab_size = 'many'\n")
    loaded = load_spec(spec, sets=("trainer=odd_vocab:Noisy",))
    with pytest.raises(PlanRefused, match=r"vocab_size: expected a whole number from 1 on, or None, found 'many'"):
        make_plan(loaded, run_id="run", runs_dir=tmp_path / "runs", world=World())
