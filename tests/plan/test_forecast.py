"""What a run will take, by numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.plans import plan_of
from trn.plan.forecast import Files, Forecast, Sizes, few_tokens, files_of, forecast_of, row_length, rows_read
from trn.spec.plan_model import BudgetPlan, Plan, ValidationPlan

SIZES = Sizes(
    parameters=10,
    trainable=8,
    weights_bytes=44,
    gradients_bytes=32,
    optimizer_bytes=72,
    average_bytes=0,
    saved_bytes=112,
    saved_tensors=5,
    file_bytes=5 * 4096,
)
"""Ten float32 and one buffer; two of them frozen; Adam's two moments and a step for each of two tensors."""
TOKENS = {"name": "tokens", "type": "fixed_size_list<element: int32>[257]"}


def planned(*, steps: int = 10, per_epoch: int = 5, **changes: Any) -> Plan:
    """A plan over 100 rows in batches of 8; `changes` are of the plan, of its `dataset`, `checkpoint` or `trainer`."""
    plan = plan_of(Path("runs/demo"), max_steps=steps)
    budget = plan.budget.model_copy(
        update={
            "max_steps": steps,
            "steps_per_epoch": per_epoch,
            "batches_per_pass": changes.pop("batches_per_pass", 13),
        }
    )
    data = {"fingerprint": "0" * 64, "rows": 100, "columns": changes.pop("columns", [TOKENS])}
    parts: dict[str, Any] = {"budget": budget}
    for name, more in {"dataset": {"data": data, "batch_size": 8}, "checkpoint": {}, "trainer": {}}.items():
        parts[name] = getattr(plan, name).model_copy(update={**more, **changes.pop(name, {})})
    return plan.model_copy(update={**parts, **changes})


def validated(every_steps: int, every_epochs: int) -> ValidationPlan:
    return ValidationPlan(
        data={}, columns=["x"], batch_size=8, every_steps=every_steps, every_epochs=every_epochs, max_batches=0
    )


def forecast(plan: Plan, sizes: Sizes | None = SIZES, **changes: Any) -> Forecast:
    values: dict[str, Any] = {"tokens_per_row": 256, "free_bytes": 10**9, "unknown": {}}
    return forecast_of(plan, sizes, **(values | changes))


def test_memory_is_weights_gradients_optimizer_and_a_copy_to_save() -> None:
    assert SIZES.memory_bytes == 44 + 32 + 72 + 112 == 260


def test_a_checkpoint_is_its_tensors_and_what_stands_beside_them() -> None:
    assert SIZES.checkpoint_bytes == 5 * 4096 + 5 * 200 + 80_000 == 101_480


@pytest.mark.parametrize(
    ("remainder", "steps", "expected"),
    [("carry", 10, 80), ("carry", 30, 240), ("drop", 30, 240), ("keep", 10, 80), ("keep", 13, 100), ("keep", 30, 232)],
)
def test_rows_are_counted_as_often_as_they_are_read(remainder: str, steps: int, expected: int) -> None:
    # keep: a pass is 12 batches of 8 and one of 4; 30 steps are two passes and four batches
    assert rows_read(planned(steps=steps, dataset={"remainder": remainder})) == expected


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([TOKENS], 257),
        ([{"name": "x", "type": "float"}, TOKENS], 257),
        ([TOKENS, {"name": "mask", "type": "fixed_size_list<item: bool not null>[257]"}], 257),
        ([TOKENS, {"name": "other", "type": "fixed_size_list<element: float>[8]"}], None),
        ([{"name": "tokens", "type": "list<element: int32>"}], None),
        ([], None),
    ],
)
def test_a_row_is_as_long_as_its_lists_of_fixed_length(columns: list[dict[str, str]], expected: int | None) -> None:
    assert row_length(planned(columns=columns).dataset) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # nothing but the last one
        ({}, Files(newest=1, best=0, epochs=0, written=0)),
        # at 100, 200 ... 1000: three stay, the fourth is written before the oldest goes
        ({"steps": 1000, "checkpoint": {"every_steps": 100}}, Files(newest=3, best=0, epochs=0, written=1)),
        # as many as there will ever be
        ({"steps": 2, "checkpoint": {"every_steps": 1}}, Files(newest=2, best=0, epochs=0, written=0)),
        # ten epochs: two newest, the best, the artifact of one epoch
        (
            {
                "steps": 1000,
                "per_epoch": 100,
                "validation": validated(0, 1),
                "checkpoint": {"every_epochs": 1, "keep": 2, "keep_epochs": 1, "best_metric": "val_loss"},
            },
            Files(newest=2, best=1, epochs=1, written=1),
        ),
        # every second epoch, all of them kept
        (
            {"steps": 1000, "per_epoch": 100, "checkpoint": {"every_epochs": 2, "keep_epochs": 0}},
            Files(newest=3, best=0, epochs=3, written=0),
        ),
        # an evaluation in the middle and one at the end may each be the best
        (
            {"steps": 10, "validation": validated(5, 0), "checkpoint": {"keep": 2, "best_metric": "val_loss"}},
            Files(newest=2, best=1, epochs=0, written=1),
        ),
    ],
)
def test_files_are_the_newest_the_best_those_of_epochs_and_one_in_writing(
    changes: dict[str, Any], expected: Files
) -> None:
    assert files_of(planned(**changes)) == expected


def test_the_document_has_every_number() -> None:
    plan = planned(steps=1000, checkpoint={"every_steps": 100}, trainer={"counts": "tokens"})
    assert forecast(plan, notes=["a word"]).to_json() == {
        "steps": 1000,
        "batches_per_pass": 13,
        "rows": 100,
        "passes": 80.0,
        "tokens": 1000 * 8 * 256,
        "tokens_per_parameter": 204800.0,
        "parameters": {"total": 10, "trainable": 8},
        "memory": {
            "weights_bytes": 44,
            "gradients_bytes": 32,
            "optimizer_bytes": 72,
            "average_bytes": 0,
            "staging_bytes": 112,
            "total_bytes": 260,
        },
        "disk": {
            "checkpoint_bytes": 101_480,
            "files": {"newest": 3, "best": 0, "epochs": 0, "written": 1, "most": 4},
            "most_bytes": 4 * 101_480,
            "free_bytes": 10**9,
        },
        "seconds": None,
        "unknown": {"seconds": "not measured"},
        "notes": ["a word"],
        "warnings": [],
    }


def test_what_is_not_known_is_null_with_its_reason_and_nothing_follows_from_it() -> None:
    plan = planned(trainer={"counts": "tokens"})
    why = {"parameters": "because", "tokens": "therefore"}
    told = forecast(plan, None, tokens_per_row=None, free_bytes=0, unknown=why)
    document = told.to_json()
    for key in ("parameters", "memory", "tokens", "tokens_per_parameter", "seconds"):
        assert document[key] is None
    assert (document["disk"]["checkpoint_bytes"], document["disk"]["most_bytes"]) == (None, None)
    assert document["unknown"] == {**why, "seconds": "not measured"}
    assert document["warnings"] == []
    assert list(told.lines()) == [
        "what run demo will take; nothing was started and nothing written",
        "  model   unknown: because",
        "  disk    up to 1 checkpoint (1 newest) of unknown size; 0 bytes free",
        "  steps   10 of 8 rows",
        "  data    100 rows, 13 batches a pass; read 0.8 times",
        "  tokens  unknown: therefore",
        "  time    unknown: not measured",
    ]


def test_people_are_told_the_same() -> None:
    plan = planned(steps=1000, checkpoint={"every_steps": 100})
    large = Sizes(3_000_000, 2_000_000, 12_000_000, 8_000_000, 16_000_000, 0, 28_000_000, 100, 28_400_000)
    assert list(forecast(plan, large, tokens_per_row=None, notes=["a word"]).lines())[1:] == [
        "  model   3,000,000 parameters, 1,000,000 of them frozen",
        "  memory  64.0 MB and the activations: weights 12.0 MB, gradients 8.0 MB, optimizer 16.0 MB, a copy to save"
        " 28.0 MB",
        "  disk    up to 114.0 MB: 4 checkpoints of 28.5 MB (3 newest, 1 in writing); 1.0 GB free",
        "  steps   1,000 of 8 rows",
        "  data    100 rows, 13 batches a pass; read 80 times",
        "  time    unknown: not measured",
        "note: a word",
    ]


def test_a_disk_without_room_is_a_warning() -> None:
    plan = planned(steps=1000, checkpoint={"every_steps": 100}, runs_dir="/data/\x1b[31mruns")
    assert forecast(plan, free_bytes=4 * 101_480).warnings() == []
    (warning,) = forecast(plan, free_bytes=4 * 101_480 - 1).warnings()
    assert warning == (
        "checkpoints take up to 405.9 kB, 405.9 kB are free in /data/\\x1b[31mruns; free some space, or lower"
        " checkpoint.keep or keep_epochs."
    )


@pytest.mark.parametrize(("tokens", "is_few"), [(199, True), (200, False), (0, True)])
def test_fewer_than_20_tokens_a_parameter_are_few(tokens: int, is_few: bool) -> None:
    said = few_tokens(planned(), tokens, 10)
    assert (said is not None) is is_few


def test_the_warning_says_both_numbers_and_their_ratio() -> None:
    (warning,) = forecast(planned(), Sizes(10**6, 10**6, 0, 0, 0, 0, 0, 0, 0)).warnings()
    assert warning == (
        "20,480 tokens for 1,000,000 parameters are 0.0205 a parameter; below 20, more text or a smaller model gives a"
        " lower loss for the same work."
    )


def test_a_model_that_is_only_tuned_needs_no_such_text() -> None:
    plan = planned()
    tuned = plan.model_copy(update={"gates": plan.gates.model_copy(update={"regime": "finetune"})})
    assert few_tokens(tuned, 1, 10) is None


def test_a_budget_without_a_cadence_has_one_checkpoint() -> None:
    budget = BudgetPlan(max_steps=3, steps_per_epoch=10, batches_per_pass=10, by_passes=False)
    assert files_of(planned().model_copy(update={"budget": budget})).most == 1
