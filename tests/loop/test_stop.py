"""Work that gives way to the first signal, as an export at the end does."""

from __future__ import annotations

import pytest

from trn.errors import Stopped
from trn.loop.stop import StopRequest


def asked(stop: StopRequest) -> None:
    """As a signal handler does."""
    stop.ask("preempted", "SIGTERM was received")
    stop.give_way()


def test_the_first_request_breaks_it_off_also_where_the_work_swallows_it_or_makes_another_error_of_it() -> None:
    def is_swallowed(stop: StopRequest) -> None:
        with pytest.raises(Stopped):
            asked(stop)

    def becomes_another_error(stop: StopRequest) -> None:
        try:
            asked(stop)
        except Stopped as error:
            raise RuntimeError("cannot be traced") from error

    for work in (asked, is_swallowed, becomes_another_error):
        stop = StopRequest()
        with (
            pytest.raises(Stopped, match="SIGTERM was received, during the export") as caught,
            stop.giving_way("the export"),
        ):
            work(stop)
        assert caught.value.outcome == "preempted"


def test_it_does_not_begin_after_a_request_and_is_not_broken_off_after_its_end() -> None:
    stop = StopRequest()
    with stop.giving_way("the export"):
        pass
    asked(stop)  # raises nothing
    with pytest.raises(Stopped, match="before the export"), stop.giving_way("the export"):
        raise AssertionError("it was begun")


def test_an_error_of_the_work_itself_stays_what_it_is() -> None:
    stop = StopRequest()
    with pytest.raises(KeyError), stop.giving_way("the export"):
        raise KeyError("x")
    assert not stop.gives_way
