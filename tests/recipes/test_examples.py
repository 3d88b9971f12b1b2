"""The examples run as they stand, and their table is what its script writes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from trn.plan.params import make_params
from trn.recipes.lm import LanguageModel, LanguageModelParams
from trn.records import read_json, read_lines
from trn.spec import load_spec

EXAMPLES = Path(__file__).parents[2] / "examples"


def runner(config: Path, runs_dir: Path, *more: str, **environment: str) -> int:
    """The child process behind `trn run`; returns its exit status."""
    given = [
        "--job-id",
        f"job-{len(more)}",
        "--config",
        str(config),
        "--runs-dir",
        str(runs_dir),
        "--run-id",
        "example",
    ]
    return subprocess.run(
        [sys.executable, "-m", "trn.runner", *given, *more],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        check=False,
    ).returncode


def losses(run_dir: Path) -> list[tuple[int, Any]]:
    return [(line["step"], line["train_loss"]) for line in read_lines(run_dir / "reports" / "train_metrics.jsonl")]


def test_the_table_is_what_its_script_writes() -> None:
    path = EXAMPLES / "table" / "make_table.py"
    spec = importlib.util.spec_from_file_location("make_table", path)
    assert spec is not None
    assert spec.loader is not None
    script: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    first = 0
    for name, rows in script.ROWS.items():
        committed, made = pq.read_table(path.with_name(f"{name}.parquet")), script.table_of(first, rows)
        assert committed.schema == made.schema
        assert committed["x"].to_pylist() == made["x"].to_pylist()
        # a sine may differ in its last bit between C libraries, and then y by one float32 rounding
        assert committed["y"].to_pylist() == pytest.approx(made["y"].to_pylist(), abs=1e-6)
        first += rows
    assert sum(file.stat().st_size for file in path.parent.glob("*.parquet")) < 200_000


def test_the_language_model_example_is_a_valid_spec_of_the_data_that_the_command_makes() -> None:
    loaded = load_spec(EXAMPLES / "lm" / "stdlib.yaml")
    params = make_params(LanguageModel(), loaded.spec.hyperparams)
    defaults = LanguageModelParams()
    assert (params.vocab, params.context) == (defaults.vocab, defaults.context)
    assert loaded.spec.dataset.parquet_paths is not None
    (path,) = loaded.spec.dataset.parquet_paths
    assert Path(path).resolve() == EXAMPLES.parent / "demo" / "data" / "train.parquet"
    assert (loaded.folder / params.tokenizer).resolve() == EXAMPLES.parent / "demo" / "data" / "tokenizer"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [("table", 0.02), ("six_hooks", 0.05)])
def test_an_example_learns_and_survives_a_kill(tmp_path: Path, name: str, expected: float) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    config = tmp_path / "examples" / name / "spec.yaml"
    assert runner(config, tmp_path / "whole") == 0
    run_dir = tmp_path / "whole" / "example"
    assert read_json(run_dir / "reports" / "outcome.json")["status"] == "completed"
    *_, last = read_lines(run_dir / "reports" / "val_metrics.jsonl")
    assert last["val_loss"] < expected

    fault = "op=rename,n=5,do=kill,path=checkpoints/step-"
    assert runner(config, tmp_path / "killed", TRN_FAULT=fault) == -9
    assert runner(config, tmp_path / "killed", "--resume") == 0
    assert losses(tmp_path / "killed" / "example") == losses(run_dir)
