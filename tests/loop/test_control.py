"""What a step asks of the loop: to hold back what is due, to be shown, to wait. Checked, and exact through a kill."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.compare import assert_identical, events
from support.forkserver import ForkServer
from support.job import command
from support.with_hooks import write_hooked
from trn.checkpoint.meta import listed_steps
from trn.errors import TrainerError
from trn.loop.agreement import Agreement
from trn.loop.control import asked_of, checked_control, falls_due, pause
from trn.loop.progress import Progress
from trn.loop.stop import StopRequest
from trn.ranks.group import Alone
from trn.records import read_lines
from trn.trainer import Control


def due_steps(cadence: int, quiet: set[int], steps: int, *, since: int = 0) -> list[int]:
    """After which steps something of that cadence comes, by the loop's own way of counting."""
    progress, found = Progress(), []
    for step in range(1, steps + 1):
        progress.held_back = progress.held_back + 1 if progress.holds_back else 0
        progress.holds_back = step in quiet
        progress.step = step
        if falls_due(cadence, Progress.from_json(progress.to_json()), since=since):
            found.append(step)
    return found


@pytest.mark.parametrize(
    ("quiet", "expected"),
    [
        (set(), [4, 8, 12]),
        ({4}, [5, 8, 12]),
        ({4, 5, 6}, [7, 8, 12]),
        ({3, 5}, [4, 8, 12]),
        ({4, 5, 6, 7, 8, 9}, [10, 12]),
        ({12}, [4, 8, 13]),
        ({8, 10}, [4, 9, 12]),
    ],
)
def test_what_a_step_holds_back_comes_once_after_the_next_that_does_not(quiet: set[int], expected: list[int]) -> None:
    assert due_steps(4, quiet, 14) == expected


def test_a_cadence_of_zero_owes_nothing_and_neither_do_steps_before_the_delay() -> None:
    assert due_steps(0, {4}, 9) == []
    assert due_steps(4, {4, 5}, 9, since=5) == [8]


def test_where_no_step_follows_nothing_is_held_back() -> None:
    for held_back, step in ((0, 4), (1, 5)):
        progress = Progress(step=step, holds_back=True, held_back=held_back)
        assert falls_due(4, progress, is_last=True)
        assert not falls_due(4, progress)


def test_progress_has_the_keys_only_where_something_was_held_back_and_refuses_junk() -> None:
    plain = Progress(step=3).to_json()
    assert not {"holds_back", "held_back"} & plain.keys()
    assert Progress.from_json(plain) == Progress(step=3)
    holding = Progress(step=3, holds_back=True, held_back=2)
    assert Progress.from_json(holding.to_json()) == holding
    for junk in ({"held_back": -1}, {"held_back": True}, {"holds_back": 1}, {"holds": True}):
        with pytest.raises(ValueError, match="progress: "):
            Progress.from_json(plain | junk)


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, "2", True, 1j])
def test_a_backoff_that_is_no_finite_number_from_zero_is_refused_with_the_step(seconds: Any) -> None:
    with pytest.raises(TrainerError, match=r"step 7: control.backoff_seconds is .*; expected a finite number") as error:
        checked_control(Control(backoff_seconds=seconds), "step 7")
    assert "\n" not in str(error.value)


def test_a_control_of_another_kind_or_with_another_switch_is_refused() -> None:
    with pytest.raises(TrainerError, match="control is a dict; expected a Control"):
        checked_control({"backoff_seconds": 1}, "step 7")
    with pytest.raises(TrainerError, match="skip_cadence_emit is 'no'; expected True or False"):
        checked_control(Control(skip_cadence_emit="no"), "step 7")  # type: ignore[arg-type]
    for seconds in (None, 0, 0.0, 1e9):
        assert checked_control(Control(backoff_seconds=seconds), "").backoff_seconds == seconds


class Beating:
    """A watchdog that notes when it was told of life."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def step_ended(self) -> None:
        self.at.append(time.monotonic())


def pausing(stop: StopRequest) -> Any:
    return SimpleNamespace(agreement=Agreement(Alone(), stop), stop=stop, watchdog=Beating())


def test_a_pause_lasts_as_long_as_it_was_asked_for_and_gives_signs_of_life() -> None:
    parts = pausing(StopRequest())
    began_s = time.monotonic()
    pause(parts, 0.6)
    assert 0.6 <= time.monotonic() - began_s < 2.0
    assert len(parts.watchdog.at) >= 3


def test_a_stop_ends_a_pause_within_a_second() -> None:
    stop = StopRequest(max_runtime_s=0.2)
    parts = pausing(stop)
    began_s = time.monotonic()
    pause(parts, 1e9)
    assert time.monotonic() - began_s < 1.2
    assert stop.outcome == "time_limit"


def test_ranks_that_ask_for_different_things_are_told_apart_by_name() -> None:
    first, other = asked_of(Control()), asked_of(Control(backoff_seconds=0))
    assert first.keys() == other.keys() == {"control.skip_cadence_emit", "control.backoff_seconds"}
    assert first != other != asked_of(Control(True, 0))


# Whole runs

QUIET = (4, 5, 6, 12, 16, 23, 24)
"""Checkpoints each 4 steps, samples each 6, metric events each 2; the budget ends at 24."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hooked(tmp_path_factory.mktemp("quiet"), quiet=QUIET)


@pytest.fixture(scope="module")
def oracle(server: ForkServer, job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oracle")
    assert server.run(command(job, folder, "run"), folder / "log") == 0, (folder / "log").read_text()
    return folder / "run"


def best_steps(run_dir: Path) -> set[int]:
    """Checkpoints are made for a new best too, which no step holds back."""
    return {one["step"] for one in events(run_dir, "evaluated")}


@pytest.mark.slow
def test_events_samples_and_checkpoints_are_held_back_and_nothing_else(oracle: Path) -> None:
    assert [one["step"] for one in events(oracle, "metric")] == [s for s in range(2, 25, 2) if s not in QUIET]
    assert [one["step"] for one in events(oracle, "sample")] == [7, 13, 18, 24], "the last one is not held back"
    by_cadence = {7, 8, 13, 17, 20, 24}
    found = set(listed_steps(oracle / "checkpoints"))
    assert by_cadence <= found
    assert found - by_cadence <= best_steps(oracle)
    assert not found & {4, 12, 16}
    assert [one["step"] for one in events(oracle, "evaluated")] == [5, 10, 15, 20, 24], "evaluations are not held back"
    assert (oracle / "reports/train_metrics.jsonl").read_bytes().count(b"\n") == 24, "a line each step, as ever"


@pytest.mark.slow
def test_samples_are_asked_for_by_prompt_and_seed(oracle: Path) -> None:
    told = (oracle / "samples/step-00000007-draw.txt").read_text()
    assert told.startswith("7 [[0, 'a cat', None, 3], [1, 'a dog', 'edit', 7]] [")


@pytest.mark.slow
def test_debug_stands_in_the_event_and_not_in_the_line(oracle: Path) -> None:
    assert all(set(one["debug"]) == {"first"} for one in events(oracle, "metric"))
    assert b'"first"' not in (oracle / "reports/train_metrics.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("at", [4, 5, 12, 15])
def test_stopped_where_something_is_held_back_the_resume_owes_it(
    server: ForkServer, job: Path, oracle: Path, tmp_path: Path, at: int
) -> None:
    """A signal comes in the step, or in the evaluation after it, and the job ends with a checkpoint of that step."""
    spec = write_hooked(tmp_path / "job", quiet=QUIET)
    if at % 5 == 0:
        (spec.parent / "terminate").write_text(str(at))
    else:
        text = (spec.parent / "hooked.py").read_text()
        asks = f"        if ctx.step == {at} and not (HERE / 'once').exists():\n            (HERE / 'once').touch()\n"
        asks += "            os.kill(os.getpid(), signal.SIGTERM)\n"
        mark = "    def train_step(self, batch, state, ctx):\n"
        (spec.parent / "hooked.py").write_text(text.replace(mark, mark + asks))
    log = tmp_path / "log"
    assert server.run(command(spec, tmp_path, "run"), log) == 75, log.read_text()
    assert listed_steps(tmp_path / "run/checkpoints")[0] == at
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    assert_identical(tmp_path / "run", oracle)
    # the checkpoint that the stop made is one more
    assert set(listed_steps(tmp_path / "run/checkpoints")) - {at} == set(listed_steps(oracle / "checkpoints")) - {at}


@pytest.mark.slow
@pytest.mark.parametrize("at", [7, 17])
def test_killed_while_a_checkpoint_is_owed_the_end_is_the_same(
    server: ForkServer, oracle: Path, tmp_path: Path, at: int
) -> None:
    """The kill comes as the hook writes the checkpoint that steps before it held back."""
    spec, log = write_hooked(tmp_path / "job", quiet=QUIET), tmp_path / "log"
    (spec.parent / "refuses").write_text(f"{at} os.kill(os.getpid(), signal.SIGKILL)")
    assert server.run(command(spec, tmp_path, "run"), log) == -signal.SIGKILL, log.read_text()
    (spec.parent / "refuses").unlink()
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    assert_identical(tmp_path / "run", oracle)
    assert listed_steps(tmp_path / "run/checkpoints") == listed_steps(oracle / "checkpoints")


@pytest.mark.slow
def test_after_the_last_step_nobody_waits(server: ForkServer, tmp_path: Path) -> None:
    spec = write_hooked(tmp_path / "job", steps=3)
    trainer = spec.parent / "hooked.py"
    trainer.write_text(trainer.read_text().replace(
        "skip_cadence_emit=ctx.step in ctx.params[\"quiet\"]", "backoff_seconds={3: 45}.get(ctx.step)"
    ))  # fmt: skip
    began_s, log = time.monotonic(), tmp_path / "log"
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    assert time.monotonic() - began_s < 40


@pytest.mark.slow
def test_a_run_that_waits_is_no_hang_ends_soon_after_sigterm_and_its_steps_count_no_pause(
    server: ForkServer, tmp_path: Path
) -> None:
    spec = write_hooked(tmp_path / "job", more="limits: {hang_seconds: 3}")
    trainer = spec.parent / "hooked.py"
    trainer.write_text(trainer.read_text().replace(
        "skip_cadence_emit=ctx.step in ctx.params[\"quiet\"]", "backoff_seconds={1: 4.0, 2: 3600}.get(ctx.step)"
    ))  # fmt: skip
    log = tmp_path / "log"
    pid = server.start(command(spec, tmp_path, "run"), log)
    lines = tmp_path / "run/reports/train_metrics.jsonl"
    until_s = time.monotonic() + 30
    while not (lines.exists() and lines.read_bytes().count(b"\n") == 2) and time.monotonic() < until_s:
        time.sleep(0.02)
    asked_s = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert server.wait(pid) == 75, log.read_text()
    assert time.monotonic() - asked_s < 10.0, "with the checkpoint and the end of the process"
    assert max(one["wall_ms"] for one in read_lines(lines)) < 2000
