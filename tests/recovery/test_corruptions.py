"""Damage to what a resume reads is found before any state is applied; the run then ends identical, or is refused.

TRN_CORRUPTIONS sets how many.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.compare import assert_identical, events, outcome
from support.forkserver import ForkServer
from support.job import command
from trn.checkpoint.meta import checkpoint_name, listed_steps, meta_name

CASES = int(os.environ.get("TRN_CORRUPTIONS", "100"))
Damage = Callable[[Path, random.Random], None]


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def zeros(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    begin = chance.randrange(len(data) - 1)
    length = chance.randint(1, len(data) - begin)
    if not any(data[begin : begin + length]):
        begin, length = 0, len(data)
    data[begin : begin + length] = bytes(length)
    path.write_bytes(data)


def delete(path: Path, chance: random.Random) -> None:
    path.unlink()


def append(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes() + b"{}\n")


def swap(path: Path, chance: random.Random) -> None:
    """With the same kind of file of another checkpoint."""
    kind = ".meta.json" if path.name.endswith(".meta.json") else ".pt"
    others = [one for one in path.parent.glob(f"step-*{kind}") if one != path and one.name != path.name]
    other = chance.choice([one for one in others if not one.name.endswith(".meta.json") or kind == ".meta.json"])
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


DAMAGES: dict[str, list[Damage]] = {
    "pt": [flip, truncate, zeros, delete, append, swap],
    "meta": [flip, truncate, zeros, delete, append, swap],
    "metrics": [flip, truncate, zeros, delete],
}


@pytest.fixture(scope="module")
def killed(server: ForkServer, job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed after step 150, when its newest checkpoint had its event.

    Between the commit and the event, a deleted meta cannot be told from one that was never written.
    """
    while True:
        folder = tmp_path_factory.mktemp("killed")
        run_dir = folder / "run"
        pid = server.start(command(job, folder, "run"), folder / "log")
        while lines_of(run_dir) < 150:
            time.sleep(0.001)
        os.killpg(pid, signal.SIGKILL)
        server.wait(pid)
        announced = [one["step"] for one in events(run_dir, "checkpoint")]
        if listed_steps(run_dir / "checkpoints")[0] == announced[-1]:
            return run_dir


def lines_of(run_dir: Path) -> int:
    path = run_dir / "reports/train_metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def damaged_copy(killed: Path, folder: Path, case: int) -> tuple[Path, str, str]:
    """A copy of the run with one kind of damage to what its newest checkpoint needs; sometimes to all checkpoints."""
    chance = random.Random(case)
    run_dir = folder / "run"
    shutil.copytree(killed, run_dir)
    victim = sorted(DAMAGES)[case % len(DAMAGES)]
    damage = chance.choice(DAMAGES[victim])
    steps = listed_steps(run_dir / "checkpoints")
    name = {"pt": checkpoint_name, "meta": meta_name}.get(victim)
    if name is None:
        path = run_dir / "reports/train_metrics.jsonl"
        seen = path.read_bytes()
        newest_offset = len(b"".join(seen.splitlines(keepends=True)[: steps[0]]))
        path.write_bytes(seen[:newest_offset])
        damage(path, chance)
    else:
        every = damage is not swap and chance.random() < 0.2
        for step in steps if every else steps[:1]:
            damage(run_dir / "checkpoints" / name(step), chance)
    return run_dir, victim, damage.__name__


@pytest.mark.slow
@pytest.mark.parametrize("case", range(CASES))
def test_damage_is_found_before_it_is_believed(
    server: ForkServer, job: Path, oracle: Path, killed: Path, tmp_path: Path, case: int
) -> None:
    run_dir, victim, damage = damaged_copy(killed, tmp_path, case)
    before = events(run_dir)
    log = tmp_path / "log"
    code = server.run(command(job, tmp_path, "run", "--resume"), log)
    note = f"{damage} of {victim}: {log.read_text()}"
    rejected = events(run_dir, "checkpoint_rejected")
    if code == 0:
        assert rejected, f"not found: {note}"
        assert_identical(run_dir, oracle)
        return
    assert code == 91, note
    assert "no_good_checkpoint" in log.read_text()
    assert [one for one in events(run_dir) if one not in before] == [], "a refusal leaves nothing in the journal"
    assert not (run_dir / "reports/outcome.json").exists() or outcome(run_dir)["step"] > 0
