"""TensorBoard's files, read back by TensorBoard itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from support.sending import RelayThread, ToyRun, lines_of, send_all
from trn.sinks.sink import CurveSink, Unreachable
from trn.sinks.targets import open_sink, parse_target


@pytest.fixture
def run(tmp_path: Path) -> ToyRun:
    return ToyRun(tmp_path / "runs")


def sink_of(run: ToyRun, text: str = "tensorboard:") -> CurveSink:
    sink = open_sink(parse_target(text), run.facts)
    assert isinstance(sink, CurveSink)
    return sink


def lines(first: int, last: int, loss: float = 1.0) -> list[dict[str, Any]]:
    return [{"step": step, "train_loss": loss / step} for step in range(first, last + 1)]


def shown(folder: Path) -> EventAccumulator:
    """All that TensorBoard shows of the folder."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in shown(folder).Scalars(tag)]


def f32(value: float) -> float:
    return float(np.float32(value))


def test_tensorboard_shows_each_line_once_under_its_file_and_key(run: ToyRun) -> None:
    run.metrics(1, 40, lr=1e-3, tokens_seen=None)
    run.metrics(20, 20, "val")
    run.metrics(40, 40, "val")
    relay = send_all("tensorboard:", run.facts)
    assert relay.is_delivered
    folder = run.dir / "tensorboard"
    assert sorted(shown(folder).Tags()["scalars"]) == ["train/loss", "train/lr", "val/loss"]
    assert curve(folder, "train/loss") == [(step, f32(1 / step)) for step in range(1, 41)]
    assert curve(folder, "val/loss") == [(20, f32(1 / 20)), (40, f32(1 / 40))]


def test_a_run_that_went_back_leaves_one_point_a_step_and_those_are_the_new_ones(run: ToyRun) -> None:
    run.metrics(1, 30)
    run.metrics(10, 10, "val")
    run.metrics(20, 20, "val")
    thread = RelayThread("tensorboard:", run.facts)
    while thread.relay.standing.sent < 32:
        assert thread.thread.is_alive()
    run.cut(12)
    run.cut(12, "val")
    run.emit(1, "resumed", from_step=12, checkpoint="step-00000012.pt", named=False)
    run.metrics(13, 25, train_loss=7.0)
    run.metrics(25, 25, "val", val_loss=8.0)
    assert thread.finish().is_delivered
    folder = run.dir / "tensorboard"
    assert curve(folder, "train/loss") == [(s, f32(1 / s)) for s in range(1, 13)] + [(s, 7.0) for s in range(13, 26)]
    assert curve(folder, "val/loss") == [(10, f32(0.1)), (25, 8.0)]


def test_after_a_kill_within_a_record_the_next_process_goes_on_without_a_doubled_point(run: ToyRun) -> None:
    killed = sink_of(run)
    killed.begin(0)
    killed.write("train", lines(1, 15))
    [path] = (run.dir / "tensorboard").iterdir()
    os.truncate(path, path.stat().st_size - 5)
    sink = sink_of(run)
    sink.begin(10)
    sink.write("train", lines(11, 20, loss=2.0))
    sink.close()
    expected = [(line["step"], f32(line["train_loss"])) for line in lines(1, 10) + lines(11, 20, loss=2.0)]
    assert curve(run.dir / "tensorboard", "train/loss") == expected


def test_what_is_written_is_in_the_file_before_write_returns(run: ToyRun) -> None:
    sink = sink_of(run)
    sink.begin(0)
    sink.write("train", lines(1, 3))
    assert [step for step, _ in curve(run.dir / "tensorboard", "train/loss")] == [1, 2, 3]
    sink.close()


def test_a_rebuild_leaves_one_clean_set_of_curves_and_files_of_others_alone(run: ToyRun) -> None:
    run.metrics(1, 20)
    send_all("tensorboard:", run.facts)
    folder = run.dir / "tensorboard"
    (folder / "events.out.tfevents.1.their-own").write_bytes(b"")
    (folder / "notes.txt").write_text("mine")
    for _ in range(2):
        assert send_all("tensorboard:", run.facts, from_start=True).is_delivered
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 3
    assert [name for name in names if name.endswith(".trn")] == [names[1]]
    assert [step for step, _ in curve(folder, "train/loss")] == list(range(1, 21))


def test_a_folder_that_was_removed_is_there_again_with_everything(run: ToyRun) -> None:
    run.metrics(1, 20)
    run.metrics(10, 10, "val")
    send_all("tensorboard:", run.facts)
    shutil.rmtree(run.dir / "tensorboard")
    run.metrics(21, 25)
    assert send_all("tensorboard:", run.facts).is_delivered
    assert [step for step, _ in curve(run.dir / "tensorboard", "train/loss")] == list(range(1, 26))
    assert [step for step, _ in curve(run.dir / "tensorboard", "val/loss")] == [10]


def test_files_of_one_second_are_read_in_the_order_they_were_written(run: ToyRun) -> None:
    sink = sink_of(run)
    sink.begin(0)
    for back in range(12):  # more than nine, so that their numbers must be padded
        sink.write("train", lines(back + 1, back + 5, loss=float(back + 1)))
        sink.cut(back + 1)
    sink.close()
    steps = [(step, f32(step / step)) for step in range(1, 13)]
    assert curve(run.dir / "tensorboard", "train/loss") == steps


def test_the_plan_is_there_as_text_and_as_hyperparameters(run: ToyRun) -> None:
    facts = replace(run.facts, plan={"seed": 42, "optimizer": {"name": "adamw", "fused": True}, "ema": None})
    run.metrics(1, 2)
    send_all("tensorboard:", facts)
    found = shown(run.dir / "tensorboard")
    [text] = found.Tensors("plan/text_summary")
    assert '"optimizer.name": "adamw"' in text.tensor_proto.string_val[0].decode()
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["seed"].number_value == 42
    assert settings["optimizer.name"].string_value == "adamw"
    assert settings["optimizer.fused"].bool_value is True


def test_runs_that_share_a_folder_have_each_a_folder_in_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run = ToyRun(tmp_path / "runs", name)
        run.metrics(1, 3)
        send_all(f"tensorboard:{tmp_path / 'board'}", run.facts)
    for name in ("a", "b"):
        assert [step for step, _ in curve(tmp_path / "board" / name, "train/loss")] == [1, 2, 3]


def test_a_folder_that_cannot_be_made_is_asked_for_again(run: ToyRun) -> None:
    (run.dir / "tensorboard").write_text("in the way")
    sink = sink_of(run)
    with pytest.raises(Unreachable, match="tensorboard"):
        sink.begin(0)
    sink.close()


def test_a_relay_to_tensorboard_does_not_import_torch(run: ToyRun) -> None:
    run.metrics(1, 5)
    script = (
        "import sys; from trn.sinks.__main__ import main; code = main(sys.argv[1:]); "
        "sys.exit(code or int(bool({'torch', 'boto3', 'tensorflow'} & sys.modules.keys())))"
    )
    command = [sys.executable, "-c", script, "--run-dir", str(run.dir), "--to", "tensorboard:"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert len(curve(run.dir / "tensorboard", "train/loss")) == len(lines_of(run.reports / "train_metrics.jsonl"))
