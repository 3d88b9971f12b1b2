"""docs/testing.md is true: its tests pass as printed, its table lists the promises, every public name is on it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import trn.testing

from .trainers import PROMISES

PAGE = (Path(__file__).parents[2] / "docs/testing.md").read_text()
UNTOLD = {"BrokenPromise", "CheckReport", "Difference", "Ran"}
"""Types that nobody makes."""


def test_every_public_name_is_explained() -> None:
    for name in set(trn.testing.__all__) - UNTOLD:
        assert f"`{name}(" in PAGE or f"`{name}`" in PAGE or f" {name}(" in PAGE, name


def test_every_promise_is_explained_in_its_order() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGE.split("## Data")[0], re.MULTILINE)
    assert listed == [*PROMISES, "export"]


@pytest.mark.slow
def test_the_tests_on_the_page_pass_as_they_stand(tmp_path: Path) -> None:
    example, _kills = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "test_example.py").write_text(example)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_example.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout
