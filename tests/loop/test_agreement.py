"""What ranks agree on, from what each of them says: here one speaks, and the others are a script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from trn.errors import TrainerError
from trn.loop.agreement import Agreement
from trn.loop.control import asked_of
from trn.loop.stop import StopRequest
from trn.ranks.group import Alone, Group
from trn.trainer import Control


class Scripted(Group):
    """Rank 0 of two; `others` makes what rank 1 says out of what rank 0 does."""

    world_size = 2

    def __init__(self, others: Any = list) -> None:
        self.others = others
        self.meetings = 0

    def exchange(self, values: Sequence[float]) -> list[list[float]]:
        self.meetings += 1
        return [list(values), self.others(list(values))]

    def gather(self, value: Any) -> list[Any]:
        return [value, self.others(value)]

    def sum_(self, tensors: Sequence[torch.Tensor], *, have_met: bool = False) -> None:
        raise AssertionError

    def copy_from_first(self, tensors: Sequence[torch.Tensor]) -> None:
        raise AssertionError


def test_a_world_of_one_says_what_its_own_request_says() -> None:
    stop = StopRequest()
    agreement = Agreement(Alone(), stop)
    assert not agreement.stop_requested()
    assert agreement.step_made(1, {"train_loss": 1.0}, 8, 0.5, 0.1, 250.0) == (0.5, 0.1, 250.0)
    stop.ask("preempted", "SIGTERM was received")
    assert agreement.stop_requested()
    assert agreement.is_stopping()


def test_the_request_of_another_rank_stops_this_one_and_is_told() -> None:
    stop = StopRequest()
    agreement = Agreement(Scripted(lambda row: [2.0, *row[1:]]), stop)
    assert agreement.stop_requested()
    assert (stop.outcome, stop.reason, stop.at_once) == ("cancelled", "rank 1 was asked to stop", False)


def test_a_rank_that_was_asked_itself_keeps_its_own_reason() -> None:
    stop = StopRequest()
    stop.ask("preempted", "SIGTERM was received")
    assert Agreement(Scripted(), stop).stop_requested()
    assert stop.reason == "SIGTERM was received"


def test_a_request_at_once_is_at_once_for_all() -> None:
    stop = StopRequest()
    assert Agreement(Scripted(lambda row: [10.0, *row[1:]]), stop).stop_requested()
    assert stop.outcome == "cancelled"
    assert stop.at_once


def test_a_request_that_only_this_rank_has_seen_waits_for_the_next_meeting() -> None:
    stop, group = StopRequest(), Scripted()
    agreement = Agreement(group, stop)
    agreement.step_made(1, {"train_loss": 1.0}, 8, 0.5, 0.1)
    stop.ask("preempted", "SIGTERM was received")
    assert not agreement.stop_requested(), "the others have not heard of it"
    assert agreement.stop_requested()
    assert group.meetings == 2


def test_a_step_and_the_question_after_it_take_one_meeting() -> None:
    group = Scripted()
    agreement = Agreement(group, StopRequest())
    for step in range(1, 4):
        agreement.step_made(step, {"train_loss": 1.0}, 8, 0.5, 0.1)
        agreement.stop_requested()
    assert group.meetings == 3


def test_the_slowest_rank_gives_the_time_of_a_step() -> None:
    agreement = Agreement(Scripted(lambda row: [*row[:3], 9.0, 0.01, row[5]]), StopRequest())
    assert agreement.step_made(1, {"train_loss": 1.0}, 8, 0.5, 0.1) == (9.0, 0.1, None)


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        (20.0, 50.0, 35.0),
        (None, 50.0, 50.0),
        (20.0, -math.inf, 20.0),
        (None, -math.inf, None),
        (50.0, 120.0, 120.0),
        (-1.0, 50.0, -1.0),
    ],
)
def test_all_ranks_go_on_from_the_same_reading(own: float | None, other: float, expected: float | None) -> None:
    agreement = Agreement(Scripted(lambda row: [*row[:5], other]), StopRequest())
    assert agreement.step_made(1, {"train_loss": 1.0}, 8, 0.5, 0.1, own)[2] == expected


def test_ranks_with_other_numbers_are_told_apart_by_name() -> None:
    def other(said: Any) -> Any:
        return (
            {"train_loss": 2.0, "tokens": 8} if isinstance(said, dict) else [said[0], said[1], said[2] + 1, *said[3:]]
        )

    with pytest.raises(TrainerError, match=r"step 7: train_loss is 1\.0 on rank 0 and 2\.0 on rank 1"):
        Agreement(Scripted(other), StopRequest()).step_made(7, {"train_loss": 1.0}, 8, 0.5, 0.1)


@pytest.mark.parametrize("refuses", [True, False])
def test_a_step_that_only_one_rank_refused_ends_the_run(refuses: bool) -> None:
    other = Scripted(lambda row: [row[0], 1.0 - row[1], *row[2:]])
    agreement = Agreement(other, StopRequest())
    with pytest.raises(TrainerError, match="refused it, rank"):
        agreement.step_refused(3) if refuses else agreement.step_made(3, {"train_loss": 1.0}, 8, 0.5, 0.1)


def test_ranks_that_ask_the_loop_for_different_things_are_told_apart_by_name() -> None:
    own = {"train_loss": 1.0, **asked_of(Control())}
    other = {"train_loss": 1.0, "tokens": -1, **asked_of(Control(skip_cadence_emit=True))}
    group = Scripted(lambda given: other if isinstance(given, dict) else [*given[:2], given[2] + 1, *given[3:]])
    says = "step 4: control.skip_cadence_emit is 0.0 on rank 0 and 1.0 on rank 1"
    with pytest.raises(TrainerError, match=says):
        Agreement(group, StopRequest()).step_made(4, own, None, 0.5, 0.1)
