"""Our own trainers export: the language model, and the trainers of the examples."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from support.plans import plan_of
from trn.checkpoint import rng
from trn.export.convert import Settings, convert
from trn.export.trials import exports_of
from trn.export.weights import write_hf
from trn.feed.tensors import to_tensors
from trn.spec.plan_model import OptimizerPlan
from trn.trainer import Context

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = {"width": 32, "depth": 2, "heads": 4, "kv_heads": 2, "vocab": 64, "context": 16, "sample_tokens": 0}


@pytest.fixture(autouse=True)
def _drawn_alike() -> Iterator[None]:
    with rng.isolated(7):
        yield


def context(run_dir: Path, params: Any) -> Context:
    adamw = OptimizerPlan(name="adamw", arguments={"lr": 0.01}, fused=None, accumulate=1)
    return Context(
        plan=plan_of(run_dir, optimizer=adamw),
        params=params,
        device=torch.device("cpu"),
        run_dir=run_dir,
        cancelled=lambda: False,
        tensors=to_tensors,
    )


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / name / "trainer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rows() -> pa.RecordBatch:
    x = np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)
    values = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 6)
    return pa.record_batch({"x": values, "y": pa.array(x[:, 0])})


def tokens(count: int = 4) -> pa.RecordBatch:
    ids = np.random.default_rng(1).integers(0, 64, (count, 17), dtype=np.int32)
    return pa.record_batch({"tokens": pa.FixedSizeListArray.from_arrays(pa.array(ids.reshape(-1)), 17)})


@pytest.mark.parametrize("name", ["table", "six_hooks"])
@pytest.mark.parametrize("opset", [18, 20])
def test_an_example_exports(tmp_path: Path, name: str, opset: int) -> None:
    module = example(name)
    trainer = module.Regressor() if name == "table" else module.HandMade()
    ctx = context(tmp_path / "run", module.Params() if name == "table" else {"width": 8, "learning_rate": 0.1})
    trainer.setup(ctx)
    made = convert(exports_of(trainer, trainer.configure(ctx), ctx, rows()), Settings(opset, "fail", None, 1), tmp_path)
    assert made.parity.reason is None
    assert made.opset == opset
    assert made.shapes == {"x": ["batch", 6]}
    assert max(made.parity.worst.values()) < 1e-5


@pytest.mark.parametrize("opset", [18, 20])
def test_the_language_model_exports_with_any_number_of_rows_and_any_length(tmp_path: Path, opset: int) -> None:
    pytest.importorskip("transformers")
    from trn.recipes.lm import LanguageModel, LanguageModelParams

    trainer, ctx = LanguageModel(), context(tmp_path / "run", LanguageModelParams(**TINY))
    trainer.setup(ctx)
    state = trainer.configure(ctx)
    made = convert(exports_of(trainer, state, ctx, tokens()), Settings(opset, "fail", None, 1), tmp_path)
    assert made.parity.reason is None
    assert made.shapes == {"tokens": ["batch", "time"]}
    assert max(made.parity.worst.values()) < 1e-5
    assert made.initialisers.tied == {"model.embed_tokens.weight": "lm_head.weight"}
    assert made.initialisers.different == ()
    # a copy for long contexts, which the outputs do not depend on
    assert made.initialisers.left_out == ("model.rotary_emb.original_inv_freq",)
    sizes = {tuple(trial.inputs["tokens"].shape) for trial in made.reference.trials}
    assert sizes == {(4, 16), (1, 16), (3, 16), (7, 16), (4, 1), (4, 8), (4, 19)}


def test_the_language_model_is_read_back_by_from_pretrained(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    from trn.recipes.lm import LanguageModel, LanguageModelParams

    trainer, ctx = LanguageModel(), context(tmp_path / "run", LanguageModelParams(**TINY))
    trainer.setup(ctx)
    state = trainer.configure(ctx)
    config = state.model.config.to_dict()
    streams = rng.capture()
    assert write_hf(state.model, tmp_path)["hf"]["class"] == "LlamaForCausalLM"
    assert rng.capture() == streams
    assert state.model.config.to_dict() == config
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True)
    own = state.model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in again.state_dict().items())
    assert {path.name for path in (tmp_path / "hf").iterdir()} >= {"config.json", "model.safetensors"}
    assert "Traceback" not in capfd.readouterr().err
