"""What a trainer says of its model so that it can be exported: called with what, giving what, which axes may change.

    def export(self, batch, state, ctx):
        return Export(state.model, {"x": batch["x"]}, ("y",), {"x": {0: "batch"}})

The hook is optional, for a TorchTrainer as for six hooks. It is called with what `prepare_batch` returned, for several
batches of real rows, with the average of the weights in the model where the plan evaluates that. Not here: what is made
of it (trn.export).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from trn.errors import TrainerError

__all__ = ["Export", "has_export"]

_HINT = "See docs/export.md."


@dataclass(frozen=True)
class Export:
    """A model, one example of its inputs, and the names that its file will have.

    `model` is called as `model(*inputs.values())`; its outputs, flattened, are named by `outputs` in their order.
    `dynamic` names the axes whose size may change, input -> axis -> name; axes of one name always have the same size.
    `sets` are outputs whose order along an axis may differ where scores tie (the k best of something): output -> axis.
    Raises TrainerError for names that do not fit together.
    """

    model: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    sets: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise _unfit("model", f"expected a torch.nn.Module, found {type(self.model).__name__}")
        if not isinstance(self.inputs, Mapping) or not self.inputs:
            raise _unfit("inputs", "expected at least one tensor by name")
        for name, value in self.inputs.items():
            if not isinstance(value, Tensor):
                raise _unfit(f"inputs.{name}", f"expected a tensor, found {type(value).__name__}")
        if isinstance(self.outputs, str) or not self.outputs:
            raise _unfit("outputs", "expected a tuple of names, one for each output of the model")
        object.__setattr__(self, "outputs", tuple(self.outputs))
        names = [*self.inputs, *self.outputs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise _unfit("outputs", f"{twice!r} is the name of two inputs or outputs")
        if odd := next((name for name in names if not isinstance(name, str) or not name.isidentifier()), None):
            raise _unfit("inputs and outputs", f"{odd!r} is no plain name")
        for what, given in (("dynamic", self.dynamic), ("sets", self.sets)):
            if not isinstance(given, Mapping):
                raise _unfit(what, f"expected a mapping by name, found {type(given).__name__}")
        for name, axes in self.dynamic.items():
            if name not in self.inputs:
                raise _unfit(f"dynamic.{name}", f"there is no such input; there is {', '.join(self.inputs)}")
            if not isinstance(axes, Mapping):
                raise _unfit(f"dynamic.{name}", f"expected {{axis: name}}, found {type(axes).__name__}")
        for name, axes in self.dynamic.items():
            self._check_axes(name, axes)
        for name, axis in self.sets.items():
            if name not in self.outputs or type(axis) is not int or axis < 0:
                raise _unfit(f"sets.{name}", f"expected an output and one of its axes from 0, found axis {axis!r}")

    def _check_axes(self, name: str, axes: Mapping[int, str]) -> None:
        for axis, word in axes.items():
            dimensions = self.inputs[name].dim()
            if type(axis) is not int or not 0 <= axis < dimensions:
                raise _unfit(f"dynamic.{name}", f"axis {axis!r}: the input has {dimensions} axes, counted from 0")
            if not isinstance(word, str) or not word.isidentifier():
                raise _unfit(f"dynamic.{name}", f"axis {axis}: {word!r} is no plain name")
        for axis, word in axes.items():
            others = {
                self.inputs[input_name].shape[place]
                for input_name, named in self.dynamic.items()
                for place, other in named.items()
                if other == word and type(place) is int and 0 <= place < self.inputs[input_name].dim()
            }
            if len(others) > 1:
                raise _unfit(f"dynamic.{name}", f"axis {axis} ({word!r}) has more than one size: {sorted(others)}")


def has_export(trainer: Any) -> bool:
    """Whether a trainer has the hook."""
    return callable(getattr(trainer, "export", None))


def _unfit(where: str, message: str) -> TrainerError:
    return TrainerError(f"{message}.", where=f"Export.{where}", hint=_HINT)
