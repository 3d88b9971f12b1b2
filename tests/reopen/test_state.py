"""A checkpoint given to a model that it does not fit: one line that says what does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import Tensor, nn

from support.plans import context_of, plan_of
from trn.checkpoint import rng
from trn.checkpoint.meta import CheckpointMeta
from trn.errors import ResumeRefused
from trn.reopen.state import apply_payload
from trn.trainer import Context, Step, TorchTrainer


class Fit(TorchTrainer):
    width = 4

    def build(self, ctx: Context) -> nn.Module:
        return nn.Linear(3, self.width)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
        return Step(model(batch["x"]).square().mean())


def test_weights_of_another_shape_are_named_in_one_line(tmp_path: Path) -> None:
    plan, trainer = plan_of(tmp_path / "run"), Fit()
    ctx = context_of(plan)
    payload = {"trainer": trainer.state_dict(trainer.configure(ctx)), "progress": {}, "rng": [rng.capture()]}
    known = {"run_id": "run", "job_id": "j", "plan_fingerprint": plan.fingerprint, "created_at": "now"}
    meta = CheckpointMeta("step-00000002.pt", "0" * 64, 1, 2, 0, **known, metrics={}, journal={}, progress={}, rng=[])
    apply_payload(plan, meta, payload, trainer, trainer.configure(ctx), ctx)
    trainer.width = 5
    with pytest.raises(ResumeRefused, match="size mismatch for weight") as caught:
        apply_payload(plan, meta, payload, trainer, trainer.configure(ctx), ctx)
    assert str(caught.value).startswith(
        "resume error [resume_refused] at checkpoints/step-00000002.pt: it cannot be loaded: RuntimeError: "
    )
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 550
