"""The language model: its size, its loss, what it refuses, and samples that disturb nothing."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from support.plans import plan_of
from trn.errors import DataError, SpecError
from trn.feed.tensors import to_tensors
from trn.plan.params import make_params
from trn.recipes import lm
from trn.recipes.lm import LanguageModel, LanguageModelParams
from trn.spec.plan_model import OptimizerPlan, SchedulePlan
from trn.trainer import Context, TorchState, load_trainer

TINY = {"width": 32, "depth": 2, "heads": 4, "vocab": 64, "context": 16, "sample_tokens": 12}


def context_of(run_dir: Path, *, seed: int = 1, **params: Any) -> Context:
    adamw = OptimizerPlan(name="adamw", arguments={"lr": 0.01}, fused=None, accumulate=1)
    schedule = SchedulePlan(kind="constant", warmup_steps=0, total_steps=80, lr_max=0.01, lr_min=0.0)
    return Context(
        plan=plan_of(run_dir, optimizer=adamw, schedule=schedule, clip_grad_norm=1.0, seed=seed),
        params=LanguageModelParams(**(TINY | params)),
        device=torch.device("cpu"),
        run_dir=run_dir,
        cancelled=lambda: False,
        tensors=lambda raw_batch: to_tensors(raw_batch, raw_batch.schema.names),
    )


def started(tmp_path: Path, **params: Any) -> tuple[LanguageModel, TorchState, Context]:
    trainer, ctx = LanguageModel(), context_of(tmp_path / "run", **params)
    torch.manual_seed(7)
    trainer.setup(ctx)
    return trainer, trainer.configure(ctx), ctx


def raw_batch(rows: int = 4, length: int = 17, vocab: int = 64, name: str = "tokens") -> pa.RecordBatch:
    tokens_BT = np.random.default_rng(3).integers(0, vocab, (rows, length), dtype=np.int32)
    return pa.record_batch([pa.FixedSizeListArray.from_arrays(pa.array(tokens_BT.reshape(-1)), length)], [name])


def size_of(**params: Any) -> int:
    """How many numbers the model of these parameters has; built without memory for them."""
    trainer, ctx = LanguageModel(), context_of(Path("run"), **params)
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in trainer.build(ctx).parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("params", "attention", "ffn", "embeddings"),
    [
        ({}, 4 * 32 * 32, 3 * 32 * 96, 64 * 32),
        ({"tied": False}, 4 * 32 * 32, 3 * 32 * 96, 2 * 64 * 32),
        ({"kv_heads": 1}, 2 * 32 * 32 + 2 * 32 * 8, 3 * 32 * 96, 64 * 32),
        ({"ffn": 40}, 4 * 32 * 32, 3 * 32 * 40, 64 * 32),
    ],
)
def test_each_knob_of_the_shape_gives_the_parameters_it_should(
    params: dict[str, Any], attention: int, ffn: int, embeddings: int
) -> None:
    norms = 2 * 32
    assert size_of(**params) == 2 * (attention + ffn + norms) + 32 + embeddings


@pytest.mark.slow
def test_a_370m_class_configuration_fits_the_same_parameters() -> None:
    size = size_of(width=1024, depth=24, heads=16, kv_heads=4, vocab=50_257, context=1024, tied=False)
    assert 365e6 < size < 375e6


@pytest.mark.parametrize(("width", "expected"), [(12, 32), (128, 352), (256, 704), (768, 2048)])
def test_the_inner_width_is_eight_thirds_rounded_up_to_32(width: int, expected: int) -> None:
    assert LanguageModelParams(width=width, heads=2).ffn_width == expected


def test_what_the_configuration_cannot_show_by_size_takes_effect(tmp_path: Path) -> None:
    _, state, _ = started(tmp_path, rope_theta=100.0, norm_eps=1e-3, dropout=0.25)
    model: Any = state.model
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, 100.0 ** -torch.arange(0, 1, 0.25))
    assert model.model.norm.variance_epsilon == 1e-3
    assert model.config._attn_implementation == "sdpa"
    tokens_BT = torch.arange(16)[None]
    assert not torch.equal(model(input_ids=tokens_BT).logits, model(input_ids=tokens_BT).logits)
    model.eval()
    assert torch.equal(model(input_ids=tokens_BT).logits, model(input_ids=tokens_BT).logits)


def test_weights_follow_from_the_global_seed(tmp_path: Path) -> None:
    _, one, _ = started(tmp_path)
    _, same, _ = started(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters, same.parameters, strict=True))


def test_a_prediction_does_not_see_what_comes_after_it(tmp_path: Path) -> None:
    _, state, _ = started(tmp_path)
    tokens_BT = torch.arange(16)[None]
    changed_BT = tokens_BT.clone()
    changed_BT[0, 9:] = 5
    # other lengths of the same sum: float32 rounding
    torch.testing.assert_close(
        state.model(input_ids=tokens_BT).logits[0, :9],
        state.model(input_ids=changed_BT).logits[0, :9],
        atol=1e-5,
        rtol=0,
    )


def test_an_untrained_model_knows_nothing(tmp_path: Path) -> None:
    trainer, state, ctx = started(tmp_path)
    step = trainer.loss(state.model, trainer.transform(raw_batch(rows=16), ctx))
    assert trainer.vocab_size(ctx.params) == 64
    # weights of standard deviation 0.02 make nearly equal logits
    assert step.loss.item() == pytest.approx(math.log(64), abs=0.05)
    assert step.count == 16 * 16


@pytest.mark.slow
def test_a_fixed_batch_is_learned(tmp_path: Path) -> None:
    trainer, state, ctx = started(tmp_path)
    batch = trainer.prepare_batch(raw_batch(), state, ctx)
    for step in range(1, 81):
        ctx._step = step
        result = trainer.train_step(batch, state, ctx)
    assert result.tokens == 4 * 16
    assert float(result.metrics["train_loss"]) < 0.3


def test_the_loss_is_that_of_the_next_token(tmp_path: Path) -> None:
    trainer, state, ctx = started(tmp_path)
    tokens_BT = trainer.transform(raw_batch(rows=1), ctx)["tokens"]
    logits_TV = state.model(input_ids=tokens_BT[:, :-1]).logits[0]
    chances_T = torch.log_softmax(logits_TV, dim=-1)[torch.arange(16), tokens_BT[0, 1:]]
    torch.testing.assert_close(trainer.loss(state.model, {"tokens": tokens_BT}).loss, -chances_T.mean())


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_in_pieces_is_the_plain_one_with_the_same_gradients(
    tmp_path: Path, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, state, ctx = started(tmp_path, tied=tied, vocab=600, dropout=0.1)
    batch = trainer.transform(raw_batch(rows=50, vocab=600), ctx)

    def found() -> tuple[torch.Tensor, list[torch.Tensor]]:
        torch.manual_seed(3)
        loss = trainer.loss(state.model, batch).loss
        return loss.detach(), list(torch.autograd.grad(loss, state.parameters))

    assert lm._is_better_in_pieces(state.model, batch["tokens"])
    loss, gradients = found()
    monkeypatch.setattr(lm, "_is_better_in_pieces", lambda *_: False)
    plain, of_plain = found()
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
    for one, other in zip(gradients, of_plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_a_narrow_precision_and_a_small_batch_take_the_plain_loss(tmp_path: Path) -> None:
    trainer, state, ctx = started(tmp_path)
    tokens_BT = trainer.transform(raw_batch(rows=8), ctx)["tokens"]
    assert lm._is_better_in_pieces(state.model, tokens_BT)
    assert not lm._is_better_in_pieces(state.model, tokens_BT[:1])
    with torch.autocast("cpu", torch.bfloat16):
        assert not lm._is_better_in_pieces(state.model, tokens_BT)
    assert not lm._is_better_in_pieces(torch.compile(state.model, backend="eager"), tokens_BT)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 100, "heads": 3}, "width 100 is not divisible by heads 3"),
        ({"width": 12, "heads": 4}, "width / heads is 3, expected an even number"),
        ({"heads": 4, "kv_heads": 3}, "heads 4 is not divisible by kv_heads 3"),
        ({"depth": 0, "vocab": 1}, "depth is 0, expected at least 1; vocab is 1, expected at least 2"),
        ({"kv_heads": 0}, "kv_heads is 0, expected at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0, expected at least 0 and below 1"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0, expected a number above 0"),
        ({"temperature": math.nan}, "temperature is nan, expected at least 0"),
    ],
)
def test_parameters_that_do_not_fit_are_refused_with_their_numbers(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_params(LanguageModel(), given)
    assert message in str(caught.value)


def test_rows_of_another_length_are_refused_naming_both(tmp_path: Path) -> None:
    trainer, _, ctx = started(tmp_path)
    with pytest.raises(DataError, match=r'column "tokens": a row is int32 \[9\], expected integers \[17\]'):
        trainer.transform(raw_batch(length=9), ctx)


def test_tokens_outside_of_the_vocabulary_are_refused(tmp_path: Path) -> None:
    trainer, _, ctx = started(tmp_path)
    with pytest.raises(DataError, match="token id 99 is outside of 0 to 63"):
        trainer.transform(raw_batch(rows=64, vocab=100), ctx)


def test_a_batch_without_the_column_is_refused(tmp_path: Path) -> None:
    trainer, _, ctx = started(tmp_path)
    with pytest.raises(DataError, match=r'column "tokens": the batch has no such column; it has ids'):
        trainer.transform(raw_batch(name="ids"), ctx)


@pytest.mark.slow
def test_without_the_extra_one_line_says_what_to_install() -> None:
    script = """
import sys
sys.modules["transformers"] = None
from trn.errors import PlanRefused
from trn.trainer import load_trainer
try:
    load_trainer("lm")
except PlanRefused as error:
    sys.exit(str(error))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "needs transformers, not installed. pip install 'trn-runtime[lm]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_recipe_comes_in_by_its_entry_point() -> None:
    assert isinstance(load_trainer("lm"), LanguageModel)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A tokenizer folder beside the spec, with 300 entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([Path(__file__).read_text("utf-8")], trainer)
    (tmp_path / "tokenizer").mkdir()
    made.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    return tmp_path / "tokenizer"


def test_a_sample_without_a_tokenizer_is_the_ids(tmp_path: Path) -> None:
    trainer, state, ctx = started(tmp_path)
    ids = [int(word) for word in trainer.sample(state, ctx)["sample.txt"].split()]
    assert len(ids) == 1 + 12
    assert all(0 <= one < 64 for one in ids)


def test_a_sample_begins_with_the_prompt_and_goes_past_the_context(tmp_path: Path, tokenizer: Path) -> None:
    trainer, state, ctx = started(tmp_path, tokenizer="tokenizer", vocab=300, prompt="def é(", sample_tokens=40)
    text = trainer.sample(state, ctx)["sample.txt"]
    assert text.startswith("def é(")
    assert len(text) > len("def é(\n")


def test_a_sample_depends_on_seed_and_step_alone_and_touches_no_stream(tmp_path: Path) -> None:
    trainer, state, ctx = started(tmp_path, dropout=0.5)
    before = torch.get_rng_state()
    one = trainer.sample(state, ctx)
    assert torch.equal(torch.get_rng_state(), before)
    assert state.model.training
    assert all(parameter.grad is None for parameter in state.parameters)
    torch.manual_seed(99)
    assert trainer.sample(state, ctx) == one
    ctx._step = 5
    assert trainer.sample(state, ctx) != one
    assert trainer.sample(state, context_of(tmp_path / "run", seed=2, dropout=0.5)) != one


def test_temperature_zero_takes_the_likeliest_token(tmp_path: Path) -> None:
    trainer, state, ctx = started(tmp_path, temperature=0.0)
    ids = [int(word) for word in trainer.sample(state, ctx)["sample.txt"].split()]
    state.model.eval()
    with torch.no_grad():
        for place in range(1, len(ids)):
            assert ids[place] == int(state.model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].argmax())


def test_a_tokenizer_of_another_size_is_refused_naming_both(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(DataError, match=r"the tokenizer has 300 entries, hyperparams.vocab is 64"):
        started(tmp_path, tokenizer="tokenizer")


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "bad").mkdir()
    if content is not None:
        (tmp_path / "bad" / "tokenizer.json").write_text(content, "utf-8")
    with pytest.raises(DataError, match="cannot open the tokenizer"):
        started(tmp_path, tokenizer=str(tmp_path / "bad"))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.int64])
def test_tokens_may_be_of_any_integer_type(tmp_path: Path, kind: Any) -> None:
    trainer, _, ctx = started(tmp_path)
    tokens = np.arange(2 * 17).astype(kind)
    batch = pa.record_batch([pa.FixedSizeListArray.from_arrays(pa.array(tokens), 17)], ["tokens"])
    assert trainer.transform(batch, ctx)["tokens"].tolist() == tokens.reshape(2, 17).tolist()
