"""What `trn run` costs before its first step, and what it leaves as it found it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlp
import pytest
import startup

WATCHED = """
import gc
from pathlib import Path

import mlp


class Watched(mlp.Classifier):
    def loss(self, model, batch):
        with open("seen", "a") as seen:
            seen.write(f"{gc.isenabled()} {gc.get_freeze_count() > 10_000}\\n")
        return super().loss(model, batch)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The data and the spec of the small classifier, its trainer beside them."""
    mlp.make(tmp_path, rows=4096)
    shutil.copy(startup.HERE / "mlp.py", tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_run_costs_at_most_a_second_more_than_a_script(folder: Path) -> None:
    """CPU time of all processes, the least of three: 0.4 s less than the script when measured."""
    starts = [(startup.start_by_hand(folder), startup.start_by_trn(folder)) for _ in range(3)]
    by_hand, by_trn = (min(start.cpu_s for start in one) for one in zip(*starts, strict=True))
    assert by_trn < by_hand + startup.MOST_ABOVE_HAND_S
    assert all(seconds >= 0 for seconds in starts[0][1].phases_s.values())


@pytest.mark.slow
def test_garbage_is_collected_while_a_trainer_works_but_modules_are_left_alone(folder: Path) -> None:
    (folder / "watched.py").write_text(WATCHED)
    sets = ["trainer=watched:Watched", "max_steps=2", "schedule.warmup_steps=0"]
    command = [sys.executable, "-m", "trn.doors.cli", "run", "--config", "spec.yaml"]
    environment = {**os.environ, "TRN_RUNS_DIR": str(folder / "runs")}
    arguments = [part for one in sets for part in ("--set", one)]
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "seen").read_text() == "True True\n" * 2
