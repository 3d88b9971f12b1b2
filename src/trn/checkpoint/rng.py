"""All streams of random numbers that a training may draw from, as one JSON value; capturing draws from none.

Python's `random`, numpy's global generator, torch's CPU generator and that of each CUDA device. Generators that a
trainer makes itself are its own: they belong into its `state_dict`.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from trn.records import Json

__all__ = ["capture", "held", "isolated", "put_back", "restore", "seed_all"]


def seed_all(seed: int) -> None:
    """Put every stream at its beginning for `seed` (any int; numpy takes its low 32 bits)."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)  # the same stream: 1 us, where looking for accelerators takes 90


def capture() -> Json:
    """The position of every stream; plain numbers and hex text."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = np.random.get_state(legacy=False)
    return {
        "python": {"version": version, "words": list(words), "gauss_next": gauss},
        "numpy": {
            "keys": state["state"]["key"].tolist(),
            "pos": int(state["state"]["pos"]),
            "has_gauss": int(state["has_gauss"]),
            "gauss": float(state["gauss"]),
        },
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(one) for one in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
        "mps": _hex(torch.mps.get_rng_state()) if torch.backends.mps.is_available() else None,
    }


def restore(value: Json) -> None:
    """Put every stream where `capture` found it."""
    python = value["python"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss_next"]))
    stream = value["numpy"]
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": np.array(stream["keys"], np.uint32), "pos": stream["pos"]},
            "has_gauss": stream["has_gauss"],
            "gauss": stream["gauss"],
        }
    )
    torch.set_rng_state(_bytes(value["torch"]))
    if value["mps"]:
        torch.mps.set_rng_state(_bytes(value["mps"]))
    if value["cuda"]:
        torch.cuda.set_rng_state_all([_bytes(one) for one in value["cuda"]])


def held() -> Any:
    """The position of every stream as `put_back` takes it: in memory only, and cheap enough for each step."""
    return (
        random.getstate(),
        np.random.get_state(legacy=False),
        torch.get_rng_state(),
        torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    )


def put_back(positions: Any) -> None:
    """Put every stream where `held` found it."""
    python, stream, cpu, cuda, mps = positions
    random.setstate(python)
    np.random.set_state(stream)
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
    if mps is not None:
        torch.mps.set_rng_state(mps)


@contextlib.contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Inside, every stream begins at `seed`; afterwards all are where they were.

    Evaluating, sampling or transforming draws the same numbers whenever and wherever it is done, and doing it more
    often changes no training. Costs 0.1 ms.
    """
    before = held()
    seed_all(seed)
    try:
        yield
    finally:
        put_back(before)


def _hex(state: torch.Tensor) -> str:
    return bytes(state.numpy()).hex()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
