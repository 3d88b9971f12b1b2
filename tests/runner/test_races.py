"""Many starters for one run id, in processes of their own: the rename and the lock let exactly one in.

What they do is what a runner does between its plan and its first step, without the plan: making the folder, or taking
one that exists. `python tests/runner/test_races.py ROUNDS STARTERS` runs more of them.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trn.errors import PlanRefused, ResumeRefused
from trn.files import Holder, holder_note, is_locked
from trn.plan import publish_run
from trn.records import new_job_id
from trn.runner.start import claim

ROUNDS, STARTERS = 5, 10
WAIT_S = 60.0


def plan_of(run_dir: Path) -> Any:
    return SimpleNamespace(run_dir=str(run_dir), runs_dir=str(run_dir.parent), to_bytes=lambda: b"{}\n")


def start(run_dir: Path) -> Any:
    job_id = new_job_id()
    return publish_run(plan_of(run_dir), {}, job_id=job_id, note=holder_note(job_id))


def resume(run_dir: Path) -> Any:
    return claim(run_dir, new_job_id())


def starter(how: str, runs_dir: Path, rounds: int, gate: Barrier, told: Any) -> None:
    """Try each round with all the others; whoever wins holds the run until all have tried."""
    for number in range(rounds):
        lock = None
        gate.wait(WAIT_S)
        try:
            lock = (start if how == "start" else resume)(runs_dir / f"run-{number}")
            told.put((number, "won"))
        except (PlanRefused, ResumeRefused) as error:
            told.put((number, error.code))
        gate.wait(WAIT_S)
        if lock is not None:
            lock.release()


def race(how: str, runs_dir: Path, rounds: int, starters: int) -> list[Counter[str]]:
    """What came of each round."""
    fork = multiprocessing.get_context("fork")
    gate, told = fork.Barrier(starters), fork.Queue()
    processes = [fork.Process(target=starter, args=(how, runs_dir, rounds, gate, told)) for _ in range(starters)]
    for process in processes:
        process.start()
    found: list[Counter[str]] = [Counter() for _ in range(rounds)]
    for _ in range(rounds * starters):
        number, word = told.get(timeout=WAIT_S)
        found[number][word] += 1
    for process in processes:
        process.join(WAIT_S)
        assert process.exitcode == 0
    return found


@pytest.mark.parametrize(("how", "refusal"), [("start", "plan_refused"), ("resume", "resume_refused")])
def test_of_many_starters_of_one_run_exactly_one_wins(tmp_path: Path, how: str, refusal: str) -> None:
    if how == "resume":
        for number in range(ROUNDS):
            start(tmp_path / f"run-{number}").release()
    assert race(how, tmp_path, ROUNDS, STARTERS) == [{"won": 1, refusal: STARTERS - 1}] * ROUNDS
    for number in range(ROUNDS):
        lock = tmp_path / f"run-{number}/.lock"
        assert is_locked(lock) is None
        assert Holder.read(lock.read_text()).generation == (2 if how == "resume" else 1)
    staging = tmp_path / ".trn/staging"
    assert list(staging.iterdir()) == []


def main() -> None:
    rounds, starters = map(int, sys.argv[1:])
    for how in ("start", "resume"):
        with tempfile.TemporaryDirectory() as folder:
            for number in range(rounds if how == "resume" else 0):
                start(Path(folder) / f"run-{number}").release()
            began_s = time.perf_counter()
            found = race(how, Path(folder), rounds, starters)
        winners = Counter(one["won"] for one in found)
        print(f"{how}: {rounds} races of {starters}, winners {dict(winners)}, {time.perf_counter() - began_s:.1f} s")


if __name__ == "__main__":
    main()
