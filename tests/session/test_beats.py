"""The event `heartbeat` of a loop of one's own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import trn
from support.compare import events
from support.own_loop import open_and


def test_a_step_that_ends_after_the_interval_tells_one(spec: dict[str, Any], tmp_path: Path) -> None:
    def train(run: trn.Run) -> None:
        for number, _ in enumerate(run.feed):
            if number == 2:
                time.sleep(1.05)
            run.log(train_loss=1.0)

    run = open_and({**spec, "heartbeat": {"interval_seconds": 1}}, tmp_path, train)
    found = events(tmp_path / "run", "heartbeat")
    assert 1 <= len(found) <= 8
    assert found[0]["step"] <= 3 <= found[-1]["step"]
    assert run.plan.heartbeat_s == 1
