"""A trainer's own folder, with several ranks: rank 0 writes it, all are given it."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.together import ranks, run, write_together
from trn.verify import verify_run

pytestmark = pytest.mark.slow

HOOKS = """
    def save_checkpoint(self, *, state, step, output_dir, final, ctx):
        torch.rand(5)  # of rank 0 alone, and put back
        (output_dir / "step.txt").write_text(f"{step} {final} {ctx.rank}")

    def load_checkpoint(self, *, state, checkpoint_dir, payload, ctx):
        (HERE / f"loaded-{ctx.rank}").write_text((checkpoint_dir / "step.txt").read_text())

    def evaluate(self,"""


def test_rank_0_writes_the_folder_and_every_rank_is_given_it(tmp_path: Path) -> None:
    spec = write_together(tmp_path, max_steps=20)
    trainer = tmp_path / "together.py"
    trainer.write_text(trainer.read_text().replace("\n    def evaluate(self,", HOOKS, 1))
    (tmp_path / "1-term").write_text("15")
    with ranks(2, spec, "r") as world:
        assert world.wait() == [75, 75], world.log(0)
    (tmp_path / "1-term").unlink()
    run_dir = run(2, spec, "r")
    assert [(tmp_path / f"loaded-{rank}").read_text() for rank in (0, 1)] == ["15 False 0"] * 2
    assert (run_dir / "checkpoints/step-00000020.files/step.txt").read_text() == "20 True 0"
    assert not [finding for finding in verify_run(run_dir) if finding.problem]
