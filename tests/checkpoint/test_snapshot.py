"""What is copied is what was given, whatever its keys are called and whose memory it shares."""

from __future__ import annotations

import torch

from trn.checkpoint.snapshot import Snapshots


def test_keys_that_read_alike_are_not_taken_for_each_other() -> None:
    tree = {
        "model": {"0.weight": torch.full((3,), 1.0)},
        "model.0": {"weight": torch.full((3,), 2.0)},
        "ids": {0: torch.full((3,), 3.0), "0": torch.full((3,), 4.0)},
    }
    copy = Snapshots().take(tree)
    assert copy["model"]["0.weight"].tolist() == [1.0] * 3
    assert copy["model.0"]["weight"].tolist() == [2.0] * 3
    assert copy["ids"][0].tolist() == [3.0] * 3
    assert copy["ids"]["0"].tolist() == [4.0] * 3


def test_conjugated_and_negated_views_have_their_own_values() -> None:
    for size in (10, 300_000):
        values = [torch.randn(size, dtype=torch.complex64) for _ in range(4)]
        tree = {str(i): value.conj() for i, value in enumerate(values)}
        tree |= {f"plain {i}": value for i, value in enumerate(values)}
        tree |= {f"negative {i}": value.conj().imag for i, value in enumerate(values)}
        copy = Snapshots().take(tree)
        for name, value in tree.items():
            assert torch.equal(copy[name], value.resolve_conj().resolve_neg()), name
            assert not copy[name].is_conj()
            assert not copy[name].is_neg()
