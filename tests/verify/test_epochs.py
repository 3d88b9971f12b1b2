"""The artifacts of epochs hold against the journal and the checkpoints; whatever is changed in them is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.forkserver import ForkServer
from support.job import command
from support.scripted import write_scripted
from trn.verify import verify_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("epochs")
    spec = write_scripted(folder / "job", [3.0, 2.0, 2.5, 1.0])
    with ForkServer() as server:
        assert server.run(command(spec, folder, "run"), folder / "log") == 0, (folder / "log").read_text()
    return folder / "run"


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def problems(folder: Path) -> list[str]:
    return [f"{finding.what}: {finding.problem}" for finding in verify_run(folder) if finding.problem is not None]


def test_the_artifacts_of_a_healthy_run_hold(run_dir: Path) -> None:
    assert problems(run_dir) == []
    looked_at = [finding.what for finding in verify_run(run_dir) if "epoch-" in finding.what]
    assert sum("metadata" in what for what in looked_at) == 4
    assert sum("optimizer state" in what for what in looked_at) == 2


def test_weights_whose_hash_nobody_knows_are_not_opened(run_dir: Path) -> None:
    for meta in (run_dir / "checkpoints").glob("step-00000015.*"):
        meta.unlink()
    journal = run_dir / "reports/events.jsonl"
    journal.write_text(journal.read_text().replace('"event":"checkpoint"', '"event":"epoch"'))
    (run_dir / "checkpoints/epoch-002.pt").write_bytes(b"anything")
    said = [finding for finding in verify_run(run_dir) if "epoch-002.pt" in finding.what]
    assert [(finding.problem, "not opened" in finding.what) for finding in said] == [(None, True)]


def damage_of(key: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "epoch-001.metadata.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return change


def flip(folder: Path) -> None:
    path = folder / "epoch-002.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def another_digest(folder: Path) -> None:
    path = folder / "epoch-002.metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"optimizer_state_sha": "0" * 64}))


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (damage_of("train_loss", 0.5), "train_loss is 0.5, by the journal it is"),
    (damage_of("val_loss", 1.9), "val_loss is 1.9, by the journal it is 2.0"),
    (damage_of("val_loss", None), "val_loss is None, by the journal it is 2.0"),
    (damage_of("grad_norm_max", 0.1), "grad_norm_max is 0.1"),
    (damage_of("epoch", 2), "it says epoch 2"),
    (damage_of("tokens_seen", 7), "tokens_seen is 7"),
    (damage_of("val_ppl", 1.0), "val_ppl: expected exp of val_loss"),
    (damage_of("optimizer_state_sha", "0" * 63), "optimizer_state_sha: expected 64 lower hex digits"),
    (damage_of("wall_seconds", -1.0), "wall_seconds: expected a finite float from 0 on"),
    (damage_of("more", 1), "more is unknown"),
    (lambda folder: (folder / "epoch-001.metadata.json").unlink(), "it is missing, and the epoch is over"),
    (lambda folder: (folder / "epoch-001.metadata.json").write_text("{"), "JsonError"),
    (flip, "its sha256 is not that of the checkpoint of step 15"),
    (another_digest, "the digest of its optimizer state is not the one in the metadata"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_whatever_is_changed_in_them_is_found(run_dir: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(run_dir / "checkpoints")
    assert any(said in problem for problem in problems(run_dir)), problems(run_dir)
