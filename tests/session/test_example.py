"""The example runs as it stands, and the docs show it as it is."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

import trn
from support.compare import outcome
from support.forkserver import ForkServer
from trn.verify import verify_run

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples/own_loop/train.py"


@pytest.mark.slow
def test_the_example_runs_to_its_end_and_learns(server: ForkServer, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert server.wait(server.start(["mine"], log, cwd=tmp_path, script=SCRIPT)) == 0, log.read_text()
    assert "completed at step 640: every step of the budget is made" in log.read_text()
    told = outcome(tmp_path / "runs/mine")
    assert told["exact"] is True
    assert told["best"]["value"] < 0.01
    assert [one.problem for one in verify_run(tmp_path / "runs/mine") if one.problem] == []


def test_the_docs_show_the_example_and_tell_of_every_name() -> None:
    page = (ROOT / "docs/own_loop.md").read_text()
    shown = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert textwrap.indent(shown[0], "    ") in SCRIPT.read_text()
    names = [name for name in dir(trn.Run) if not name.startswith("_")]
    assert [name for name in (*names, "feed", "raw", "steps", "ctx", "outcome") if f"run.{name}" not in page] == []
