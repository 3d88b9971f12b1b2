"""docs/gates.md: its table of endings, its keys and its example say what the gates do."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from trn.errors import STATUS
from trn.gates import READING_RANGES, GateRules, GateState, Verdict, after_validation
from trn.gates.verdict import Ends
from trn.spec.schema import GatesSpec, GuardSpec

PAGE = (Path(__file__).parents[2] / "docs/gates.md").read_text()
EXAMPLE = GateRules(cross_entropy=True, regime="finetune", target_val_loss=2.2, patience=1, min_epochs=3)


def rows(first_cell: str) -> list[list[str]]:
    """The cells of the table rows whose first cell matches."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:1] == "|"]
    return [cells for cells in lines if re.fullmatch(first_cell, cells[0])]


def test_every_ending_stands_in_the_table_with_its_exit_code() -> None:
    found: dict[str, int] = {}
    for cells in rows(r"G\d .*"):
        words = re.findall(r"`(\w+)`", cells[2])
        found |= dict(zip(words, map(int, re.findall(r"\d+", cells[3])), strict=True))
    assert found == {word: STATUS[word].exit for word in get_args(Ends) if word != "completed"}


def test_every_rule_and_reading_is_named_and_every_default_is_the_spec_s() -> None:
    printed = dict(re.findall(r"^  (\w+): (\S+)", PAGE, re.MULTILINE))
    spec = GatesSpec().model_dump() | GuardSpec().model_dump()
    assert printed == {name: value if isinstance(value, str) else json.dumps(value) for name, value in spec.items()}
    rules = asdict(GateRules())
    assert rules.items() >= {name: value for name, value in spec.items() if name != "regime"}.items()
    assert rules.keys() - spec.keys() == {"cross_entropy", "vocab_size"}
    for key in READING_RANGES:
        assert f"`{key}`" in PAGE


def after(losses: list[float]) -> tuple[GateState, Verdict | None]:
    state, verdict = GateState(), None
    for epoch, loss in enumerate(losses):
        assert verdict is None
        state, verdict = after_validation(state, EXAMPLE, loss, epoch)
    return state, verdict


def test_the_example_goes_as_printed() -> None:
    table = rows(r"\d")
    losses = [float(cells[1]) for cells in table]
    for number, cells in enumerate(table, 1):
        state, verdict = after(losses[:number])
        assert (state.best_loss, state.counter) == (float(cells[2]), int(cells[3]))
        assert (None if verdict is None else f"`{verdict.outcome}`" in cells[4]) == (None if number < 4 else True)
    for loss, outcome in ((2.3, "early_stopped"), (8.5, "divergence"), (math.nan, "numerical_instability")):
        verdict = after([*losses[:-1], loss])[1]
        assert verdict is not None
        assert verdict.outcome == outcome
