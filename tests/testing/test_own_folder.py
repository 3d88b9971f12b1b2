"""check_trainer proves of `save_checkpoint` and `load_checkpoint` that they give back what they keep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.with_hooks import TRAINER
from trn.testing import check_trainer

ROWS = {"x": "float32[8]", "y": "float32"}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_hooks_of_a_test"
    import sys

    sys.modules.pop("own_hooks_of_a_test", None)


def checked(module: str, tmp_path: Path, code: str) -> object:
    (tmp_path / f"{module}.py").write_text(code)
    import pyarrow as pa

    values = [float(number % 7) / 7 for number in range(64 * 8)]
    rows = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float32()), 8),
                     "y": pa.array(values[:64], pa.float32())})  # fmt: skip
    return check_trainer(f"{module}:Hooked", rows=rows, params={"quiet": []}, learns=False, folder=tmp_path / "runs")


@pytest.mark.slow
def test_a_pair_that_gives_everything_back_is_proven(module: str, tmp_path: Path) -> None:
    assert "resume" in str(checked(module, tmp_path, TRAINER))


@pytest.mark.slow
def test_one_that_forgets_half_of_it_breaks_the_resume(module: str, tmp_path: Path) -> None:
    forgets = re.sub(r'\n +state\["head"\]\.load_state_dict\(torch\.load.*', "", TRAINER)
    assert forgets != TRAINER
    with pytest.raises(AssertionError, match=r"check_trainer \[resume\]"):
        checked(module, tmp_path, forgets)


@pytest.mark.slow
def test_one_that_writes_the_time_breaks_the_resume(module: str, tmp_path: Path) -> None:
    clocked = TRAINER.replace("{final}", "{__import__('time').time_ns()}")
    assert clocked != TRAINER
    with pytest.raises(AssertionError, match=r"what save_checkpoint wrote at the end"):
        checked(module, tmp_path, clocked)
