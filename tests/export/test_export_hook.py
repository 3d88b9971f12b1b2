"""What a trainer may say of its model, and the sizes that follow from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from support.plans import context_of, plan_of
from trn.errors import TrainerError
from trn.export.trials import example_of, exports_of, trials_of
from trn.trainer import Context, Export, has_export

X = torch.zeros(4, 6)
LINEAR = nn.Linear(6, 1)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "linear"}, "Export.model: expected a torch.nn.Module, found str"),
        ({"inputs": {}}, "Export.inputs: expected at least one tensor"),
        ({"inputs": {"x": [1.0]}}, "Export.inputs.x: expected a tensor, found list"),
        ({"outputs": "y"}, "Export.outputs: expected a tuple of names"),
        ({"outputs": ("x",)}, "'x' is the name of two inputs or outputs"),
        ({"outputs": ("y 1",)}, "'y 1' is no plain name"),
        ({"dynamic": {"z": {0: "batch"}}}, "Export.dynamic.z: there is no such input; there is x"),
        ({"dynamic": {"x": {2: "batch"}}}, "axis 2: the input has 2 axes"),
        ({"dynamic": {"x": [0]}}, "Export.dynamic.x: expected {axis: name}, found list"),
        ({"dynamic": {"x": {0: "batch"}, "z": [0]}}, "Export.dynamic.z: there is no such input"),
        ({"dynamic": ["x"]}, "Export.dynamic: expected a mapping by name, found list"),
        ({"sets": ["y"]}, "Export.sets: expected a mapping by name, found list"),
        ({"dynamic": {"x": {0: "the batch"}}}, "'the batch' is no plain name"),
        ({"dynamic": {"x": {0: "n", 1: "n"}}}, "has more than one size: [4, 6]"),
        ({"sets": {"z": 1}}, "Export.sets.z: expected an output"),
    ],
)
def test_names_that_do_not_fit_are_refused(changes: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {"model": LINEAR, "inputs": {"x": X}, "outputs": ("y",)}
    with pytest.raises(TrainerError) as error:
        Export(**(given | changes))
    assert told in str(error.value)


class Exporting:
    """Six hooks need not be there for this one."""

    def __init__(self, given: Any = None) -> None:
        self.given = given
        self.seen: list[tuple[int, list[int]]] = []

    def prepare_batch(self, raw_batch: pa.RecordBatch, state: Any, ctx: Context) -> Tensor:
        self.seen.append((raw_batch.num_rows, ctx.row_ids.tolist()))
        return torch.tensor(raw_batch.column("x").to_pylist())

    def export(self, batch: Tensor, state: Any, ctx: Context) -> Any:
        return self.given or Export(LINEAR, {"x": batch}, ("y",), {"x": {0: "batch"}})


def rows(count: int) -> pa.RecordBatch:
    return pa.record_batch({"x": [[float(row)] * 6 for row in range(count)]})


def test_the_hook_is_called_with_all_rows_first_and_then_with_fewer(tmp_path: Path) -> None:
    trainer, ctx = Exporting(), context_of(plan_of(tmp_path))
    exports = exports_of(trainer, None, ctx, rows(8))  # type: ignore[arg-type]  # only two hooks are called
    assert [len(one.inputs["x"]) for one in exports] == [8, 1, 3]
    assert trainer.seen == [(8, list(range(8))), (1, [0]), (3, [0, 1, 2])]
    assert ctx.row_ids.tolist() == []
    assert has_export(trainer)
    assert not has_export(object())


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"expected a trn.Export, found int"):
        exports_of(Exporting(given=1), None, context_of(plan_of(tmp_path)), rows(2))  # type: ignore[arg-type]


def export_of(batch: int, time: int = 5) -> Export:
    axes = {"x": {0: "batch", 1: "time"}, "mask": {1: "time"}}
    return Export(LINEAR, {"x": torch.zeros(batch, time, 6), "mask": torch.ones(2, time)}, ("y",), axes)


def test_every_axis_is_tried_in_other_sizes_and_in_one_larger_than_the_example() -> None:
    trials = trials_of([export_of(8), export_of(1), export_of(3)])
    shapes = [tuple(one.inputs["x"].shape[:2]) for one in trials]
    assert shapes == [(8, 5), (1, 5), (3, 5), (11, 5), (8, 1), (8, 3), (8, 8)]
    assert all(one.inputs["mask"].shape[1] == one.inputs["x"].shape[1] for one in trials)
    assert [one.is_given for one in trials] == [True] * 3 + [False] * 4


def test_an_example_has_no_axis_of_one_where_it_may_change() -> None:
    assert example_of(export_of(1, 1))["x"].shape == (2, 2, 6)


def test_a_fixed_axis_keeps_the_examples_size() -> None:
    fixed = [Export(LINEAR, {"x": torch.zeros(size, 6)}, ("y",)) for size in (8, 1, 3)]
    assert [one.inputs["x"].shape[0] for one in trials_of(fixed)] == [8]
