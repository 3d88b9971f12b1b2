"""What we ship keeps every promise that we ask of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trn.testing import check_trainer

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.slow


def test_the_table_example_keeps_every_promise_also_of_its_export() -> None:
    report = check_trainer(None, spec=EXAMPLES / "table" / "spec.yaml", export=True)
    assert dict(report.skipped) == {}
    assert report.proven[-1] == "export"


def test_the_language_model_keeps_every_promise() -> None:
    tokens = np.random.default_rng(0).integers(0, 50, (24, 17)).astype(np.int32)
    params = {"vocab": 50, "width": 16, "heads": 2, "depth": 1, "context": 16}
    report = check_trainer("lm", rows={"tokens": tokens}, params=params, spec={"optimizer": {"lr": 0.02}})
    assert set(report.skipped) == {"export", "refuses"}
