"""The event `heartbeat`, of both loops: that steps are still made, told no more often than was asked for."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from support.compare import events
from support.forkserver import ForkServer
from support.job import command, write_job
from support.plans import plan_of
from trn.doors.schemas import schema_of
from trn.journal import EventLog
from trn.loop.beats import Beats
from trn.loop.pulse import Pulse
from trn.records import Json, read_lines
from trn.verify import verify_run


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / "events.jsonl", run_id="r", job_id="job-1")


def told(log_path: Path) -> list[Json]:
    check = Draft202012Validator(schema_of("event"))
    found = list(read_lines(log_path))
    for event in found:
        check.validate(event)
    return found


def test_a_beat_tells_of_its_step_and_of_the_time_since_the_one_before(tmp_path: Path, log: EventLog) -> None:
    pulse = Pulse(waited_total_s=100.0)
    beats = Beats(plan_of(tmp_path, heartbeat_s=30.0), log, pulse)
    begun_s = beats.due_s - 30.0
    pulse.waited_total_s += 8.0
    beats.beat(41, begun_s + 32.0)
    assert beats.due_s == begun_s + 62.0
    beats.beat(42, begun_s + 62.0)
    pulse.waited_total_s += 99.0  # of a slower rank, by its own clock
    beats.beat(43, begun_s + 92.0)
    found = [(one["event"], one["seq"], one["step"], one["data_wait_share"]) for one in told(tmp_path / "events.jsonl")]
    assert found == [("heartbeat", 1, 41, 0.25), ("heartbeat", 2, 42, 0.0), ("heartbeat", 3, 43, 1.0)]


def test_with_an_interval_of_zero_none_is_ever_due(tmp_path: Path, log: EventLog) -> None:
    assert Beats(plan_of(tmp_path, heartbeat_s=0.0), log, Pulse()).due_s == inf


@pytest.mark.slow
@pytest.mark.parametrize("interval_s", [1, 0])
def test_a_run_tells_them_at_most_each_interval(server: ForkServer, tmp_path: Path, interval_s: int) -> None:
    steps = 20 if interval_s else 3
    spec = write_job(tmp_path / "job", max_steps=steps)
    spec.write_text(f"{spec.read_text()}heartbeat: {{interval_seconds: {interval_s}}}\n")
    trainer = spec.parent / "noisy.py"
    slow = "        import time; time.sleep(0.12)\n        batch = ctx.tensors"
    trainer.write_text(trainer.read_text().replace("        batch = ctx.tensors", slow))
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 0, (tmp_path / "log").read_text()
    found = events(tmp_path / "run", "heartbeat")
    require_beats(tmp_path / "run", found, interval_s, steps)
    assert [str(one) for one in verify_run(tmp_path / "run") if one.problem] == []


def require_beats(run_dir: Path, found: list[dict[str, Any]], interval_s: int, steps: int) -> None:
    """Steps of 0.12 s: the first comes in the step with which the interval is over, the next as long after it."""
    whole = told(run_dir / "reports/events.jsonl")
    assert [one["seq"] for one in whole] == list(range(1, len(whole) + 1))
    if not interval_s:
        assert found == []
        return
    started = next(one for one in whole if one["event"] == "started")
    times = [datetime.fromisoformat(one["ts"]).timestamp() for one in (started, *found)]
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert len(found) >= 2
    assert min(gaps[1:]) > interval_s - 0.1  # `ts` is from another clock, and a moment later
    reached = [one["step"] for one in found]
    assert reached == sorted(set(reached))
    assert 0 < reached[0] < reached[-1] <= steps
    assert all(0 <= one["data_wait_share"] <= 1 for one in found)
