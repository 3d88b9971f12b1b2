"""One line for a person: what is said of steps, events and outcomes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest

from support.stand_in import outcome_of_job
from trn.doors.lines import (
    duration,
    event_line,
    number,
    outcome_line,
    size,
    standing_line,
    value_line,
    waiting_line,
)
from trn.doors.progress import PlainDisplay, TerminalDisplay
from trn.doors.standing import Standing, after_event, after_metrics, data_wait, eta_s
from trn.records import EVENT_KINDS

LINE = {
    "step": 120,
    "train_loss": 3.41234,
    "lr": 5e-4,
    "tokens_per_sec": 12345.6,
    "wall_ms": 100.0,
    "data_wait_ms": 1.0,
}


def started(max_steps: int = 400) -> Standing:
    return after_event(Standing(), {"event": "started", "step": 0, "max_steps": max_steps})


def test_a_step_is_one_line() -> None:
    standing = after_metrics(started(), LINE)
    assert standing_line(standing) == "step 120/400  loss 3.412  lr 5.0e-04  12.3k tokens/s  eta 0:28"


def test_what_is_unknown_is_left_out() -> None:
    assert standing_line(Standing()) == "step 0"
    nulls: dict[str, Any] = dict.fromkeys(("train_loss", "lr", "tokens_per_sec", "samples_per_sec", "wall_ms"))
    assert standing_line(after_metrics(started(), {"step": 1, **nulls})) == "step 1/400"
    assert standing_line(after_metrics(Standing(), {"step": 1, "samples_per_sec": 31.25})) == "step 1  31.25 samples/s"


def test_the_time_left_follows_the_pace_of_the_last_steps() -> None:
    standing = started(100)
    assert eta_s(standing) is None
    for step in range(1, 51):
        standing = after_metrics(standing, {"step": step, "wall_ms": 1000.0 if step < 10 else 200.0})
    assert eta_s(standing) == pytest.approx(50 * 0.2, rel=0.1)


def after_waits(waits_ms: Sequence[float], wall_ms: float = 100.0) -> Standing:
    standing = started()
    for step, wait_ms in enumerate(waits_ms, 1):
        standing = after_metrics(standing, {"step": step, "wall_ms": wall_ms, "data_wait_ms": wait_ms})
    return standing


def test_a_run_that_waits_for_its_data_is_told_so_from_a_fifth_of_its_time_on() -> None:
    wait = data_wait(after_waits([43.0] * 100))
    assert wait is not None
    assert wait == pytest.approx((0.43, 100))
    assert waiting_line(wait) == (
        "43% of the last 100 steps was waiting for rows; see dataset.readahead, workers, cache (docs/data.md)"
    )
    assert "43% waiting for data" in standing_line(after_waits([43.0] * 100))
    for waits in ([20.0] * 100, [90.0] * 9, []):
        standing = after_waits(waits)
        assert waiting_line(data_wait(standing)) is None
        assert "waiting" not in standing_line(standing)
    assert data_wait(after_waits([90.0] * 9)) is None


def test_only_the_last_hundred_steps_say_whether_a_run_waits() -> None:
    assert data_wait(after_waits([90.0] * 500 + [10.0] * 100)) == pytest.approx((0.1, 100))
    assert data_wait(after_waits([10.0] * 100 + [90.0] * 10)) == pytest.approx((17.1 / 99, 100), rel=0.1)


def test_the_first_batch_after_a_start_does_not_count_as_waiting() -> None:
    standing = started()
    for step in range(1, 41):
        wait_ms = 4000.0 if step == 1 else 0.1
        standing = after_metrics(standing, {"step": step, "wall_ms": wait_ms + 5, "data_wait_ms": wait_ms})
    wait = data_wait(standing)
    assert wait is not None
    assert wait.share < 0.05
    assert wait.steps == 40


def test_a_resume_and_an_evaluation_move_the_standing() -> None:
    standing = after_event(after_metrics(started(), LINE), {"event": "resumed", "from_step": 100})
    assert standing.step == 100
    standing = after_event(standing, {"event": "evaluated", "step": 100, "metrics": {"val_loss": 2.5}})
    assert "val_loss 2.5" in standing_line(standing)


FIELDS = ("step", "max_steps", "from_step", "metrics", "paths", "file", "size_bytes", "scale", "lr_factor", "max_abs")


@pytest.mark.parametrize("junk", [None, "x", [], {}, True, 1e308, -1, 10**400])
def test_junk_in_a_journal_is_shown_not_raised(junk: Any) -> None:
    standing = after_metrics(Standing(), dict.fromkeys(LINE, junk))
    for kind in EVENT_KINDS:
        fields: dict[str, Any] = dict.fromkeys(FIELDS, junk)
        event = {"event": kind, **fields}
        standing = after_event(standing, event)
        assert event_line(event)
    assert standing_line(standing)


def test_each_kind_of_event_has_its_words() -> None:
    head = {"run_id": "demo", "job_id": "job-1", "seq": 1, "ts": "2026-01-01T00:00:00Z", "step": 3}
    events: dict[str, dict[str, Any]] = {
        "plan_written": {"fingerprint": "abcdef0123456789"},
        "job_started": {"pid": 5, "resume": True},
        "resumed": {"from_step": 2, "checkpoint": None},
        "started": {"max_steps": 9},
        "checkpoint": {"file": "step-3.pt", "size_bytes": 1_234_567, "sha256": "a"},
        "evaluated": {"metrics": {"val_loss": 2.34567, "note": "x"}},
        "sample": {"paths": ["samples/a.txt", "samples/b.txt"]},
        "heartbeat": {"alive": True},
        "failed": {"outcome": "crashed", "exit_code": 71, "reason": "killed"},
        "completed": {"outcome": "target_reached", "exit_code": 0, "reason": "target_reached"},
    }
    said = {kind: event_line({"event": kind, **head, **fields}) for kind, fields in events.items()}
    assert said == {
        "plan_written": "planned, fingerprint abcdef012345",
        "job_started": "job job-1 resumes (process 5)",
        "resumed": "resumed from step 2 (no checkpoint yet)",
        "started": "training from step 3 to 9",
        "checkpoint": "checkpoint step-3.pt at step 3 (1.2 MB)",
        "evaluated": "evaluated at step 3: val_loss 2.346  note x",
        "sample": "sample at step 3: samples/a.txt, samples/b.txt",
        "heartbeat": "heartbeat step=3 alive=True",
        "failed": "crashed at step 3 (exit 71): killed",
        "completed": "target_reached at step 3 (exit 0)",
    }


def test_an_event_cannot_colour_the_terminal() -> None:
    assert event_line({"event": "stop_requested", "reason": "\x1b[2Jgone\nnext"}) == "asked to stop: gone next"


def test_numbers_sizes_and_durations() -> None:
    assert [number(value) for value in (2.0, 0.000123456, 123456.0)] == ["2", "0.0001235", "1.235e+05"]
    assert [size(value) for value in (7, 1500, 2_500_000, 3e9, 4e12)] == [
        "7 bytes",
        "1.5 kB",
        "2.5 MB",
        "3.0 GB",
        "4000.0 GB",
    ]
    assert [duration(value) for value in (0.4, 59.6, 3599.7, 86400)] == ["0:00", "1:00", "1:00:00", "24:00:00"]


def test_an_outcome_and_its_values(tmp_path: Any) -> None:
    outcome = outcome_of_job(tmp_path, "job-1", "completed", 9).to_json()
    assert outcome_line(outcome) == "completed at step 9 (exit 0)"
    assert value_line(outcome["final"]) == "val_loss 2.5 (step 9)"
    assert value_line(outcome["best"]) == "val_loss 2.25 (step 9)"
    assert value_line(None) == "none"


# displays


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_without_a_terminal_there_is_a_line_every_ten_seconds_and_one_for_an_event() -> None:
    stream, clock = io.StringIO(), Clock()
    display = PlainDisplay(stream, clock=clock)
    standing = started(1000)
    for step in range(1, 101):
        clock.now_s += 1.0
        standing = after_metrics(standing, {"step": step, "train_loss": 1.0})
        display.update(standing, [])
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == [f"{n}/1000" for n in range(1, 100, 10)]
    display.update(standing, [{"event": "evaluated", "step": 100, "metrics": {"val_loss": 2.0}}])
    assert stream.getvalue().splitlines()[-2:] == ["evaluated at step 100: val_loss 2", "step 100/1000  loss 1"]


def test_a_cadence_of_every_step_does_not_flood() -> None:
    stream = io.StringIO()
    events = [{"event": "checkpoint", "step": n, "file": f"step-{n}.pt", "size_bytes": 1} for n in range(50)]
    PlainDisplay(stream, clock=Clock()).update(Standing(), [*events, {"event": "metric", "step": 49}])
    assert stream.getvalue() == "checkpoint step-49.pt at step 49 (1 bytes)\n"


def test_a_terminal_has_a_live_line_with_prints_above_it() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    display = TerminalDisplay(stream)
    display.line("[bold]not markup[/bold] :smile:")
    display.update(after_metrics(started(), LINE), [{"event": "stop_requested", "reason": "SIGTERM"}])
    display.line("printed by the trainer")
    display.close()
    display.line("after")
    text = stream.getvalue()
    assert "[bold]not markup[/bold] :smile:\n" in text
    assert "step 120/400  loss 3.412" in text
    assert text.index("asked to stop: SIGTERM") < text.index("printed by the trainer") < text.index("after")


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"event": "gate", "field": "grad_norm", "value": "inf", "row_ids": [4, 5], "gate": "numerical_stability"},
            "step 7 refused: grad_norm is inf (rows 4, 5)",
        ),
        (
            {"event": "gate", "field": "val_loss", "value": "nan", "row_ids": [], "gate": "numerical_stability"},
            "step 7 refused: val_loss is nan (no rows of the training data)",
        ),
        (
            {"event": "gate", "gate": "patience", "outcome": "early_stopped", "reason": "no better val_loss"},
            "early_stopped at step 7: no better val_loss",
        ),
        ({"event": "gate", "gate": "telemetry", "fields": ["wall_ms"]}, "not believed at step 7: wall_ms"),
        (
            {"event": "step_skipped", "field": "train_loss", "value": "nan", "row_ids": [*range(9)], "lr_factor": 0.25},
            "a batch for step 7 left out: train_loss is nan (rows 0, 1, 2, 3 ...); learning rate x 0.25 from here on",
        ),
    ],
)
def test_what_a_gate_did_is_said_in_words(fields: dict[str, Any], line: str) -> None:
    assert event_line({**fields, "step": 7}) == line
