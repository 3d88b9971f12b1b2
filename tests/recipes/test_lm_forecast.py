"""What is foretold of a language model: of the 370M class without making it, and of a small one that then is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trn.plan.params import make_params
from trn.recipes.lm import LanguageModel
from trn.records import read_lines
from trn.spec import load_spec

EXAMPLES = Path(__file__).parents[2] / "examples"
LM_370M = EXAMPLES / "lm-370m.yaml"


def write_tokens(path: Path, *, rows: int, context: int, vocab: int) -> None:
    """Rows of `context + 1` tokens below `vocab`, the first of them the highest there is."""
    tokens_BT = np.random.default_rng(0).integers(0, vocab, (rows, context + 1), dtype=np.int32)
    tokens_BT[0, 0] = vocab - 1
    column = pa.FixedSizeListArray.from_arrays(pa.array(tokens_BT.reshape(-1)), context + 1)
    pq.write_table(pa.table({"tokens": column}), path)


def runner(config: Path, folder: Path, *more: str) -> tuple[int, str, str, int]:
    """The child behind `trn run`: its exit status, both outputs, and the most memory it had, in bytes."""
    given = ["--job-id", f"job-{len(more)}", "--config", str(config), "--runs-dir", str(folder / "runs")]
    outputs = [(folder / name).open("w") for name in ("out", "err")]
    child = subprocess.Popen(
        [sys.executable, "-m", "trn.runner", *given, "--run-id", "demo", *more],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=outputs[0],
        stderr=outputs[1],
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    for output in outputs:
        output.close()
    peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return child.returncode, (folder / "out").read_text(), (folder / "err").read_text(), peak_bytes


def test_the_370m_example_is_that_of_seed_002() -> None:
    spec = load_spec(LM_370M).spec
    params = make_params(LanguageModel(), spec.hyperparams)
    assert (params.width, params.depth, params.heads, params.kv_heads, params.ffn_width) == (1024, 24, 16, 4, 2816)
    assert (params.vocab, params.context, params.rope_theta, params.norm_eps) == (50_257, 1024, 10_000, 1e-5)
    assert (spec.max_steps, spec.steps_per_epoch, spec.dataset.batch_size, spec.seed) == (1000, 100, 16, 42)
    schedule = spec.schedule
    assert (schedule.kind, schedule.warmup_steps, schedule.lr_max, schedule.lr_min) == (
        "warmup_cosine",
        100,
        5e-5,
        1e-6,
    )
    assert (spec.clip_grad_norm, spec.optimizer.weight_decay) == (1.0, 0.01)
    gates = spec.gates
    assert (gates.regime, gates.target_val_loss, gates.patience, gates.min_epochs) == ("from_scratch", 2.2, 2, 3)


def test_the_370m_example_says_the_command_that_makes_its_data() -> None:
    spec = load_spec(LM_370M).spec
    (command,) = (line for line in LM_370M.read_text().splitlines() if "trn data text" in line)
    assert f"--out demo/lm-370m --vocab {spec.hyperparams['vocab']} --context {spec.hyperparams['context']} " in command
    assert spec.validation is not None
    for part, name in ((spec.dataset, "train.parquet"), (spec.validation, "validation.parquet")):
        assert part.parquet_paths is not None
        assert Path(part.parquet_paths[0]).resolve() == EXAMPLES.parent / "demo" / "lm-370m" / name
    tokenizer = LM_370M.parent / spec.hyperparams["tokenizer"]
    assert tokenizer.resolve() == EXAMPLES.parent / "demo" / "lm-370m" / "tokenizer"


@pytest.mark.slow
def test_a_model_of_the_370m_class_is_foretold_without_its_memory(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens.parquet", rows=32, context=1024, vocab=50_257)
    data = [f"{part}.parquet_paths=[{tmp_path / 'tokens.parquet'}]" for part in ("dataset", "validation")]
    sets = [option for one in data for option in ("--set", one)]
    status, out, err, peak_bytes = runner(LM_370M, tmp_path, *sets, "--dry-run")
    assert status == 0, err
    told = json.loads(out)["forecast"]
    block = 2 * 1024 * 1024 + 2 * 256 * 1024 + 3 * 2816 * 1024 + 2 * 1024
    parameters = 24 * block + 2 * 50_257 * 1024 + 1024
    assert told["parameters"] == {"total": parameters, "trainable": parameters}
    assert parameters == 373_509_120
    assert f"{parameters:,} parameters" in LM_370M.read_text()
    # 32 frequencies of the rotary embedding, twice; 219 tensors, each with a step
    assert told["memory"]["weights_bytes"] == 4 * parameters + 2 * 32 * 4
    assert told["memory"]["optimizer_bytes"] == 8 * parameters + 219 * 4
    assert told["tokens"] == 1000 * 16 * 1024
    assert told["tokens_per_parameter"] == 0.04387
    (warning,) = (one for one in told["warnings"] if "tokens" in one)
    assert "are 0.0439 a parameter; below 20" in warning
    assert f"warning: {warning}" in err
    # the weights alone would be 1.5 GB
    assert peak_bytes < 1e9
    assert not (tmp_path / "runs").exists()


SMALL = """
config_version: 1
trainer: lm
hyperparams: {{width: 64, depth: 2, heads: 4, vocab: 300, context: 32}}
dataset: {{parquet_paths: [{tokens}], batch_size: 8, remainder: keep, end: cycle}}
validation: {{parquet_paths: [{tokens}], max_batches: 1}}
seed: 1
device: cpu
precision: none
ddp: false
max_steps: 40
steps_per_epoch: 7
checkpoint_every: 3
threads: 1
checkpoint: {{keep: 2, keep_epochs: 2}}
"""


@pytest.mark.slow
def test_what_is_foretold_comes_true(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens.parquet", rows=61, context=32, vocab=300)
    config = tmp_path / "small.yaml"
    config.write_text(SMALL.format(tokens=tmp_path / "tokens.parquet"))
    status, out, err, _ = runner(config, tmp_path, "--dry-run")
    assert status == 0, err
    told: dict[str, Any] = json.loads(out)["forecast"]
    status, _, err, _ = runner(config, tmp_path)
    assert status == 0, err

    *_, last = read_lines(tmp_path / "runs" / "demo" / "reports" / "train_metrics.jsonl")
    assert told["tokens"] == last["tokens_seen"]
    (warning,) = told["warnings"]
    assert err.splitlines().count(f"warning: {warning}") == 1

    checkpoints = tmp_path / "runs" / "demo" / "checkpoints"
    made = sum((checkpoints / f"last{suffix}").stat().st_size for suffix in (".pt", ".meta.json"))
    assert told["disk"]["checkpoint_bytes"] == pytest.approx(made, rel=0.03)
    whole = {file.stat().st_ino: file.stat().st_size for file in checkpoints.iterdir()}
    assert sum(whole.values()) <= told["disk"]["most_bytes"]
    models = {file.stat().st_ino for file in checkpoints.glob("*.pt")}
    assert 2 <= len(models) <= told["disk"]["files"]["most"]
    assert not any("warning" in line for line in runner(config, tmp_path, "--resume")[2].splitlines())
