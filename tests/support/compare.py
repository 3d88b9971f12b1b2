"""Are two runs the same, bit for bit? The oracle is always the run that nobody interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trn import testing
from trn.records import Json, ending_of, read_json, read_lines
from trn.testing import assert_same_end
from trn.testing.compare import epoch_artifacts, final_payload, lines

__all__ = ["assert_identical", "differences", "epoch_artifacts", "events", "final_payload", "lines", "outcome"]


def events(run_dir: Path, kind: str | None = None) -> list[Json]:
    return [one for one in read_lines(run_dir / "reports/events.jsonl") if kind in (None, one["event"])]


def outcome(run_dir: Path) -> Json:
    return read_json(run_dir / "reports/outcome.json")


def differences(path: str, a: Any, b: Any) -> list[str]:
    """Dotted paths at which two trees of tensors and plain values differ in any bit."""
    return [one.path for one in testing.differences(a, b, path)]


def assert_identical(run_dir: Path, oracle: Path) -> None:
    """Weights, optimizer, random streams, cursor, every metrics line, samples and the final state of the outcome."""
    assert_same_end(run_dir, oracle)
    assert len(events(run_dir, ending_of(outcome(run_dir)["status"]))) == 1
    numbers = [event["seq"] for event in events(run_dir)]
    assert numbers == list(range(1, len(numbers) + 1))
