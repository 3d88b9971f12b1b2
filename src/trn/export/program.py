"""A model traced by torch.export, with exactly the axes dynamic that were declared so, or a refusal.

`torch.onnx.export` alone would give a file with a fixed batch where the model does not allow another one, and say
nothing: it falls back to other ways of tracing. So the program is made first, and only it becomes a file.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from trn.errors import TrainerError
from trn.trainer.exporting import Export

__all__ = ["Program", "first_line", "original", "trace"]


@dataclass(frozen=True)
class Program:
    """What was traced; the names of its symbols as the author calls them, and the sizes that each may have."""

    exported: ExportedProgram
    symbols: dict[str, str]
    ranges: dict[str, tuple[int, int | None]]
    """Axis -> least and greatest size; None: no limit is known."""


def trace(model: nn.Module, export: Export, example: Mapping[str, Tensor]) -> Program:
    """The program of `model` on the CPU. Raises TrainerError where it cannot be traced, or where an axis is fixed."""
    named = {word: Dim(word, min=1) for axes in export.dynamic.values() for word in axes.values()}
    try:
        return _program(_traced(model, export, example, named), export)
    except Exception as error:  # noqa: BLE001 - the tracer raises what the model's code and its own many parts raise
        return _without_names(model, export, example, error)


def _without_names(model: nn.Module, export: Export, example: Mapping[str, Tensor], why: Exception) -> Program:
    """Once more, with the sizes left to the tracer: it then finds their limits itself, and which ones are fixed."""
    if not export.dynamic:
        raise _untraceable(why) from why
    auto = {word: Dim.AUTO for axes in export.dynamic.values() for word in axes.values()}
    try:
        traced = _traced(model, export, example, auto)
    except Exception as error:
        raise _untraceable(error) from error
    return _program(traced, export)


def _traced(model: nn.Module, export: Export, example: Mapping[str, Tensor], named: Mapping[str, Any]) -> Any:
    shapes: tuple[Any, ...] = tuple(
        {axis: named[word] for axis, word in export.dynamic.get(name, {}).items()} or None for name in export.inputs
    )
    parameters = list(inspect.signature(model.forward).parameters.values())
    if parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        shapes = (shapes,)
    return torch.export.export(model, tuple(example.values()), dynamic_shapes=shapes, strict=False)


def _program(traced: ExportedProgram, export: Export) -> Program:
    """Raises TrainerError for an axis that came out with one size only."""
    values = {node.name: node.meta.get("val") for node in traced.graph.nodes if node.op == "placeholder"}
    symbols: dict[str, str] = {}
    ranges: dict[str, tuple[int, int | None]] = {}
    for input_name, place in zip(export.inputs, traced.graph_signature.user_inputs, strict=True):
        value = values.get(str(place))
        for axis, word in export.dynamic.get(input_name, {}).items():
            size = value.shape[axis] if isinstance(value, Tensor) else None
            if not isinstance(size, torch.SymInt) or not _is_open(size):
                raise _specialised(input_name, axis, word, size)
            if (other := symbols.setdefault(str(size), word)) != word:
                raise _tied(input_name, axis, word, other)
            ranges[word] = _range(traced, size)
    return Program(traced, symbols, ranges)


def _is_open(size: torch.SymInt) -> bool:
    """Whether a size is an unknown: one that was fixed while tracing may still be of the symbolic type."""
    return bool(size.node.expr.free_symbols)


def _range(traced: ExportedProgram, size: torch.SymInt) -> tuple[int, int | None]:
    """Limits of a size. A least size of 2 is what the tracer assumes of every one: 1 is compared like the others."""
    limits = traced.range_constraints.get(size.node.expr)
    if limits is None:
        return 1, None
    upper = limits.upper
    least = int(limits.lower)
    return 1 if least <= 2 else least, int(upper) if upper.is_Integer and int(upper) < 2**31 else None


def _specialised(name: str, axis: int, word: str, size: Any) -> TrainerError:
    return TrainerError(
        f"it is declared dynamic, and the model fixes it to the example's size, {size}.",
        where=f"export: input {name!r}, axis {axis} ({word!r})",
        hint="Use tensor.shape instead of len(tensor) and of numbers in the model, or do not declare the axis.",
    )


def _tied(name: str, axis: int, word: str, other: str) -> TrainerError:
    return TrainerError(
        f"the model takes it in the size of {other!r} only.",
        where=f"export: input {name!r}, axis {axis} ({word!r})",
        hint="Give axes that always have one size one name.",
    )


def _untraceable(error: Exception) -> TrainerError:
    return TrainerError(
        f"torch.export cannot trace the model: {type(error).__name__}: {first_line(error)}.",
        where="export",
        hint="See docs/export.md for what a model must not do.",
    )


def original(model: nn.Module) -> nn.Module:
    """The model that torch.compile has wrapped, or itself."""
    own = getattr(model, "_orig_mod", model)
    return own if isinstance(own, nn.Module) else model


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, without what follows for developers of torch."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300].rstrip(".") if lines else type(error).__name__
