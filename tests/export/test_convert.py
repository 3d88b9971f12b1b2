"""Real ONNX files: what is in them, what is refused, and what the comparison finds."""

from __future__ import annotations

import copy
import logging
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from support.exports import BATCH, RIGHT, Lambda, several
from trn.checkpoint import rng
from trn.errors import PlanRefused, TrainerError, UsageError
from trn.export.convert import Converted, Settings, convert
from trn.export.onnx_file import Initialisers, compare_initialisers, write_onnx, written_opset
from trn.export.parity import Parity, compare
from trn.export.program import trace
from trn.export.quiet import quiet
from trn.export.session import open_session, run_session
from trn.export.sidecar import files_of
from trn.export.trials import example_of
from trn.trainer import Export

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

HOW_MANY = int(os.environ.get("TRN_EXPORTS", "0"))
"""Set it to 50 for the figures: 50 exports without an alarm, 100 changed weights of each model all found."""
SETTINGS = Settings(opset=18, policy="fail", atol=None, threads=1)
NOTHING_DIFFERS = Initialisers((), (), (), {}, ())


@pytest.fixture(autouse=True)
def _drawn_alike() -> Iterator[None]:
    with rng.isolated(7):
        yield


def converted(export: Export, folder: Path, *sizes: int, opset: int = 18) -> Converted:
    return convert(several(export, *sizes), replace(SETTINGS, opset=opset), folder)


def session_of(proto: Any) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def set_weight(proto: Any, name: str, index: int, value: float) -> float:
    """Change one number of one initialiser; returns what it was."""
    (one,) = (one for one in proto.graph.initializer if one.name == name)
    array = onnx.numpy_helper.to_array(one).copy()
    before = float(array.reshape(-1)[index])
    array.reshape(-1)[index] = value
    one.CopyFrom(onnx.numpy_helper.from_array(array, name))
    return before


@pytest.mark.slow
def test_a_file_is_whole_exact_and_leaves_no_trace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The one real export of the fast suite, looked at from all sides."""
    export = RIGHT["two_inputs"]()
    export.model.train()
    streams, state = rng.capture(), {name: one.clone() for name, one in export.model.state_dict().items()}
    one = converted(export, tmp_path, 1, 3)
    assert one.parity.reason is None
    assert one.parity.worst["scores"] <= one.parity.tolerances["scores"].atol < 1e-4
    assert written_opset(tmp_path / "model.onnx") == one.opset == 18
    assert [one["name"] for one in one.files] == ["model.onnx"]
    assert one.shapes == {"ids": ["batch", "time"], "x": ["batch", 6]}
    assert [trial.inputs["ids"].shape for trial in one.reference.trials] == [
        *((8, 4), (1, 4), (3, 4), (11, 4)),
        *((8, 1), (8, 2), (8, 7)),
    ]
    assert (set(one.initialisers.compared), one.initialisers.different) >= (
        {"embedding.weight", "mix.weight", "mix.bias"},
        (),
    )
    assert one.initialisers.made_by_exporter == ()

    assert export.model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in export.model.state_dict().items())
    assert rng.capture() == streams
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert str(Path(__file__).parents[2]).encode() not in (tmp_path / "model.onnx").read_bytes()

    # a weight that another one holds, by a single bit
    proto = onnx.load(tmp_path / "model.onnx")
    before = set_weight(proto, "mix.bias", 3, 0.0)
    set_weight(proto, "mix.bias", 3, np.nextafter(np.float32(before), np.float32(9)))
    onnx.save(proto, tmp_path / "model.onnx")
    found = compare_initialisers(tmp_path / "model.onnx", one.program, one.model)
    assert found.different == ("mix.bias",)
    parity = compare(session_of(proto), export, one.reference, found, None)
    assert parity.reason == "initialisers: mix.bias differ from the model's weights"

    # an output that is far off
    set_weight(proto, "mix.bias", 3, before + 0.1)
    parity = compare(session_of(proto), export, one.reference, NOTHING_DIFFERS, None)
    assert (parity.reason or "").startswith("scores: off by 0.")


BOTH = [(name, opset) for opset in (18, 20) for name in RIGHT]
ONE_EACH = [(name, 18 + 2 * (place % 2)) for place, name in enumerate(RIGHT)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "opset"), BOTH if HOW_MANY else ONE_EACH)
def test_models_of_many_kinds_compute_the_same(tmp_path: Path, name: str, opset: int) -> None:
    export = RIGHT[name]()
    one = converted(export, tmp_path, 1, 3, opset=opset)
    assert one.parity.reason is None
    assert one.opset == opset
    assert one.initialisers.different == ()
    declared = {name: dict(axes) for name, axes in export.dynamic.items()}
    found = {
        name: {axis: word for axis, word in enumerate(shape) if isinstance(word, str)}
        for name, shape in one.shapes.items()
    }
    assert found == declared


@pytest.mark.slow
def test_right_models_raise_no_alarm(tmp_path: Path) -> None:
    alarms, margins = [], []
    exports = HOW_MANY or 3
    for turn in range(exports):
        name = list(RIGHT)[turn % len(RIGHT)]
        torch.manual_seed(1000 + turn)
        folder = tmp_path / str(turn)
        folder.mkdir()
        export = RIGHT[name]()
        with torch.no_grad():  # weights of other sizes than those drawn at first
            for parameter in export.model.parameters():
                parameter.mul_(random.Random(turn).choice([0.5, 1.0, 3.0]))
        one = converted(export, folder, 1, 3)
        alarms += [(name, turn, one.parity.reason)] if one.parity.reason else []
        margins += [
            worst / one.parity.tolerances[output].atol
            for output, worst in one.parity.worst.items()
            if one.parity.tolerances[output].atol
        ]
    print(f"{exports} exports, {len(alarms)} alarms, largest part of a tolerance {max(margins):.2f}")
    assert alarms == []


def effect(one: Converted, export: Export, wide: nn.Module) -> float:
    """How far outputs of `wide` are from those of the model in float64, in parts of their scale."""
    largest = 0.0
    assert one.reference.exact is not None
    for trial, exact in zip(one.reference.trials, one.reference.exact, strict=True):
        inputs = [tensor.double() if tensor.is_floating_point() else tensor for tensor in trial.inputs.values()]
        with torch.no_grad():
            outputs = pytree.tree_leaves(wide(*inputs))
        for name, output in zip(export.outputs, outputs, strict=True):
            if output.is_floating_point():
                scale = one.parity.tolerances[name].scale
                largest = max(largest, float(np.abs(output.numpy() - exact[name]).max()) / scale)
    return largest


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT if HOW_MANY else ["mlp"])
def test_a_thousandth_on_one_weight_that_matters_is_found_by_the_outputs_alone(tmp_path: Path, name: str) -> None:
    """Matters: some output moves by a hundred-thousandth of its scale, as float64 tells."""
    export = RIGHT[name]()
    one = converted(export, tmp_path, 1, 3)
    proto = onnx.load(tmp_path / "model.onnx")
    wide = copy.deepcopy(one.model).double().eval()
    weights = {key: value for key, value in wide.named_parameters() if key in one.initialisers.compared}
    draw, wanted, found, tried = random.Random(5), 100 if HOW_MANY else 10, 0, 0
    missed = []
    while found < wanted:
        tried += 1
        assert tried < 20 * wanted
        key = draw.choices(list(weights), [value.numel() for value in weights.values()])[0]
        index = draw.randrange(weights[key].numel())
        before = set_weight(proto, key, index, 0.0)
        changed = float(np.float32(before + 1e-3))
        with torch.no_grad():
            weights[key].view(-1)[index] = changed
        moved = effect(one, export, wide)
        if moved >= 1e-5:
            found += 1
            set_weight(proto, key, index, changed)
            if compare(session_of(proto), export, one.reference, NOTHING_DIFFERS, None).passed:
                missed.append((key, index, moved))
        set_weight(proto, key, index, before)
        with torch.no_grad():
            weights[key].view(-1)[index] = before
    print(f"{name}: {found} of {tried} weights mattered, {found - len(missed)} found")
    assert missed == []


LINEAR = nn.Linear(6, 4)


def of(function: Callable[..., Any], outputs: tuple[str, ...] = ("y",), x: Tensor | None = None) -> Export:
    x = torch.ones(8, 6) if x is None else x
    return Export(Lambda(function, linear=LINEAR), {"x": x}, outputs, {"x": BATCH})


class Positions(nn.Module):
    """As many positions as there are: no longer sequence goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(16, 6))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.table[: x.shape[1]]).tanh()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("export", "told"),
    [
        (of(lambda self, x: self.linear(x) / len(x)), "input 'x', axis 0 ('batch'): it is declared dynamic"),
        (of(lambda self, x: self.linear(x).view(8, 2, 2)), "the model fixes it to the example's size, 8."),
        (of(lambda self, x: torch.linalg.svdvals(self.linear(x))), "no ONNX form: DispatchError: No ONNX function"),
        (of(lambda self, x: self.linear(x) if x.sum() > 0 else x), "torch.export cannot trace the model"),
        (of(lambda self, x: (self.linear(x), x), ("y", "z")), "an output that is an input"),
        (of(lambda self, x: (self.linear(x), 1.0), ("y", "z")), "the model gives float among its outputs"),
        (
            of(lambda self, x: (self.linear(x), x + 1)),
            "the model gives 2 tensors ([8, 4], [8, 6]), Export.outputs names 1",
        ),
        (of(lambda self, x: self.linear(x[:, :3])), "torch.export cannot trace the model"),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], export: Export, told: str
) -> None:
    with pytest.raises(TrainerError) as error:
        converted(export, tmp_path)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_large_model_has_its_weights_beside_it(tmp_path: Path) -> None:
    """As from 2 GB on; written so here by request."""
    export = RIGHT["mlp"]()
    export.model.eval()
    with torch.no_grad(), quiet():
        program = trace(export.model, export, example_of(export))
        write_onnx(program, export, 18, tmp_path / "model.onnx", external=True)
    names = [one["name"] for one in files_of(tmp_path, tmp_path.iterdir())]
    assert names == ["model.onnx", "model.onnx.data"]
    found = compare_initialisers(tmp_path / "model.onnx", program, export.model)
    assert (len(found.compared), found.different) == (6, ())
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    (output,) = run_session(open_session(moved / "model.onnx", 1), export.inputs)
    assert np.abs(output - export.model(export.inputs["x"]).detach().numpy()).max() < 1e-6
    data = bytearray((moved / "model.onnx.data").read_bytes())
    data[-1] ^= 1
    (moved / "model.onnx.data").write_bytes(data)
    assert len(compare_initialisers(moved / "model.onnx", program, export.model).different) == 1


@pytest.mark.slow
def test_another_opset_than_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanRefused, match=r"opset 99 was asked for, and the exporter wrote \d+"):
        converted(of(lambda self, x: self.linear(x)), tmp_path, opset=99)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="opset 17 is not written; expected 18 or more"):
        replace(SETTINGS, opset=17)
    for atol in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="expected a number of 0 or more"):
            replace(SETTINGS, atol=atol)


@pytest.mark.slow
def test_the_limits_of_an_axis_are_found_out(tmp_path: Path) -> None:
    x = torch.randn(4, 16, 6)
    one = converted(Export(Positions(), {"x": x}, ("y",), {"x": {0: "batch", 1: "time"}}), tmp_path)
    assert one.parity.reason is None
    assert one.program.ranges == {"batch": (1, None), "time": (1, 16)}
    assert [what.partition(":")[0] for what in one.reference.left_out] == ["time = 19"]


def best(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    scores, places = self.linear(x)[..., 0].topk(4, dim=1)
    return scores, self.linear(x).gather(1, places[..., None].expand(-1, -1, 4))


@pytest.mark.slow
def test_ties_among_the_best_are_compared_as_sets(tmp_path: Path) -> None:
    """Pairs of queries with one score each, and another rest: which of a pair comes first is anybody's choice."""
    model = Lambda(best, linear=nn.Linear(6, 4))
    with torch.no_grad():
        model.linear.weight[0] = torch.tensor([1.0, 0, 0, 0, 0, 0])
    x = torch.randn(3, 10, 6)
    x[:, 1::2, 0] = x[:, ::2, 0]
    export = Export(model, {"x": x}, ("scores", "boxes"), {"x": BATCH}, {"scores": 1, "boxes": 1})
    one = converted(export, tmp_path, 1)
    assert one.parity.reason is None
    as_elements = replace(export, sets={})
    parity = compare(session_of(onnx.load(tmp_path / "model.onnx")), as_elements, one.reference, NOTHING_DIFFERS, None)
    assert (parity.reason or "").startswith("boxes: off by")


@pytest.mark.slow
def test_what_is_drawn_or_no_number_does_not_pass(tmp_path: Path) -> None:
    noisy = converted(of(lambda self, x: self.linear(x) + torch.rand_like(x[:, :4])), tmp_path)
    assert "y: off by" in (noisy.parity.reason or "")
    no_number = converted(of(lambda self, x: self.linear(x).abs().neg().log()), tmp_path)
    assert "y: non_finite" in (no_number.parity.reason or "")


@pytest.mark.slow
def test_a_type_that_the_runtime_does_not_have_is_a_reason(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 4)).bfloat16()
    one = converted(Export(model, {"x": torch.ones(4, 6).bfloat16()}, ("y",), {"x": BATCH}), tmp_path)
    assert (one.parity.reason or "").startswith("onnxruntime_init_failed: NotImplemented")
    assert isinstance(one.parity, Parity)


@pytest.mark.slow
def test_a_model_that_does_not_run_in_float64_is_judged_by_its_type(tmp_path: Path) -> None:
    one = converted(of(lambda self, x: self.linear(x) @ torch.ones(4, 2, dtype=torch.float32)), tmp_path, 1)
    assert one.parity.reason is None
    tolerance = one.parity.tolerances["y"]
    assert (tolerance.rule, tolerance.own_gap) == ("type", None)
    assert "does not run in float64" in (tolerance.note or "")


@pytest.mark.slow
def test_a_wrong_weight_is_found_beside_a_mask(tmp_path: Path) -> None:
    def masked(self: Any, x: Tensor) -> Tensor:
        return self.linear(x).masked_fill(x[:, :4] > 0.5, torch.finfo(x.dtype).min)

    export = of(masked, x=torch.randn(8, 6))
    one = converted(export, tmp_path, 1)
    assert one.parity.reason is None
    proto = onnx.load(tmp_path / "model.onnx")
    set_weight(proto, "linear.bias", 0, 5.0)
    parity = compare(session_of(proto), export, one.reference, NOTHING_DIFFERS, None)
    assert (parity.reason or "").startswith("y: off by")


@pytest.mark.slow
def test_whole_numbers_that_are_rounding_alone_do_not_pass(tmp_path: Path) -> None:
    one = converted(of(lambda self, x: (self.linear(x) * 1e9).long(), x=torch.randn(8, 6)), tmp_path, 1)
    assert "too few are left to compare" in (one.parity.reason or "")


class Turned(nn.Module):
    """Pairs of numbers, turned by complex ones that are no parameter and are not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turns", torch.polar(torch.ones(4, 3), torch.randn(4, 3)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(-1, 4, 3, 2))
        return torch.view_as_real(pairs * self.turns).flatten(2)


@pytest.mark.slow
def test_complex_numbers_are_compared_as_two_real_ones(tmp_path: Path) -> None:
    one = converted(Export(Turned(), {"x": torch.randn(8, 4, 6)}, ("y",), {"x": BATCH}), tmp_path, 1)
    assert one.parity.reason is None
    assert one.initialisers.compared == ("turns",)
    one.model.turns[0, 0] += 1e-6  # type: ignore[index,operator]  # a buffer
    assert compare_initialisers(tmp_path / "model.onnx", one.program, one.model).different == ("turns",)


def test_axes_of_two_names_that_are_one_are_refused() -> None:
    export = Export(
        Lambda(lambda self, a, b: a + b),
        {"a": torch.ones(8, 6), "b": torch.ones(8, 6)},
        ("y",),
        {"a": BATCH, "b": {0: "n"}},
    )
    with quiet(), pytest.raises(TrainerError, match=r"axis 0 \('n'\): the model takes it in the size of 'batch' only"):
        trace(export.model, export, example_of(export))


class Counting(nn.Module):
    """Writes into itself whenever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("ones", torch.ones(1).expand(4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) * self.ones + self.calls


@pytest.mark.slow
def test_a_model_that_writes_into_its_buffers_is_as_it_was(tmp_path: Path) -> None:
    model = Counting()
    one = converted(Export(model, {"x": torch.randn(8, 6)}, ("y",), {"x": BATCH}), tmp_path, 1, 3)
    assert one.parity.reason is None
    assert model.calls == 0
