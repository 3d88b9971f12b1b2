"""Killed where it was said, resumed, and the same in the end; a run that does not get there is told of."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.job import write_job
from trn.records import read_lines
from trn.testing import assert_same_end, run_killed, run_whole

pytestmark = pytest.mark.slow


def test_a_run_is_killed_in_the_steps_that_were_named_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=24, checkpoint_every=5)
    whole = run_whole(spec, tmp_path)
    killed = run_killed(spec, tmp_path, at=[3, 17])
    assert_same_end(killed, whole)
    resumed = [one["from_step"] for one in read_lines(killed / "reports/events.jsonl") if one["event"] == "resumed"]
    assert resumed[0] == 0
    assert resumed[1] in (10, 15)  # the save of step 15 may have been under way
    with pytest.raises(AssertionError, match="expected a step after 24, where the run stands, found 17"):
        run_killed(spec, tmp_path, at=[17])


def test_a_run_that_fails_tells_why(tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=24)
    with pytest.raises(AssertionError, match=r"whole: expected exit status 0, found 2: spec error .*sead"):
        run_whole(spec, tmp_path, more=("--set", "sead=1"))
