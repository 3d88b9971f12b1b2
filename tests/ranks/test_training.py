"""Several ranks train as one: the same batches, the same numbers, and the same again after any interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.compare import assert_identical, events, lines, outcome
from support.together import ask, batches, ranks, run, write_together

pytestmark = pytest.mark.slow


def losses(run_dir: Path) -> list[float]:
    return [line["train_loss"] for line in lines(run_dir, "train_metrics.jsonl")]


def test_two_ranks_see_the_batches_of_one_and_come_to_its_losses(tmp_path: Path) -> None:
    spec = write_together(tmp_path, noisy=False)
    one, two = run(1, spec, "one"), run(2, spec, "two")
    assert batches(spec, "two") == batches(spec, "one")
    assert losses(two) == pytest.approx(losses(one), rel=0, abs=1e-6)
    found = [[line["val_loss"] for line in lines(run_dir, "val_metrics.jsonl")] for run_dir in (one, two)]
    assert found[1] == pytest.approx(found[0], rel=0, abs=1e-6)


def test_a_run_goes_from_one_rank_to_two_and_back_with_the_same_batches(tmp_path: Path) -> None:
    spec = write_together(tmp_path, noisy=False)
    oracle = run(1, spec, "oracle")
    for size, step in ((1, 12), (2, 25)):
        asked = ask(spec, 0, "term", step)
        with ranks(size, spec, "moved", "--auto-resume", "--allow-change", "ranks") as world:
            assert world.wait() == [75] * size, world.log(0)
        asked.unlink()
    moved = run(1, spec, "moved", "--auto-resume", "--allow-change", "ranks")
    assert batches(spec, "moved") == batches(spec, "oracle")
    assert losses(moved) == pytest.approx(losses(oracle), rel=0, abs=1e-6)


def test_another_number_of_ranks_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    spec = write_together(tmp_path, max_steps=20)
    asked = ask(spec, 0, "term", 5)
    with ranks(1, spec, "r") as world:
        assert world.wait() == [75]
    asked.unlink()
    with ranks(2, spec, "r") as world:
        assert world.wait() == [78, 78]
        assert "world_size: the run has 1, now 2" in world.log(0)
        assert "--allow-change ranks" in world.log(0)
        assert world.log(1) == ""


def test_a_run_stopped_on_one_rank_goes_on_bit_for_bit(tmp_path: Path) -> None:
    spec = write_together(tmp_path)
    oracle = run(2, spec, "oracle")
    for rank, step in ((1, 7), (0, 18), (1, 24), (0, 31)):
        asked = ask(spec, rank, "term", step)
        with ranks(2, spec, "r") as world:
            assert world.wait() == [75, 75], world.log(0)
        asked.unlink()
    assert_identical(run(2, spec, "r"), oracle)


def test_every_rank_has_random_streams_of_its_own_and_keeps_them(tmp_path: Path) -> None:
    spec = write_together(tmp_path, max_steps=20)
    run_dir = run(2, spec, "r")
    streams = torch.load(run_dir / "checkpoints/last.pt", weights_only=True)["rng"]
    assert len(streams) == 2
    assert streams[0]["torch"] != streams[1]["torch"]


def test_three_ranks_share_uneven_validation_batches(tmp_path: Path) -> None:
    spec = write_together(tmp_path, noisy=False, max_steps=13)
    spec.write_text(spec.read_text().replace("batch_size: 8", "batch_size: 9"))
    one, three = run(1, spec, "one"), run(3, spec, "three")
    found = [[line["val_loss"] for line in lines(run_dir, "val_metrics.jsonl")] for run_dir in (one, three)]
    assert found[1] == pytest.approx(found[0], rel=0, abs=1e-9)


def test_accumulation_is_over_all_ranks(tmp_path: Path) -> None:
    spec = write_together(tmp_path, noisy=False, max_steps=15)
    spec.write_text(spec.read_text().replace("lr: 0.01}", "lr: 0.01, accumulate: 2}"))
    one, two = run(1, spec, "one"), run(2, spec, "two")
    assert losses(two) == pytest.approx(losses(one), rel=0, abs=1e-6)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_batch_that_is_not_finite_on_one_rank_is_refused_by_all(tmp_path: Path, policy: str) -> None:
    spec = write_together(tmp_path, nan_row=61, max_steps=24, more=f"guard: {{policy: {policy}}}")
    with ranks(2, spec, "r") as world:
        codes = world.wait()
    run_dir = spec.parent / "runs/r"
    if policy == "stop":
        assert codes == [80, 80]
        refused = events(run_dir, "gate")[0]
        assert outcome(run_dir)["status"] == "numerical_instability"
    else:
        assert codes == [0, 0]
        refused = events(run_dir, "step_skipped")[0]
    assert len(refused["row_ids"]) == 8
    assert 61 in refused["row_ids"]


SIX_HOOKS = '''
import torch


class Mine:
    """A line through the data, fitted by hand, whose ranks add up their parts."""

    columns = ("x", "y")
    honours = frozenset({"ddp"})

    def setup(self, ctx): ...

    def configure(self, ctx):
        return {"w": torch.zeros(4, dtype=torch.float64)}

    def prepare_batch(self, raw_batch, state, ctx):
        return ctx.tensors(raw_batch)

    def train_step(self, batch, state, ctx):
        from trn import StepResult

        error = batch["x"] @ state["w"] - batch["y"]
        parts = [batch["x"].T @ error, error.square().sum(), torch.tensor(float(len(error)), dtype=torch.float64)]
        ctx.ranks.sum_(parts)
        gradient, loss, rows = parts
        state["w"] -= 0.1 * gradient / rows
        return StepResult({"train_loss": loss / rows, "grad_norm": gradient.norm()})

    def evaluate(self, batches, state, ctx):
        total, rows = 0.0, 0
        for raw_batch in batches:
            batch = ctx.tensors(raw_batch)
            total += float((batch["x"] @ state["w"] - batch["y"]).square().sum())
            rows += len(batch["y"])
        found = ctx.ranks.gather([total, rows])
        return {"val_loss": sum(part[0] for part in found) / sum(part[1] for part in found)}

    def state_dict(self, state):
        return dict(state)

    def load_state_dict(self, state, payload, ctx):
        state["w"].copy_(payload["w"])
'''


def test_six_hooks_that_sum_with_their_ranks_train_as_one(tmp_path: Path) -> None:
    spec = write_together(tmp_path)
    (tmp_path / "mine.py").write_text(SIX_HOOKS)
    text = spec.read_text().replace("together:Together", "mine:Mine")
    gone = ("hyperparams", "optimizer", "clip_grad_norm", "sample_every")
    spec.write_text("\n".join(line for line in text.splitlines() if not line.startswith(gone)))
    one, two = run(1, spec, "one"), run(2, spec, "two")
    assert losses(two) == pytest.approx(losses(one), rel=0, abs=1e-9)
    found = [[line["val_loss"] for line in lines(run_dir, "val_metrics.jsonl")] for run_dir in (one, two)]
    assert found[1] == pytest.approx(found[0], rel=0, abs=1e-9)
