"""Pretraining of a decoder-only language model: the Llama of the transformers library, from random weights.

Reads one column, `tokens`: fixed-size lists of `context + 1` token ids, as `trn data text` writes them; a row gives
`context` predictions of the next token.

Letters: B rows, T positions in a row (context, or context + 1 before the shift), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trn.errors import DataError, PlanRefused
from trn.trainer import Context, Export, Step, TorchState, TorchTrainer

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["LanguageModel", "LanguageModelParams"]

_FFN_MULTIPLE = 32
_LEAST = {
    "width": 1,
    "depth": 1,
    "heads": 1,
    "kv_heads": 1,
    "ffn": 1,
    "vocab": 2,
    "context": 1,
    "sample_tokens": 0,
    "temperature": 0,
}


@dataclass(frozen=True)
class LanguageModelParams:
    """The shape of the model, and what a sample is made of. Raises ValueError with everything that does not fit."""

    width: int = 256
    depth: int = 4
    heads: int = 4
    kv_heads: int | None = None
    """Heads of keys and values; None: as many as `heads`."""
    ffn: int | None = None
    """Inner width of the SwiGLU block; None: see `ffn_width`."""
    vocab: int = 4096
    context: int = 256
    tied: bool = True
    """Input and output embeddings are one matrix."""
    rope_theta: float = 10_000.0
    dropout: float = 0.0
    """Of attention weights."""
    norm_eps: float = 1e-5
    tokenizer: str | None = None
    """Folder with a tokenizer.json, relative to the spec's folder; only samples need it."""
    prompt: str = "def "
    sample_tokens: int = 64
    temperature: float = 0.8
    """0 takes the likeliest token each time."""

    def __post_init__(self) -> None:
        if problems := [*self._out_of_range()] or [*self._unfit()]:
            raise ValueError("; ".join(problems))

    def _out_of_range(self) -> Iterator[str]:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                yield f"{name} is {value}, expected at least {least}"
        if not 0 <= self.dropout < 1:
            yield f"dropout is {self.dropout}, expected at least 0 and below 1"
        for name in ("rope_theta", "norm_eps"):
            if not 0 < getattr(self, name) < inf:
                yield f"{name} is {getattr(self, name)}, expected a number above 0"

    def _unfit(self) -> Iterator[str]:
        if self.width % self.heads:
            yield f"width {self.width} is not divisible by heads {self.heads}"
        elif self.width // self.heads % 2:
            yield f"width / heads is {self.width // self.heads}, expected an even number (rotary embeddings turn pairs)"
        if self.kv_heads is not None and self.heads % self.kv_heads:
            yield f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}"

    @property
    def ffn_width(self) -> int:
        """`ffn`, or 8/3 of the width rounded up to a multiple of 32: as many weights as a plain block of 4 x width."""
        return self.ffn or -(-8 * self.width // (3 * _FFN_MULTIPLE)) * _FFN_MULTIPLE


class LanguageModel(TorchTrainer):
    """Next-token cross-entropy of a Llama on rows of `context + 1` tokens; needs the extra `lm`."""

    Params = LanguageModelParams
    columns = ("tokens",)
    counts: ClassVar[Literal["samples", "tokens"]] = "tokens"
    cross_entropy = True
    libraries: ClassVar[tuple[str, ...]] = ("transformers", "tokenizers")

    def __init__(self) -> None:
        if missing := [name for name in self.libraries if find_spec(name) is None]:
            raise PlanRefused(
                f"needs {' and '.join(missing)}, not installed.",
                where="trainer 'lm'",
                hint="pip install 'trn-runtime[lm]'",
            )
        self._tokenizer: Any = None

    def setup(self, ctx: Context) -> None:
        """Open the tokenizer. Raises DataError when it cannot be read, or has not `vocab` entries."""
        params: LanguageModelParams = ctx.params
        if params.tokenizer is not None:
            self._tokenizer = _open_tokenizer(Path(ctx.plan.spec_folder, params.tokenizer, "tokenizer.json"), params)

    def vocab_size(self, params: LanguageModelParams) -> int:
        return params.vocab

    def tokens_of(self, row_length: int) -> int:
        """How many predictions a row of so many tokens gives: what `loss` counts."""
        return row_length - 1

    def build(self, ctx: Context) -> nn.Module:
        """The model with weights from torch's global generator; nothing is read from a hub or a cache."""
        from transformers import LlamaConfig, LlamaForCausalLM

        params: LanguageModelParams = ctx.params
        attention: dict[str, Any] = {"attn_implementation": "sdpa"}  # a key that the typed signature does not list
        config = LlamaConfig(
            vocab_size=params.vocab,
            hidden_size=params.width,
            intermediate_size=params.ffn_width,
            num_hidden_layers=params.depth,
            num_attention_heads=params.heads,
            num_key_value_heads=params.kv_heads,
            max_position_embeddings=params.context,
            rms_norm_eps=params.norm_eps,
            tie_word_embeddings=params.tied,
            rope_parameters={"rope_type": "default", "rope_theta": params.rope_theta},
            attention_dropout=params.dropout,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
            **attention,
        )
        model: nn.Module = LlamaForCausalLM(config)
        return model

    def transform(self, raw_batch: pa.RecordBatch, ctx: Context) -> Mapping[str, Tensor]:
        """The tokens, int64 `[B, context + 1]`. Raises DataError for other shapes and ids outside the vocabulary."""
        tensors = ctx.tensors(raw_batch)
        return {"tokens": _checked(tensors.get("tokens"), list(tensors), ctx.params)}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Step:
        inputs_BT, targets_BT = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        if _is_better_in_pieces(model, targets_BT):
            loss = _loss_in_pieces(model, inputs_BT, targets_BT)
        else:
            logits_BTV = model(input_ids=inputs_BT).logits
            loss = nn.functional.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())
        return Step(loss, count=targets_BT.numel())

    def export(self, batch: Mapping[str, Tensor], state: TorchState, ctx: Context) -> Export:
        """Token ids to logits: any number of rows, any length."""
        tokens_BT = batch["tokens"][:, :-1]
        return Export(state.model, {"tokens": tokens_BT}, ("logits",), {"tokens": {0: "batch", 1: "time"}})

    def sample(self, state: TorchState, ctx: Context) -> Mapping[str, str]:
        """sample.txt: the prompt and `sample_tokens` tokens after it; token ids where there is no tokenizer.

        Drawn from a generator of its own, keyed by seed and step: the global random streams are not touched.
        """
        params: LanguageModelParams = ctx.params
        generator = torch.Generator().manual_seed((ctx.plan.seed * 1_000_003 + ctx.step) % 2**63)
        ids = self._tokenizer.encode(params.prompt).ids if self._tokenizer is not None else []
        ids = ids or [0]  # end of text, which comes before each file
        was_training = state.model.training
        state.model.eval()
        try:
            with torch.no_grad():
                for _ in range(params.sample_tokens):
                    tokens_BT = torch.tensor([ids[-params.context :]], device=ctx.device)
                    logits_V = state.model(input_ids=tokens_BT).logits[0, -1]
                    ids.append(_pick(logits_V.float().cpu(), params.temperature, generator))
        finally:
            state.model.train(was_training)
        if self._tokenizer is None:
            return {"sample.txt": " ".join(map(str, ids)) + "\n"}
        return {"sample.txt": self._tokenizer.decode(ids, skip_special_tokens=False) + "\n"}


def _is_better_in_pieces(model: Any, targets_BT: Tensor) -> bool:
    """Whether the loss is made without ever holding all logits: in float32, of a model that is not compiled.

    With 4,096 words and a width of 128 that takes half the time of the plain way, forward and backward, and a fraction
    of its memory: the logits of a few rows stay in the cache. A torch without it (before 2.13) computes all of them.
    """
    width, vocab = model.config.hidden_size, model.config.vocab_size
    return (
        hasattr(nn, "LinearCrossEntropyOptions")
        and not hasattr(model, "_orig_mod")  # calling a part of a compiled model would leave the rest as it was
        and not torch.is_autocast_enabled(targets_BT.device.type)
        and model.lm_head.weight.dtype == torch.float32
        and width <= targets_BT.numel()
        and width < vocab
    )


def _loss_in_pieces(model: Any, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean cross-entropy of the model's logits, as torch makes it in pieces of the rows."""
    hidden_BTD = model.model(input_ids=inputs_BT).last_hidden_state
    loss: Tensor = nn.functional.linear_cross_entropy(
        hidden_BTD.flatten(0, 1), model.lm_head.weight, targets_BT.flatten(), options=nn.LinearCrossEntropyOptions()
    )
    return loss


def _open_tokenizer(path: Path, params: LanguageModelParams) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception for what it cannot parse
        raise DataError(
            f"cannot open the tokenizer: {error}.",
            where=str(path),
            hint="Set hyperparams.tokenizer to the tokenizer folder that `trn data text` wrote.",
        ) from error
    if (size := tokenizer.get_vocab_size()) != params.vocab:
        raise DataError(
            f"the tokenizer has {size} entries, hyperparams.vocab is {params.vocab}.",
            where=str(path),
            hint=f"Set hyperparams.vocab to {size}.",
        )
    return tokenizer


def _checked(tokens_BT: Tensor | None, columns: list[str], params: LanguageModelParams) -> Tensor:
    if tokens_BT is None:
        raise DataError(f"the batch has no such column; it has {', '.join(columns)}.", where='column "tokens"')
    length = params.context + 1
    if tokens_BT.dim() != 2 or tokens_BT.shape[1] != length or tokens_BT.is_floating_point():
        found = f"{str(tokens_BT.dtype).removeprefix('torch.')} {list(tokens_BT.shape[1:])}"
        raise DataError(
            f"a row is {found}, expected integers [{length}] (hyperparams.context + 1).",
            where='column "tokens"',
            hint="Set hyperparams.context to the --context of `trn data text`.",
        )
    tokens_BT = tokens_BT.long()  # before the look at them: torch compares few of the unsigned types
    low, high = (int(value) for value in torch.aminmax(tokens_BT))
    if low < 0 or high >= params.vocab:
        raise DataError(
            f"token id {low if low < 0 else high} is outside of 0 to {params.vocab - 1} (hyperparams.vocab).",
            where='column "tokens"',
            hint="The data are from another tokenizer.",
        )
    return tokens_BT


def _pick(logits_V: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    return int(torch.multinomial(torch.softmax(logits_V / temperature, dim=0), 1, generator=generator))
