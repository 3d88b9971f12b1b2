"""The moving average of a model: its numbers, its buffers, and the model that is put back whatever happens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.compare import differences
from trn.errors import ResumeRefused
from trn.trainer.averaging import Average, hold_buffers, put_back_buffers


class Odd(nn.Module):
    """All that a model may have: shared, frozen and narrow weights, a counter, a mask, a cache, a buffer made anew."""

    running: Tensor
    mask: Tensor
    cache: Tensor
    count: Tensor
    replaced: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.narrow = nn.Parameter(torch.ones(4, dtype=torch.float16))
        self.register_buffer("running", torch.zeros(3))
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("replaced", torch.zeros(2))

    def change(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in (self.first.weight, self.first.bias, self.second.bias, self.narrow):
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
            self.running.add_(torch.randn(3, generator=draw))
            self.count.add_(1)
            self.cache.add_(1.0)
        self.replaced = self.replaced + 1.0


def test_it_is_the_average_that_a_person_would_write() -> None:
    model, decay = Odd(), 0.75
    average = Average(model, decay)
    expected = {name: value.detach().float().clone() for name, value in model.state_dict().items()}
    for seed in range(4):
        model.change(seed)
        average.update()
        for name, value in model.state_dict().items():
            if name not in ("count", "mask"):
                expected[name] = decay * expected[name] + (1 - decay) * value.float()
    found = average.state_dict()
    assert found.keys() == model.state_dict().keys() - {"second.weight"}
    assert found["count"].item() == 4
    assert torch.equal(found["mask"], model.mask)
    for name in found.keys() - {"count", "mask"}:
        assert found[name].dtype == torch.float32
        # the same sum, rounded in another order
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)


def test_inside_the_model_is_the_average_and_afterwards_what_it_was() -> None:
    model = Odd()
    average = Average(model, 0.5)
    model.change(1)
    average.update()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    places = {name: value.data_ptr() for name, value in model.state_dict().items()}

    def look_inside() -> None:
        with average.in_model():
            with average.in_model():
                model.replaced = model.replaced + 1.0
            assert model.narrow.dtype == torch.float16
            assert torch.equal(model.running, before["running"] * 0.5)
            assert torch.equal(model.second.weight, model.first.weight)
            raise KeyError

    with pytest.raises(KeyError):
        look_inside()
    assert differences("", dict(model.state_dict()), before) == []
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == places
    assert torch.equal(average.state_dict()["running"], before["running"] * 0.5)


def test_a_model_is_not_saved_while_it_holds_its_average() -> None:
    average = Average(Odd(), 0.5)
    with average.in_model(), pytest.raises(AssertionError, match="not saved"):
        average.state_dict()


def test_it_goes_on_from_what_was_saved_bit_for_bit() -> None:
    ours, theirs = Odd(), Odd()
    average = Average(ours, 0.9)
    for seed in range(3):
        ours.change(seed)
        average.update()
    again = Average(theirs, 0.9)
    theirs.load_state_dict(ours.state_dict())
    saved = {name: value.clone() for name, value in average.state_dict().items()}
    again.load_state_dict(saved)
    assert differences("", again.state_dict(), average.state_dict()) == []
    for seed in range(3, 6):
        for model, one in ((ours, average), (theirs, again)):
            model.change(seed)
            one.update()
    assert differences("", again.state_dict(), average.state_dict()) == []
    assert all(value.data_ptr() != again.state_dict()[name].data_ptr() for name, value in saved.items())


def test_an_average_of_another_model_is_refused_and_nothing_of_it_kept() -> None:
    average = Average(Odd(), 0.9)
    before = {name: value.clone() for name, value in average.state_dict().items()}
    cases: list[tuple[Any, str]] = [
        (None, "expected tensors by name"),
        ({name: value for name, value in before.items() if name != "running"}, "lacks 'running'"),
        ({**before, "extra": torch.zeros(1)}, "has 'extra'"),
        ({**before, "first.weight": torch.zeros(4, 3)}, r"ema.first.weight: expected .*\[3, 3\], found .*\[4, 3\]"),
        ({**before, "running": torch.zeros(3).double()}, "ema.running: expected torch.float32"),
    ]
    for payload, message in cases:
        with pytest.raises(ResumeRefused, match=message):
            average.load_state_dict(payload)
    assert differences("", average.state_dict(), before) == []


def test_buffers_are_put_back_also_where_others_took_their_place() -> None:
    model = Odd()
    model.change(0)
    before = {name: value.clone() for name, value in model.named_buffers()}
    held = hold_buffers(model)
    model.change(1)
    put_back_buffers(held)
    assert differences("", dict(model.named_buffers()), before) == []
