"""Trainings on what is no plain local table: a store, lists of varying length, strings, nulls; stopped and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.compare import assert_identical, lines, outcome
from support.forkserver import ForkServer
from support.job import command, write_job
from support.stores import CREDENTIALS, StallingS3, client_of, put, s3_server, web_server
from trn.verify import verify_run

pytestmark = pytest.mark.slow

BAG = """
from torch import nn

from trn import Step, TorchTrainer


class Bag(TorchTrainer):
    columns = ("tokens", "label", "caption")

    def build(self, ctx):
        return nn.EmbeddingBag(100, 1)

    def transform(self, raw_batch, ctx):
        assert raw_batch.column("label").null_count == 0
        captions = raw_batch.column("caption").to_pylist()
        assert captions == ["none" if one < 0 else str(int(one)) for one in raw_batch.column("label").to_pylist()]
        return ctx.tensors(raw_batch, ["tokens", "label"])

    def loss(self, model, batch):
        error = model(batch["tokens"].long(), batch["tokens_offsets"][:-1]).squeeze(1) - batch["label"]
        return Step(error.square().mean(), count=len(error))
"""

BAG_SPEC = """
config_version: 1
trainer: bag:Bag
dataset:
  parquet_paths: [data.parquet]
  nulls: {label: -1, caption: none}
  batch_size: 6
  end: cycle
validation: {parquet_paths: [data.parquet], every_steps: 10}
seed: 4
device: cpu
precision: none
ddp: false
max_steps: 60
checkpoint_every: 7
threads: 1
optimizer: {name: sgd, lr: 0.01, accumulate: 2}
"""


def write_bag(folder: Path) -> Path:
    folder.mkdir()
    random = np.random.default_rng(3)
    tokens = [random.integers(0, 100, random.integers(1, 9)).tolist() for _ in range(57)]
    labels = [None if row % 5 == 0 else float(row % 7) for row in range(57)]
    captions = [None if label is None else str(int(label)) for label in labels]
    table = pa.table({"tokens": tokens, "label": pa.array(labels, pa.float32()), "caption": captions})
    pq.write_table(table, folder / "data.parquet", row_group_size=10)
    (folder / "bag.py").write_text(BAG)
    (folder / "spec.yaml").write_text(BAG_SPEC)
    return folder / "spec.yaml"


def test_lists_strings_and_filled_nulls_train_and_resume_bit_for_bit(server: ForkServer, tmp_path: Path) -> None:
    spec = write_bag(tmp_path / "job")
    assert server.run(command(spec, tmp_path, "straight"), tmp_path / "log") == 0, (tmp_path / "log").read_text()
    for steps in (23, 60):
        more = ("--auto-resume", "--set", f"max_steps={steps}", "--allow-change", "max_steps")
        assert server.run(command(spec, tmp_path, "stopped", *more), tmp_path / "log") == 0, (
            tmp_path / "log"
        ).read_text()
    assert [line["train_loss"] for line in lines(tmp_path / "stopped", "train_metrics.jsonl")] == [
        line["train_loss"] for line in lines(tmp_path / "straight", "train_metrics.jsonl")
    ]
    assert len(lines(tmp_path / "straight", "train_metrics.jsonl")) == 60


def test_a_null_that_no_footer_told_of_ends_the_run_as_a_data_error(server: ForkServer, tmp_path: Path) -> None:
    spec = write_bag(tmp_path / "job")
    table = pq.read_table(tmp_path / "job" / "data.parquet")
    tokens = [*table["tokens"].to_pylist()[:-1], [1, None]]
    table = table.set_column(0, "tokens", pa.array(tokens, pa.list_(pa.int64())))
    pq.write_table(table, tmp_path / "job" / "data.parquet", row_group_size=10)
    assert server.run(command(spec, tmp_path, "run"), tmp_path / "log") == 65
    told = outcome(tmp_path / "run")
    assert told["status"] == "data_error"
    assert 'data.parquet: column "tokens" is null, or holds a null, in row 56 (from 0)' in told["reason"]
    assert "dataset.nulls: {tokens: VALUE}" in told["reason"]


def test_a_training_from_s3_is_the_one_from_the_disk_also_after_a_stop(server: ForkServer, tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=100)
    assert server.run(command(spec, tmp_path, "near"), tmp_path / "log") == 0, (tmp_path / "log").read_text()
    text = spec.read_text()
    with s3_server() as endpoint:
        client = client_of(endpoint)
        client.create_dir("data")
        for path in (tmp_path / "job").glob("*.parquet"):
            put(client, f"data/set/{path.name}", path.read_bytes())
        text = text.replace("[train-0.parquet, train-1.parquet]", "['s3://data/set/train-*.parquet']")
        spec.write_text(text.replace("[validation.parquet]", "['s3://data/set/validation.parquet']"))
        environ = {**os.environ, **CREDENTIALS, "AWS_ENDPOINT_URL": endpoint, "OMP_NUM_THREADS": "1"}

        def run(argv: list[str]) -> tuple[int, str]:
            argv = [sys.executable, "-m", "trn.runner", *argv]
            done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=240, check=False)
            return done.returncode, done.stderr

        code, said = run(command(spec, tmp_path, "far", "--set", "limits.max_runtime_seconds=0.05"))
        assert code == 93, said
        client.move("data/set/train-1.parquet", "data/aside")
        code, said = run(["--job-id", "job-again", "--run-dir", str(tmp_path / "far")])
        assert code == 65, said
        assert "s3://data/set/train-1.parquet: there is no such object, or no such bucket" in said
        client.move("data/aside", "data/set/train-1.parquet")
        code, said = run(command(spec, tmp_path, "far"))
        assert code == 0, said
    assert_identical(tmp_path / "far", tmp_path / "near")
    assert [one for one in verify_run(tmp_path / "far") if one.problem is not None] == []
    for path in (tmp_path / "far").rglob("*"):
        assert not path.is_file() or CREDENTIALS["AWS_SECRET_ACCESS_KEY"].encode() not in path.read_bytes(), path


def test_a_stop_does_not_wait_for_a_store_that_has_fallen_silent(tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", max_steps=100_000)
    text = spec.read_text().replace("[train-0.parquet, train-1.parquet]", "['s3://x/train-0.parquet']")
    spec.write_text(text)
    stalled = threading.Event()
    handler = type("Handler", (StallingS3,), {"folder": tmp_path / "job", "stalled": stalled})
    argv = [sys.executable, "-m", "trn.runner", *command(spec, tmp_path, "run")]
    with web_server(handler) as place, (tmp_path / "log").open("w") as log:
        environ = {**os.environ, **CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{place}", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(argv, env=environ, stdout=log, stderr=log)
        try:
            metrics = tmp_path / "run/reports/train_metrics.jsonl"
            while not (metrics.exists() and metrics.stat().st_size > 2_000):
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.05)
            stalled.set()
            steps = -1
            while steps != (steps := len(metrics.read_bytes().splitlines())):
                time.sleep(1)  # what was read ahead is used up
            process.send_signal(signal.SIGTERM)
            began_s = time.monotonic()
            assert process.wait(timeout=60) == 75, (tmp_path / "log").read_text()
            assert time.monotonic() - began_s < 30, "the store's own limit is 90 s"
        finally:
            process.kill()
            process.wait()
    told = outcome(tmp_path / "run")
    assert (told["status"], told["step"]) == ("preempted", steps)
    assert "their store had not answered" in (tmp_path / "log").read_text()
