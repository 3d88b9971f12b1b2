"""What a run gives to the loop inside of it, and what it refuses."""

from __future__ import annotations

import itertools
import random
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from rounds import Calls
from torch import nn

import trn
from support.compare import events, lines, outcome
from support.forkserver import ForkServer
from support.own_loop import logged, open_and, train
from trn.errors import PlanRefused, ResumeRefused, SpecError, TrainerError, TrnError, UsageError
from trn.records import new_job_id
from trn.session.own_loop import Caller, caller_of
from trn.verify import verify_run

Spec = dict[str, Any]


def draw() -> float:
    return torch.rand(1).item() + random.random() + np.random.rand()


def test_validation_is_done_where_it_is_due_and_changes_no_stream(spec: Spec, table: Path, tmp_path: Path) -> None:
    draws: dict[str, list[float]] = {"without": [], "with": []}

    def evaluate(batches: Iterator[dict[str, torch.Tensor]]) -> dict[str, float]:
        return {"val_loss": sum(len(one["x"]) for one in batches) + draw()}

    for name, validation in (("without", {}), ("with", {"validation": {"parquet_paths": [table], "every_steps": 3}})):
        with trn.open_run({**spec, **validation}, run_id=name, runs_dir=tmp_path) as run:
            run.evaluation(evaluate)
            for _ in run.feed:
                draws[name].append(draw())
                run.log(train_loss=1.0)
    assert draws["with"] == draws["without"]
    found = lines(tmp_path / "with", "val_metrics.jsonl")
    assert [line["step"] for line in found] == [3, 6, 8]
    assert all(64 < line["val_loss"] < 67 for line in found)


def test_rows_can_be_taken_instead_of_tensors_for_evaluation_too(spec: Spec, table: Path, tmp_path: Path) -> None:
    def take(run: trn.Run) -> None:
        @run.evaluation
        def evaluate(batches: Iterator[pa.RecordBatch]) -> dict[str, float]:
            return {"val_loss": float(sum(rows.num_rows for rows in batches))}

        for rows in run.raw:
            assert len(run.ctx.row_ids) == rows.num_rows == 8
            run.log(train_loss=1.0, tokens=5)

    open_and({**spec, "validation": {"parquet_paths": [table]}}, tmp_path, take)
    assert lines(tmp_path / "run", "train_metrics.jsonl")[-1]["tokens_seen"] == 40
    assert lines(tmp_path / "run", "val_metrics.jsonl")[0]["val_loss"] == 64


def test_a_loop_with_data_of_its_own_is_not_called_exact(spec: Spec, tmp_path: Path) -> None:
    def bring(run: trn.Run) -> None:
        run.track(model=nn.Linear(2, 1))
        assert [step for step in run.steps if run.log(train_loss=1.0) is None] == list(range(1, 9))

    assert not open_and(spec, tmp_path, bring).exact
    told = outcome(tmp_path / "run")
    assert (told["status"], told["exact"]) == ("completed", False)
    assert [reason.split(":")[0] for reason in told["inexact_because"]] == ["the loop brings its own data"]
    assert [one.problem for one in verify_run(tmp_path / "run") if one.problem] == []


def test_a_loop_that_tracks_nothing_is_not_called_exact(spec: Spec, tmp_path: Path) -> None:
    assert not open_and({**spec, "deterministic": "warn"}, tmp_path, logged).exact
    reasons = outcome(tmp_path / "run")["inexact_because"]
    assert [reason.split(":")[0] for reason in reasons] == ["nothing is tracked", "deterministic is warn"]


def test_a_loop_without_a_file_is_not_called_exact(spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trn.session.block.caller_of", lambda frame: Caller("__main__", None))
    open_and(spec, tmp_path, train)
    assert outcome(tmp_path / "run")["inexact_because"] == ["the loop has no file: a change of its code is not noticed"]


def test_the_caller_is_the_module_whose_code_opens_the_run() -> None:
    assert caller_of(sys._getframe()) == Caller(__name__, Path(__file__))
    found: dict[str, Any] = {"__name__": "__main__", "look": lambda: caller_of(sys._getframe(1))}
    exec("caller = look()", found)
    assert found["caller"] == Caller("__main__", None)
    found["__name__"] = __name__
    exec("caller = look()", found)
    assert found["caller"] == Caller(__name__, None), "this code is not in the module's file"


def test_values_of_the_gate_stand_in_the_line_and_those_of_the_log_win(spec: Spec, tmp_path: Path) -> None:
    def gate(run: trn.Run) -> None:
        for _ in run.feed:
            run.gate(loss=torch.tensor(2.0), grad_norm=3)
            run.log(train_loss=1.0, learning_rate=0.5, seen=run.step)

    open_and(spec, tmp_path, gate)
    for step, line in enumerate(lines(tmp_path / "run", "train_metrics.jsonl"), 1):
        assert (line["train_loss"], line["grad_norm"], line["lr"], line["seen"]) == (1.0, 3, 0.5, step)


def test_a_checkpoint_can_be_asked_for(spec: Spec, tmp_path: Path) -> None:
    def ask(run: trn.Run) -> None:
        for _ in run.feed:
            run.log(train_loss=1.0)
            if run.step == 5:
                run.checkpoint()

    open_and({**spec, "checkpoint_every": 0}, tmp_path, ask)
    assert [one["step"] for one in events(tmp_path / "run", "checkpoint")] == [5, 8]


def test_a_checkpoint_that_is_named_is_the_one_to_go_on_from(spec: Spec, tmp_path: Path) -> None:
    open_and(spec, tmp_path, lambda run: train(run, steps=7))
    assert open_and(spec, tmp_path, train, checkpoint="3").exit_code == 0
    assert [one["from_step"] for one in events(tmp_path / "run", "resumed")] == [3]
    assert [one.problem for one in verify_run(tmp_path / "run") if one.problem] == []


def test_torch_is_set_as_planned_inside_and_as_before_outside(spec: Spec, tmp_path: Path) -> None:
    inside: list[float] = []

    def look(run: trn.Run) -> None:
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (1, True)
        inside.append(draw())

    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(2)
    try:
        open_and(spec, tmp_path / "a", look)
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (2, before[1])
    finally:
        torch.set_num_threads(before[0])
    open_and(spec, tmp_path / "b", look)
    assert inside[0] == inside[1]


def test_a_spec_can_be_a_file_without_a_trainer_under_a_profile(spec: Spec, table: Path, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        f"config_version: 1\ndataset: {{parquet_paths: [{table}], batch_size: 8}}\nseed: 1\ndevice: cpu\n"
        "precision: none\nddp: false\nepochs: 2\nthreads: 1\nprofiles: {short: {epochs: 1}}\n"
    )
    assert open_and(str(path), tmp_path, logged, profile="short", sets=["seed=3"]).exit_code == 0  # type: ignore[arg-type]
    assert outcome(tmp_path / "run")["step"] == 8


# what is refused


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"sed": 1}, SpecError, "unknown key; did you mean seed?"),
        ({"trainer": "lm"}, PlanRefused, "expected no trainer, or own_loop, found 'lm'"),
        ({"optimizer": {"lr": 0.1}}, PlanRefused, "makes its own updates and does not honour it"),
        ({"precision": "bf16"}, PlanRefused, "does not honour it"),
        ({"guard": {"policy": "skip"}}, PlanRefused, "does not honour it"),
        ({"limits": {"hang_seconds": 5}}, PlanRefused, "this process is yours"),
        ({"max_steps": 9, "epochs": None}, PlanRefused, "the data give 8"),
    ],
)
def test_a_spec_that_does_not_fit_is_one_line_and_leaves_nothing(
    spec: Spec, tmp_path: Path, changes: Spec, error: type[TrnError], told: str
) -> None:
    with pytest.raises(error) as caught:
        open_and({**spec, **changes}, tmp_path / "runs", logged)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_there_or_not_is_refused_where_it_must_not_be(spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected auto, never or must"):
        open_and(spec, tmp_path, logged, resume="maybe")
    with pytest.raises(ResumeRefused, match="no such run"):
        open_and(spec, tmp_path, logged, resume="must")

    open_and(spec, tmp_path, lambda run: train(run, steps=1))
    with pytest.raises(PlanRefused, match="exists"):
        open_and(spec, tmp_path, logged, resume="never")


def test_one_of_several_ranks_is_refused(spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PlanRefused, match="one of 2 processes"):
        open_and(spec, tmp_path / "runs", logged)
    assert not (tmp_path / "runs").exists()


def _evaluates_not(run: trn.Run) -> None:
    next(run.feed)


def _seeds(run: trn.Run) -> None:
    torch.manual_seed(2)
    train(run)


@pytest.mark.parametrize(
    ("body", "error", "told"),
    [
        (lambda run: run.log(), UsageError, r"at run.log: there is no step under way"),
        (lambda run: run.gate(), UsageError, r"at run.gate: there is no step under way"),
        (lambda run: run.checkpoint(), UsageError, r"at run.checkpoint: there is no step under way"),
        (lambda run: run.track(steps=3), UsageError, r"run.track\(steps=...\): expected an object with state_dict"),
        (_evaluates_not, UsageError, "the spec has validation, and nothing evaluates"),
    ],
)
def test_what_is_refused_before_the_first_batch_takes_the_run_back(
    spec: Spec, table: Path, tmp_path: Path, body: Any, error: type[TrnError], told: str
) -> None:
    with pytest.raises(error, match=told):
        open_and({**spec, "validation": {"parquet_paths": [table]}}, tmp_path, body)
    assert not (tmp_path / "run").exists()


def test_the_runner_leaves_a_loop_of_ones_own_to_its_script(server: ForkServer, spec: Spec, tmp_path: Path) -> None:
    open_and(spec, tmp_path, lambda run: train(run, steps=2))
    before = (tmp_path / "run/reports/events.jsonl").read_bytes()
    log = tmp_path / "log"
    assert server.run(["--job-id", new_job_id(), "--run-dir", str(tmp_path / "run")], log) == 78
    assert "Start the script that has the loop" in log.read_text()
    assert (tmp_path / "run/reports/events.jsonl").read_bytes() == before


def test_a_step_adds_few_calls_to_the_loop(spec: Spec, tmp_path: Path) -> None:
    """Counted, not timed: batch, gate, line, and the look at what is due. Half are of feed and journal."""
    counted: list[int] = []

    def count(run: trn.Run) -> None:
        calls = Calls()
        with calls:
            for _ in run.feed:
                run.gate(train_loss=1.0, grad_norm=1.0)
                run.log(lr=0.1)
                counted.append(calls.python + calls.c)

    open_and({**spec, "dataset": {**spec["dataset"], "end": "cycle"}, "max_steps": 40, "epochs": None}, tmp_path, count)
    assert 20 < statistics.median(b - a for a, b in itertools.pairwise(counted)) <= 100


def test_seeds_that_the_loop_sets_itself_are_refused(spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(PlanRefused, match="planned 1, found 2"):
        open_and(spec, tmp_path, _seeds)
    assert not (tmp_path / "run").exists()


def _forgets_to_log(run: trn.Run) -> None:
    next(run.feed)
    next(run.feed)


def _logs_twice(run: trn.Run) -> None:
    next(run.feed)
    run.log(train_loss=1.0)
    run.log(train_loss=1.0)


def _takes_from_both(run: trn.Run) -> None:
    next(run.feed)
    run.log(train_loss=1.0)
    next(run.raw)


def _tracks_late(run: trn.Run) -> None:
    next(run.feed)
    run.track(model=nn.Linear(1, 1))


def _logs_text(run: trn.Run) -> None:
    next(run.feed)
    run.log(note="good")


def _logs_half_a_token(run: trn.Run) -> None:
    next(run.feed)
    run.log(train_loss=1.0, tokens=0.5)  # type: ignore[arg-type]


def _logs_two_numbers(run: trn.Run) -> None:
    next(run.feed)
    run.log(train_loss=torch.ones(2))


@pytest.mark.parametrize(
    ("body", "error", "told"),
    [
        (_forgets_to_log, UsageError, "step 1 was not logged, and the next batch is asked for"),
        (_logs_twice, UsageError, "there is no step under way"),
        (_takes_from_both, UsageError, "this run is on run.feed"),
        (_tracks_late, UsageError, "the loop has begun"),
        (_logs_text, TrainerError, "metric 'note': expected a finite number"),
        (_logs_half_a_token, UsageError, r"run.log\(tokens=...\): expected a whole number, or None, found 0.5"),
        (_logs_two_numbers, TrainerError, "expected one number, found a tensor of several"),
    ],
)
def test_a_mistake_in_the_loop_is_one_line_and_the_outcome(
    spec: Spec, tmp_path: Path, body: Any, error: type[TrnError], told: str
) -> None:
    with pytest.raises(error, match=told):
        open_and(spec, tmp_path, body)
    assert outcome(tmp_path / "run")["exit_code"] == (2 if error is UsageError else 70)


def test_other_objects_than_the_checkpoint_has_are_refused_and_nothing_is_changed(spec: Spec, tmp_path: Path) -> None:
    open_and(spec, tmp_path, lambda run: train(run, steps=4))
    before = (tmp_path / "run/reports/events.jsonl").read_bytes()

    def go_on(objects: dict[str, Any]) -> None:
        def body(run: trn.Run) -> None:
            run.track(**objects)
            next(run.feed)

        open_and(spec, tmp_path, body)

    with pytest.raises(ResumeRefused, match="it holds model, optimizer, which this loop does not track"):
        go_on({})
    with pytest.raises(ResumeRefused, match="the checkpoint has no 'net'; it has model, optimizer"):
        go_on({"net": nn.Linear(8, 1)})
    with pytest.raises(ResumeRefused, match="model does not take its state back: RuntimeError"):
        go_on({"model": nn.Linear(9, 1)})
    assert (tmp_path / "run/reports/events.jsonl").read_bytes() == before
    assert outcome(tmp_path / "run")["status"] == "cancelled"
