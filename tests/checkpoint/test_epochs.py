"""The artifact of an epoch: written when all of it is known, its digest that of the state."""

from __future__ import annotations

from pathlib import Path

import torch

from trn.checkpoint.epochs import listed_epochs, metadata_name, publish_epoch, state_sha256
from trn.checkpoint.meta import checkpoint_name
from trn.checkpoint.saver import Saver
from trn.records import Json, read_json


def metadata_of(epoch: int, val_loss: float | None) -> Json:
    return {"epoch": epoch, "val_loss": val_loss, "optimizer_state_sha": None, "wall_seconds": 1.0}


def saver_in(folder: Path, *, keep_epochs: int = 0) -> Saver:
    return Saver(
        folder,
        run_id="run",
        job_id="job",
        plan_fingerprint="0" * 64,
        keep=2,
        keep_epochs=keep_epochs,
        sync_journal=lambda: None,
    )


def test_it_is_completed_where_it_is_missing_or_says_less_than_is_known_now(tmp_path: Path) -> None:
    state = {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    torch.save({"trainer": state}, tmp_path / checkpoint_name(5))
    saver, path = saver_in(tmp_path), tmp_path / metadata_name(0)
    saver.complete_epoch(5, metadata_of(0, None))
    assert read_json(path)["optimizer_state_sha"] == state_sha256(state["optimizer"])
    before = path.stat().st_ino
    saver.complete_epoch(5, metadata_of(0, None) | {"wall_seconds": 2.0})
    assert path.stat().st_ino == before, "it was written again although nothing new is known"
    saver.complete_epoch(5, metadata_of(0, 3.0))
    assert read_json(path)["val_loss"] == 3.0


def test_no_more_weights_are_kept_than_asked_for(tmp_path: Path) -> None:
    saver = saver_in(tmp_path, keep_epochs=2)
    for epoch in range(4):
        torch.save({"trainer": {}}, tmp_path / checkpoint_name(epoch + 1))
        saver.complete_epoch(epoch + 1, metadata_of(epoch, 1.0))
    assert listed_epochs(tmp_path) == [3, 2, 1, 0]
    assert sorted(path.name for path in tmp_path.glob("epoch-*.pt")) == ["epoch-002.pt", "epoch-003.pt"]


def test_the_digest_sees_every_bit_type_shape_and_key() -> None:
    states = [
        {"a": torch.tensor([1.0, 2.0])},
        {"a": torch.tensor([1.0, 2.0]).bfloat16()},
        {"a": torch.tensor([[1.0, 2.0]])},
        {"a": torch.tensor([1.0, -2.0])},
        {"b": torch.tensor([1.0, 2.0])},
        {0: torch.tensor([1.0, 2.0])},
        {"0": torch.tensor([1.0, 2.0])},
        {"a": [torch.tensor([1.0, 2.0])]},
        {"a": 1.0},
        {"a": 1},
        {"a": True},
        {"a": None},
        {"a": "1"},
        {},
    ]
    assert len({state_sha256(state) for state in states}) == len(states)
    assert state_sha256({"a": 1, "b": 2}) == state_sha256({"b": 2, "a": 1})
    column = torch.arange(6.0).reshape(2, 3).t()
    assert state_sha256(column) == state_sha256(column.contiguous())


def test_an_artifact_of_a_trainer_without_an_optimizer_has_no_digest(tmp_path: Path) -> None:
    torch.save({}, tmp_path / checkpoint_name(1))
    publish_epoch(tmp_path / checkpoint_name(1), metadata_of(0, 1.0), {"weights": torch.ones(2)})
    assert read_json(tmp_path / metadata_name(0))["optimizer_state_sha"] is None
