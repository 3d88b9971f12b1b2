"""How a run around a loop of one's own ends: every way out of the block has its word, and the folder verifies."""

from __future__ import annotations

import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trn
from support.compare import events, lines, outcome
from support.own_loop import logged, open_and, train
from trn.errors import DataExhausted, NumericalInstability, ResumeRefused, TrainerError, TrnError, UsageError
from trn.verify import verify_run

Spec = dict[str, Any]


def whole(run_dir: Path) -> None:
    assert [one.problem for one in verify_run(run_dir) if one.problem] == []


def test_a_run_to_the_end_of_its_budget_is_completed(spec: Spec, tmp_path: Path) -> None:
    with trn.open_run(spec, run_id="run", runs_dir=tmp_path) as run:
        assert run.outcome is None
        with pytest.raises(UsageError, match="has not ended"):
            _ = run.exit_code
        train(run)
    assert run.outcome is not None
    assert (run.outcome.status, run.outcome.step, run.exit_code, run.exact) == ("completed", 8, 0, True)
    told = outcome(tmp_path / "run")
    assert (told["status"], told["exact"], told["inexact_because"]) == ("completed", True, [])
    assert [line["step"] for line in lines(tmp_path / "run", "train_metrics.jsonl")] == list(range(1, 9))
    plan = run.plan.trainer
    assert (plan.name, plan.module, plan.qualname) == ("own_loop", __name__, Path(__file__).name)
    whole(tmp_path / "run")


def test_a_run_that_is_over_keeps_no_file_open(spec: Spec, tmp_path: Path) -> None:
    open_and(spec, tmp_path, train)
    assert [one for one in open_files() if str(tmp_path) in one] == []


def open_files() -> list[str]:
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    return [os.readlink(link) for link in links if link.is_symlink()]


def test_a_finished_run_gives_its_weights_again_and_is_not_changed(spec: Spec, tmp_path: Path) -> None:
    models = []
    run = open_and(spec, tmp_path, lambda run: models.append(train(run)))
    before = (tmp_path / "run/reports/events.jsonl").read_bytes()

    def look_again(again: trn.Run) -> None:
        assert again.should_stop
        models.append(train(again))

    assert open_and(spec, tmp_path, look_again).outcome == run.outcome
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))
    assert (tmp_path / "run/reports/events.jsonl").read_bytes() == before


def test_a_finished_run_goes_on_with_a_longer_budget_that_was_allowed(spec: Spec, tmp_path: Path) -> None:
    open_and(spec, tmp_path, train)
    longer = {**spec, "epochs": 2}
    with pytest.raises(ResumeRefused, match="--allow-change max_steps"):
        open_and(longer, tmp_path, train)
    run = open_and(longer, tmp_path, train, allow_change=["max_steps"])
    assert run.outcome is not None
    assert (run.outcome.status, run.outcome.step) == ("completed", 16)
    whole(tmp_path / "run")


def test_a_loop_that_is_left_early_is_cancelled_with_a_checkpoint_and_goes_on(spec: Spec, tmp_path: Path) -> None:
    models = []
    open_and(spec, tmp_path / "whole", lambda run: models.append(train(run)))
    run = open_and(spec, tmp_path, lambda run: train(run, steps=4))
    assert run.outcome is not None
    assert (run.outcome.status, run.exit_code) == ("cancelled", 92)
    assert run.outcome.reason == "the loop was left after step 4, of 8"
    assert run.outcome.checkpoint is not None
    assert run.outcome.checkpoint["step"] == 4
    assert open_and(spec, tmp_path, lambda run: models.append(train(run)), resume="must").exit_code == 0
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))
    name = "train_metrics.jsonl"
    assert lines(tmp_path / "run", name) == lines(tmp_path / "whole/run", name)
    whole(tmp_path / "run")


def test_a_step_that_is_left_in_its_middle_is_not_saved(spec: Spec, tmp_path: Path) -> None:
    def leave_in_step_5(run: trn.Run) -> None:
        model = nn.Linear(8, 1)
        run.track(model=model)
        for _ in run.feed:
            if run.step == 5:
                nn.init.zeros_(model.weight)
                break
            run.log(train_loss=1.0)

    told = open_and(spec, tmp_path, leave_in_step_5).outcome
    assert told is not None
    assert told.reason == "the loop was left in step 5, of 8"
    assert told.checkpoint is not None
    assert (told.step, told.checkpoint["step"]) == (4, 3)
    whole(tmp_path / "run")


def test_a_loop_that_is_left_with_its_last_step_is_completed(spec: Spec, tmp_path: Path) -> None:
    assert open_and(spec, tmp_path, lambda run: train(run, steps=8)).exit_code == 0
    whole(tmp_path / "run")


def test_a_block_without_a_loop_is_cancelled(spec: Spec, tmp_path: Path) -> None:
    told = open_and(spec, tmp_path, lambda run: None).outcome
    assert told is not None
    assert (told.status, told.reason) == ("cancelled", "the loop was left before its first step")
    whole(tmp_path / "run")


def test_an_exception_is_the_outcome_and_goes_on(spec: Spec, tmp_path: Path) -> None:
    runs = []

    def divide(run: trn.Run) -> None:
        runs.append(run)
        for _ in run.feed:
            run.log(train_loss=1 / (3 - run.step))

    with pytest.raises(ZeroDivisionError):
        open_and(spec, tmp_path, divide)
    told = outcome(tmp_path / "run")
    assert (told["status"], told["exit_code"], told["step"]) == ("trainer_raised", 70, 2)
    assert told["reason"] == "ZeroDivisionError: division by zero (after step 2)"
    assert runs[0].exit_code == 70
    whole(tmp_path / "run")


def test_an_exception_before_the_first_batch_is_an_outcome_too(spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        open_and(spec, tmp_path, lambda run: {}["model"])
    assert outcome(tmp_path / "run")["status"] == "trainer_raised"
    whole(tmp_path / "run")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_who_interrupts_cancels(spec: Spec, tmp_path: Path, error: BaseException) -> None:
    def interrupt(run: trn.Run) -> None:
        next(run.feed)
        raise error

    with pytest.raises(type(error)):
        open_and(spec, tmp_path, interrupt)
    assert outcome(tmp_path / "run")["status"] == "cancelled"


def test_nan_is_refused_before_the_update_and_the_good_checkpoint_stands(spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(NumericalInstability, match="train_loss is nan"):
        open_and(spec, tmp_path, lambda run: train(run, bad_step=5))
    told = outcome(tmp_path / "run")
    assert (told["status"], told["exit_code"], told["step"]) == ("numerical_instability", 80, 4)
    assert told["checkpoint"]["step"] == 3
    (gate,) = events(tmp_path / "run", "gate")
    assert (gate["field"], gate["step"], len(gate["row_ids"])) == ("train_loss", 5, 8)
    whole(tmp_path / "run")


def test_a_refusal_that_is_swallowed_comes_again(spec: Spec, tmp_path: Path) -> None:
    def swallow(run: trn.Run) -> None:
        next(run.feed)
        with pytest.raises(NumericalInstability):
            run.gate(train_loss=math.inf)
        with pytest.raises(NumericalInstability):
            run.log(train_loss=1.0)
        with pytest.raises(NumericalInstability):
            next(run.feed)

    with pytest.raises(NumericalInstability):
        open_and(spec, tmp_path, swallow)
    assert outcome(tmp_path / "run")["status"] == "numerical_instability"
    assert lines(tmp_path / "run", "train_metrics.jsonl") == []


def test_broken_weights_are_not_saved(spec: Spec, tmp_path: Path) -> None:
    def break_them(run: trn.Run) -> None:
        model = nn.Linear(8, 1)
        run.track(model=model)
        for _ in run.feed:
            if run.step == 2:
                nn.init.constant_(model.weight, math.nan)
            run.log(train_loss=1.0)

    with pytest.raises(NumericalInstability, match="the weights after the update"):
        open_and(spec, tmp_path, break_them)
    told = outcome(tmp_path / "run")
    assert (told["status"], told["checkpoint"]) == ("numerical_instability", None)


def test_data_that_end_early_are_said_to(spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trn.feed.Feed.next", lambda feed: None)
    with pytest.raises(DataExhausted):
        open_and(spec, tmp_path, logged)
    assert outcome(tmp_path / "run")["status"] == "data_exhausted"


def test_a_target_ends_the_loop_and_the_run(spec: Spec, table: Path, tmp_path: Path) -> None:
    asked = {"validation": {"parquet_paths": [table]}, "gates": {"target_val_loss": 0.5, "min_epochs": 2}}

    def learn(run: trn.Run) -> None:
        run.evaluation(lambda batches: {"val_loss": 1.0 / (run.epoch + 1)})
        logged(run)

    told = open_and({**spec, **asked, "epochs": 9}, tmp_path, learn).outcome
    assert told is not None
    assert (told.status, told.step, told.exit_code) == ("target_reached", 16, 0)


def test_an_evaluation_that_raises_is_told_by_its_name(spec: Spec, table: Path, tmp_path: Path) -> None:
    def divide(run: trn.Run) -> None:
        run.evaluation(lambda batches: {"val_loss": 1 / 0})
        logged(run)

    with pytest.raises(TrainerError, match="evaluate at step 8: ZeroDivisionError"):
        open_and({**spec, "validation": {"parquet_paths": [table]}}, tmp_path, divide)
    assert outcome(tmp_path / "run")["status"] == "trainer_raised"


# signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, "preempted"), (signal.SIGINT, "cancelled")])
def test_a_signal_ends_the_loop_after_its_step_and_the_handlers_are_put_back(
    spec: Spec, tmp_path: Path, number: signal.Signals, status: str
) -> None:
    before = signal.getsignal(number)

    def ask_in_step_4(run: trn.Run) -> None:
        assert signal.getsignal(number) is not before
        for _ in run.feed:
            if run.step == 4:
                os.kill(os.getpid(), number)
                assert run.should_stop
            run.log(train_loss=1.0)

    told = open_and(spec, tmp_path, ask_in_step_4).outcome
    assert signal.getsignal(number) is before
    assert told is not None
    assert (told.status, told.step) == (status, 4)
    assert told.checkpoint is not None
    assert told.checkpoint["step"] == 4


def test_a_second_sigint_breaks_off_the_loop(spec: Spec, tmp_path: Path) -> None:
    def ask_twice(run: trn.Run) -> None:
        next(run.feed)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrnError, match="second SIGINT"):
        open_and(spec, tmp_path, ask_twice)
    assert outcome(tmp_path / "run")["status"] == "cancelled"


def test_an_ignored_signal_stays_ignored(spec: Spec, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with trn.open_run(spec, run_id="run", runs_dir=tmp_path) as run:
            os.kill(os.getpid(), signal.SIGHUP)
            logged(run)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert run.exit_code == 0


def test_a_child_that_the_loop_forks_dies_of_a_signal_and_ends_nothing(spec: Spec, tmp_path: Path) -> None:
    def fork(run: trn.Run) -> None:
        for _ in run.feed:
            if run.step == 2:
                if not (child := os.fork()):
                    signal.pause()
                os.kill(child, signal.SIGTERM)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
            run.log(train_loss=1.0)

    assert open_and(spec, tmp_path, fork).exit_code == 0
    whole(tmp_path / "run")


def test_a_loop_in_another_thread_leaves_signals_alone(spec: Spec, tmp_path: Path) -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(open_and(spec, tmp_path, train).exit_code))
    thread.start()
    thread.join(60)
    assert found == [0]
