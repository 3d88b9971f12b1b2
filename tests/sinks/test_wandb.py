"""An offline folder of Weights & Biases, its records read back from their file. Runs where wandb is installed."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from support.sending import RelayThread, ToyRun, send_all, wait_for
from support.stand_in import outcome_of_job
from trn.files import write_atomic
from trn.records import pretty_json
from trn.sinks.sink import Unreachable
from trn.sinks.targets import open_sink, parse_target
from trn.sinks.wandb import WandbSink


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyRun:
    monkeypatch.setenv("WANDB_MODE", "online")  # what a user may have set for other work
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    return ToyRun(tmp_path / "runs")


def beside(run: ToyRun) -> Path:
    return run.dir.parent / ".trn"


def records(folder: Path) -> list[Record]:
    """Of the one offline run in the folder. Blocks of 32 kB, of pieces with a head of 7 bytes, as in LevelDB's log."""
    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    data = path.read_bytes()
    found, record, at = [], b"", 7
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last piece
            found.append(Record.FromString(record))
            record = b""
    return found


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    points = []
    for record in records(folder):
        row = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        if name in row:
            points.append((int(row["step"]), float(row[name])))
    return sorted(points)


def test_an_offline_folder_has_the_plan_the_curves_and_the_end(run: ToyRun) -> None:
    plan = {"seed": 42, "optimizer": {"name": "adamw"}}
    run.metrics(1, 300, lr=1e-3, tokens_seen=None)
    run.metrics(100, 100, "val")
    outcome = outcome_of_job(run.dir, "job-1", "divergence", 300)
    write_atomic(run.reports / "outcome.json", pretty_json(outcome.to_json()))
    assert send_all("wandb:?project=tables", replace(run.facts, plan=plan)).is_delivered
    assert curve(beside(run), "train/loss") == [(step, 1 / step) for step in range(1, 301)]
    assert curve(beside(run), "val/loss") == [(100, 0.01)]
    found = records(beside(run))
    [told] = [record.run for record in found if record.HasField("run")]
    assert (told.run_id, told.display_name, told.project) == ("exp01", "exp01", "tables")
    config = {item.key: item.value_json for item in told.config.update}
    assert config["seed"] == "42"
    assert config["optimizer.name"] == '"adamw"'
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [81]
    names = {path.name for path in (beside(run) / "wandb").rglob("*") if path.is_file()}
    assert not names & {"requirements.txt", "wandb-metadata.json"}, "what wandb found out about this machine"


def test_a_run_that_went_back_leaves_one_folder_with_one_point_a_step(run: ToyRun) -> None:
    run.metrics(1, 30)
    run.metrics(20, 20, "val")
    thread = RelayThread("wandb:", run.facts)
    wait_for(lambda: thread.relay.standing.sent == 31, "all lines")
    run.cut(12)
    run.cut(12, "val")
    run.emit(1, "resumed", from_step=12, checkpoint="step-00000012.pt", named=False)
    run.metrics(13, 25, train_loss=7.0)
    assert thread.finish().is_delivered
    expected = [(step, 1 / step) for step in range(1, 13)] + [(step, 7.0) for step in range(13, 26)]
    assert curve(beside(run), "train/loss") == expected
    assert curve(beside(run), "val/loss") == []


def test_a_relay_that_goes_on_or_rebuilds_leaves_one_folder_with_everything(run: ToyRun, tmp_path: Path) -> None:
    target = f"wandb:{tmp_path / 'all'}"
    other = tmp_path / "all" / "wandb" / "offline-run-20260101_000000-not-exp01"
    other.mkdir(parents=True)
    (other / "theirs.txt").write_text("theirs")
    run.metrics(1, 10)
    send_all(target, run.facts)
    run.metrics(11, 20)
    send_all(target, run.facts)
    send_all(target, run.facts, from_start=True)
    assert (other / "theirs.txt").exists()
    assert curve(tmp_path / "all", "train/loss") == [(step, 1 / step) for step in range(1, 21)]


def test_a_run_keeps_its_folder_free_of_it_since_its_links_would_forbid_a_resume(run: ToyRun) -> None:
    run.metrics(1, 3)
    send_all("wandb:", run.facts)
    assert {path.name for path in run.dir.iterdir()} == {"reports"}
    thread = RelayThread(f"wandb:{run.dir / 'inside'}", run.facts)
    thread.finish()
    assert "it lies in the run's own folder: name one elsewhere" in thread.said[0]


def test_a_folder_that_cannot_be_made_is_asked_for_again(run: ToyRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    sink: Any = open_sink(parse_target(f"wandb:{tmp_path / 'file'}"), run.facts)
    assert isinstance(sink, WandbSink)
    with pytest.raises(Unreachable, match="file"):
        sink.begin(0)
    sink.close()
