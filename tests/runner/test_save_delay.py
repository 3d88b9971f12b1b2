"""Nothing is saved by cadence, and nothing is the best, before checkpoint.save_delay_steps; over kills and stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.compare import assert_identical, epoch_artifacts, events, lines, outcome
from support.forkserver import ForkServer
from support.job import command
from support.plans import plan_of
from support.scripted import write_scripted
from trn.loop.cadences import is_artifact_due, is_checkpoint_due
from trn.loop.progress import Progress
from trn.records import Json, read_json
from trn.reopen import chosen_checkpoint, read_run
from trn.spec.plan_model import CheckpointPlan
from trn.verify import verify_run

LOSSES = [2.0, 3.0, 2.5, 2.6]
DELAYED = "save_delay_steps: 12, "


def write_delayed(folder: Path, delay: str = DELAYED, losses: list[float] = LOSSES) -> Path:
    """20 steps in 4 epochs, a checkpoint every 4; the lowest loss comes before the delay is over."""
    spec = write_scripted(folder, losses)
    spec.write_text(spec.read_text().replace("checkpoint: {", f"checkpoint: {{{delay}"))
    return spec


def saved_steps(run_dir: Path) -> list[int]:
    return [event["step"] for event in events(run_dir, "checkpoint")]


def problems(run_dir: Path) -> list[str]:
    return [f"{one.what}: {one.problem}" for one in verify_run(run_dir) if one.problem is not None]


# in steps


@pytest.mark.parametrize(("delay", "saved"), [(0, [4, 5, 8, 10]), (4, [4, 5, 8, 10]), (5, [5, 8, 10]), (11, [10])])
def test_what_is_due_follows_from_plan_and_step_alone(tmp_path: Path, delay: int, saved: list[int]) -> None:
    checkpoint = CheckpointPlan(
        every_steps=4,
        every_epochs=1,
        keep=3,
        keep_epochs=0,
        best_metric=None,
        best_mode="min",
        save_delay_steps=delay,
    )
    plan = plan_of(tmp_path / "run", max_steps=10, checkpoint=checkpoint)
    at = {step: Progress(step=step, settled=step) for step in range(1, 11)}
    assert [step for step, progress in at.items() if is_checkpoint_due(plan, progress)] == saved
    assert [step for step in at if is_artifact_due(plan, at[step])] == [one for one in (5, 10) if one >= delay]


@pytest.mark.slow
@pytest.mark.parametrize("delay", [DELAYED, "save_delay_epochs: 2.4, "])
def test_saving_and_the_best_begin_at_the_step_of_the_delay_also_after_kills(
    server: ForkServer, tmp_path: Path, delay: str
) -> None:
    spec, log = write_delayed(tmp_path / "job", delay), tmp_path / "log"
    oracle, run_dir = tmp_path / "oracle", tmp_path / "run"
    assert server.run(command(spec, tmp_path, "oracle"), log) == 0, log.read_text()
    assert saved_steps(oracle) == [12, 15, 16, 20]
    assert set(epoch_artifacts(oracle)) == {"epoch-002.metadata.json", "epoch-003.metadata.json"}
    assert outcome(oracle)["best"] == {"step": 15, "metric": "val_loss", "value": 2.5}
    assert [line["step"] for line in lines(oracle, "val_metrics.jsonl")] == [5, 10, 15, 20]
    assert "no checkpoint before step 12" in log.read_text()
    assert problems(oracle) == []
    if delay != DELAYED:
        return
    # stopped in the evaluation of step 5: it is saved all the same, and judged by the resume
    (spec.parent / "terminate").write_text("5")
    assert server.run(command(spec, tmp_path, "run"), log) == 75, log.read_text()
    assert saved_steps(run_dir) == [5]
    assert problems(run_dir) == []
    for operation in (45, 30):
        server.run(command(spec, tmp_path, "run"), log, fault=f"op=any,n={operation},do=kill")
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    assert_identical(run_dir, oracle)
    assert problems(run_dir) == []


@pytest.mark.slow
def test_a_run_killed_in_the_window_begins_anew_and_ends_the_same(server: ForkServer, tmp_path: Path) -> None:
    spec, log = write_delayed(tmp_path / "job"), tmp_path / "log"
    assert server.run(command(spec, tmp_path, "oracle"), log) == 0, log.read_text()
    # the second validation, of step 10, is written before anything is saved
    assert server.run(command(spec, tmp_path, "run"), log, fault="op=write,n=2,do=kill,path=val_metrics") == -9
    assert saved_steps(tmp_path / "run") == []
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    (resumed,) = events(tmp_path / "run", "resumed")
    assert (resumed["from_step"], resumed["checkpoint"]) == (0, None)
    assert_identical(tmp_path / "run", tmp_path / "oracle")


@pytest.mark.slow
def test_a_delay_longer_than_the_run_leaves_its_last_checkpoint(server: ForkServer, tmp_path: Path) -> None:
    spec, log = write_delayed(tmp_path / "job", "save_delay_steps: 99, ", LOSSES[:2]), tmp_path / "log"
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    found: Json = outcome(tmp_path / "run")
    assert (found["step"], found["checkpoint"]["step"], found["best"]) == (10, 10, None)
    assert saved_steps(tmp_path / "run") == [10]
    # what is exported and evaluated where nothing else is said: there is no best
    assert chosen_checkpoint(read_run(tmp_path / "run"), "best").step == 10
    assert epoch_artifacts(tmp_path / "run") == {}
    assert problems(tmp_path / "run") == []


@pytest.mark.slow
def test_a_missing_epoch_is_still_a_finding_where_it_was_due(server: ForkServer, tmp_path: Path) -> None:
    spec, log = write_delayed(tmp_path / "job"), tmp_path / "log"
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    (tmp_path / "run/checkpoints/epoch-002.metadata.json").unlink()
    assert "checkpoints/epoch-002.metadata.json: it is missing, and the epoch is over" in problems(tmp_path / "run")


# the best by another metric


@pytest.mark.slow
def test_the_best_by_any_metric_and_direction_outlives_kills(server: ForkServer, tmp_path: Path) -> None:
    spec, log = (
        write_delayed(tmp_path / "job", "best: {metric: map50_95, mode: max}, ", [0.1, 0.4, 0.3, 0.4]),
        tmp_path / "log",
    )
    trainer = spec.parent / "by_script.py"
    trainer.write_text(trainer.read_text().replace('{"val_loss": ', '{"map50_95": '))
    assert server.run(command(spec, tmp_path, "oracle"), log) == 0, log.read_text()
    best = {"step": 10, "metric": "map50_95", "value": 0.4}  # one that is only as good does not replace it
    assert outcome(tmp_path / "oracle")["best"] == best
    assert read_json(tmp_path / "oracle/checkpoints/best.meta.json")["step"] == 10
    for operation in (75, 45):
        server.run(command(spec, tmp_path, "run"), log, fault=f"op=any,n={operation},do=kill")
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    assert_identical(tmp_path / "run", tmp_path / "oracle")
    assert read_json(tmp_path / "run/checkpoints/best.meta.json")["step"] == 10


@pytest.mark.slow
def test_a_best_metric_that_never_appears_is_one_line(server: ForkServer, tmp_path: Path) -> None:
    spec, log = write_delayed(tmp_path / "job", "best: {metric: map50_95, mode: max}, "), tmp_path / "log"
    assert server.run(command(spec, tmp_path, "run"), log) == 70
    said = (
        "trainer error [trainer_raised] at evaluate after step 5: expected 'map50_95' among the metrics, "
        "found val_loss. Return it: checkpoint.best.metric asks for it."
    )
    assert log.read_text().splitlines()[0] == said
    assert outcome(tmp_path / "run")["reason"] == said
