"""What a loop does that it should not: errors swallowed, batches taken at the wrong time, a run used after its end."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trn
from support.compare import events, lines, outcome
from support.own_loop import logged, open_and, train
from trn.errors import NumericalInstability, ResumeRefused, TrainerError, TrnError, UsageError
from trn.records import Json
from trn.verify import verify_run

Spec = dict[str, Any]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def swallow(run: trn.Run, error: type[TrnError], loop: Callable[[trn.Run], object] = logged) -> None:
    """The loop, twice, although the first was left by an error: no step is made in the second."""
    with pytest.raises(error):
        loop(run)
    step = run.step
    with pytest.raises(error):
        logged(run)
    assert run.step == step


def test_broken_weights_that_are_swallowed_come_again(spec: Spec, tmp_path: Path) -> None:
    def break_them(run: trn.Run) -> None:
        model = nn.Linear(1, 1)
        run.track(model=model)

        def loop(run: trn.Run) -> None:
            for _ in run.feed:
                nn.init.constant_(model.weight, math.nan if run.step == 3 else 1.0)
                run.log(train_loss=1.0)

        swallow(run, NumericalInstability, loop)

    with pytest.raises(NumericalInstability, match="the weights"):
        open_and(spec, tmp_path, break_them)
    assert (outcome(tmp_path / "run")["status"], outcome(tmp_path / "run")["step"]) == ("numerical_instability", 3)


def test_an_evaluation_that_failed_is_not_passed_over(spec: Spec, table: Path, tmp_path: Path) -> None:
    def divide(run: trn.Run) -> None:
        run.track(model=nn.Linear(1, 1))
        run.evaluation(lambda batches: {"val_loss": 1 / 0})
        swallow(run, TrainerError)

    validated = {**spec, "validation": {"parquet_paths": [table], "every_steps": 4}}
    for _ in "fresh", "resumed":
        with pytest.raises(TrainerError, match="evaluate at step 4: ZeroDivisionError"):
            open_and(validated, tmp_path, divide)
        assert outcome(tmp_path / "run")["status"] == "trainer_raised"


def test_an_evaluation_takes_no_batches_of_the_training(spec: Spec, table: Path, tmp_path: Path) -> None:
    def take(run: trn.Run) -> None:
        run.evaluation(lambda batches: next(run.feed))
        logged(run)

    with pytest.raises(UsageError, match="Take no batches of the training in an evaluation"):
        open_and({**spec, "validation": {"parquet_paths": [table], "every_steps": 3}}, tmp_path, take)
    assert outcome(tmp_path / "run")["step"] == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_who_interrupts_an_evaluation_cancels(spec: Spec, table: Path, tmp_path: Path, error: BaseException) -> None:
    def interrupt(run: trn.Run) -> None:
        def evaluate(batches: object) -> dict[str, float]:
            raise error

        run.evaluation(evaluate)
        logged(run)

    with pytest.raises(TrainerError, match=type(error).__name__):
        open_and({**spec, "validation": {"parquet_paths": [table]}}, tmp_path, interrupt)
    assert outcome(tmp_path / "run")["status"] == "cancelled"


def test_what_the_block_does_after_the_end_of_the_loop_changes_no_outcome(spec: Spec, tmp_path: Path) -> None:
    def exit_early(run: trn.Run) -> None:
        train(run)
        sys.exit(0)

    with pytest.raises(SystemExit):
        open_and(spec, tmp_path, exit_early)
    told = outcome(tmp_path / "run")
    assert (told["status"], told["checkpoint"]["step"]) == ("completed", 8)
    assert [one.problem for one in verify_run(tmp_path / "run") if one.problem] == []


@pytest.mark.parametrize("steps", [0, 3, 4])
def test_a_run_that_is_over_is_not_written_to(spec: Spec, tmp_path: Path, steps: int) -> None:
    """Left before the first step; in the middle of one; between two."""
    kept: list[trn.Run] = []

    def leave(run: trn.Run) -> None:
        kept.append(run)
        for _ in range(steps):
            next(run.feed)
            if run.step != 3 or steps == 4:
                run.log(train_loss=1.0)

    open_and(spec, tmp_path, leave)
    (run,), before = kept, contents(tmp_path)
    assert list(run.feed) == []
    for use in (lambda: run.log(train_loss=1.0), lambda: run.gate(train_loss=1.0), lambda: run.track(a=nn.ReLU())):
        with pytest.raises(UsageError):
            use()
    assert contents(tmp_path) == before


def test_a_run_inside_of_another_is_refused(spec: Spec, tmp_path: Path) -> None:
    def open_inside(run: trn.Run) -> None:
        next(run.feed)
        run.log(train_loss=1.0)
        with pytest.raises(UsageError, match="two would draw from the same random streams"):
            open_and(spec, tmp_path / "inner", logged)
        logged(run)

    assert open_and(spec, tmp_path, open_inside).exit_code == 0
    assert not (tmp_path / "inner").exists()


def test_a_run_of_a_trainer_is_refused_and_not_changed(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = open_and(spec, tmp_path, lambda run: train(run, steps=3)).plan
    of_a_trainer = plan.model_copy(update={"trainer": plan.trainer.model_copy(update={"name": "lm"})})
    before = contents(tmp_path / "run/reports")
    with monkeypatch.context() as patch:
        patch.setattr("trn.session.opening.read_run", lambda run_dir: of_a_trainer)
        with pytest.raises(ResumeRefused, match=r"begun with the trainer 'lm'\. Go on with it by `trn resume`"):
            open_and(spec, tmp_path, train)
    assert contents(tmp_path / "run/reports") == before


def test_schedulers_scaler_and_averages_go_on_bit_for_bit(spec: Spec, tmp_path: Path) -> None:
    schedulers = torch.optim.lr_scheduler

    def go(run: trn.Run, stop: int | None = None) -> list[torch.Tensor]:
        model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))
        optimizer = torch.optim.NAdam(model.parameters(), lr=0.01)  # its state has other types than its parameters
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
        )
        first, then = schedulers.LinearLR(optimizer, 0.1, total_iters=3), schedulers.StepLR(optimizer, 5)
        sequence = schedulers.SequentialLR(optimizer, [first, then], [3])
        plateau = schedulers.ReduceLROnPlateau(optimizer, patience=1)
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=3)
        run.track(model=model, average=average, sequence=sequence, plateau=plateau, scaler=scaler, optimizer=optimizer)
        for batch in run.feed:
            optimizer.zero_grad()
            loss = (model(batch["x"]).squeeze(1) - batch["y"]).square().mean()
            scaler.scale(loss).backward()
            run.gate(loss=loss)
            scaler.step(optimizer)
            scaler.update()
            run.log(lr=optimizer.param_groups[0]["lr"], scale=scaler.get_scale())
            average.update_parameters(model)
            sequence.step()
            plateau.step(loss.item())
            if run.step == stop:
                break
        return [one.clone() for module in (model, average) for one in module.state_dict().values()]

    found: list[list[torch.Tensor]] = []
    open_and({**spec, "epochs": 2}, tmp_path / "whole", lambda run: found.append(go(run)))
    for stop in (5, 11, None):
        open_and({**spec, "epochs": 2}, tmp_path, lambda run, stop=stop: found.append(go(run, stop)))
    assert all(torch.equal(one, other) for one, other in zip(found[0], found[-1], strict=True))
    name = "train_metrics.jsonl"
    assert lines(tmp_path / "run", name) == lines(tmp_path / "whole/run", name)


@pytest.mark.parametrize("way", ["break", "ask", "checkpoint"])
def test_an_epoch_that_was_left_in_its_middle_is_told_whole(spec: Spec, tmp_path: Path, way: str) -> None:
    """Mean and maximum are of all its steps: those too of which nothing was due when the run ended."""

    def loop(run: trn.Run, stop: int | None = None) -> None:
        for _ in run.feed:
            run.log(train_loss=1.0 / run.step, grad_norm=abs(13.0 - run.step))
            if run.step == stop and way == "ask":
                run._job.stop.ask("preempted", "the test")
            elif run.step == stop and way == "checkpoint":
                run.checkpoint()
            elif run.step == stop:
                break

    asked = {**spec, "epochs": 2, "checkpoint_every": 0}
    open_and(asked, tmp_path / "whole", loop)
    for stop in (3, 11, 15, None):
        open_and(asked, tmp_path, lambda run, stop=stop: loop(run, stop))
    told = [{key: one[key] for key in ("epoch", "step", "train_loss", "grad_norm_max")} for one in epochs(tmp_path)]
    assert told == [{key: one[key] for key in told[0]} for one in epochs(tmp_path / "whole")]
    assert [one["grad_norm_max"] for one in told] == [12.0, 4.0]


def epochs(folder: Path) -> list[Json]:
    return events(folder / "run", "epoch")


def test_a_limit_of_time_ends_the_loop(spec: Spec, tmp_path: Path) -> None:
    def loop(run: trn.Run) -> None:
        for _ in run.feed:
            if run.step == 3:
                run._job.stop.limit_runtime(1e-9)  # as if the minute were over
            run.log(train_loss=1.0)

    told = open_and({**spec, "limits": {"max_runtime_seconds": 60}}, tmp_path, loop).outcome
    assert told is not None
    assert (told.status, told.step) == ("time_limit", 3)
