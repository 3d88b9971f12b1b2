"""A rate that follows the evaluations, in real runs: stopped in the middle of one, and killed, it is the same run."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.compare import assert_identical, lines
from support.forkserver import ForkServer
from support.job import command
from support.scripted import write_scripted

pytestmark = pytest.mark.slow

MORE = "schedule: {kind: reduce_on_plateau, lr_max: 0.01, arguments: {patience: 0, factor: 0.5}, warmup_steps: 2}"
LOSSES = [3.0, 3.0, 3.0, 2.0, 2.0]


def test_an_evaluation_that_a_stop_cut_short_counts_once(server: ForkServer, tmp_path: Path) -> None:
    spec, log = write_scripted(tmp_path / "job", LOSSES, more=MORE), tmp_path / "log"
    assert server.run(command(spec, tmp_path, "oracle"), log) == 0, log.read_text()
    rates = [line["lr"] for line in lines(tmp_path / "oracle", "train_metrics.jsonl")]
    assert rates[:3] == [0.0, 0.005, 0.01]
    # the evaluations after steps 5, 10, 15 and 20: a first loss, two that are no better, and one that is
    assert [rates[index] for index in (5, 9, 10, 15, 20, 24)] == [0.01, 0.01, 0.005, 0.0025, 0.0025, 0.0025]
    for step in (10, 15):
        (spec.parent / "terminate").write_text(str(step))
        assert server.run(command(spec, tmp_path, "run"), log) == 75, log.read_text()
    assert server.run(command(spec, tmp_path, "run"), log) == 0, log.read_text()
    assert_identical(tmp_path / "run", tmp_path / "oracle")


def test_a_longer_budget_goes_on_at_the_rate_that_was_come_to(server: ForkServer, tmp_path: Path) -> None:
    spec, log = write_scripted(tmp_path / "job", LOSSES, more=MORE), tmp_path / "log"
    assert server.run(command(spec, tmp_path, "oracle"), log) == 0, log.read_text()
    short = ["--set", "max_steps=15"]
    assert server.run(command(spec, tmp_path, "run", *short), log) == 0, log.read_text()
    assert server.run(command(spec, tmp_path, "run", "--auto-resume", "--allow-change", "max_steps"), log) == 0, (
        log.read_text()
    )
    rates = [line["lr"] for line in lines(tmp_path / "run", "train_metrics.jsonl")]
    assert rates == [line["lr"] for line in lines(tmp_path / "oracle", "train_metrics.jsonl")]
