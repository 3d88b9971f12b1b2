"""Does the file compute what the model computes? Every output, on several inputs, PyTorch against ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from trn.errors import TrainerError
from trn.export.differences import Array, Gap, Tolerance, gap_of, statistics_of, tolerance_of
from trn.export.onnx_file import Initialisers
from trn.export.program import first_line
from trn.export.quiet import same_buffers
from trn.export.session import run_session
from trn.export.sets import aligned
from trn.export.trials import Trial
from trn.records import Json
from trn.trainer.exporting import Export

__all__ = ["Parity", "Reference", "compare", "reference_of", "refuse_other_outputs"]


@dataclass(frozen=True)
class Reference:
    """What PyTorch gives for each trial that it can run, as the model is and in float64."""

    trials: list[Trial]
    outputs: list[dict[str, Array]]
    exact: list[dict[str, Array]] | None
    note: str | None
    left_out: dict[str, str]
    """Trials of sizes that the model itself refuses, and why."""


def reference_of(model: nn.Module, export: Export, trials: Sequence[Trial]) -> Reference:
    """Run the model. Raises TrainerError where it fails on inputs that the trainer gave, or gives something else."""
    kept: list[Trial] = []
    outputs: list[dict[str, Array]] = []
    left_out: dict[str, str] = {}
    for trial in trials:
        try:
            outputs.append(_run(model, trial.inputs, export.outputs))
            kept.append(trial)
        except TrainerError:
            raise
        except Exception as error:  # the model's own code may raise anything
            if trial.is_given:
                raise TrainerError(
                    f"the model fails on {trial.what}: {type(error).__name__}: {first_line(error)}.", where="export"
                ) from error
            left_out[trial.what] = f"{type(error).__name__}: {first_line(error)}"
    if flat := next((name for name, axis in export.sets.items() if outputs and axis >= outputs[0][name].ndim), None):
        raise TrainerError(f"the output has {outputs[0][flat].ndim} axes.", where=f"Export.sets.{flat}")
    exact, note = _in_float64(model, export, kept)
    return Reference(kept, outputs, exact, note, left_out)


def refuse_other_outputs(model: nn.Module, export: Export, inputs: Mapping[str, Tensor]) -> None:
    """Raise TrainerError where the model gives something else than `outputs`: the tracer would say less of it."""
    try:
        _run(model, inputs, export.outputs)
    except TrainerError:
        raise
    except Exception:  # noqa: BLE001 - where it fails altogether the tracer tells why
        return


def _in_float64(
    model: nn.Module, export: Export, trials: Sequence[Trial]
) -> tuple[list[dict[str, Array]] | None, str | None]:
    try:
        wide = copy.deepcopy(model).double()
        wide.eval()
        return [_run(wide, {k: _wide(v) for k, v in one.inputs.items()}, export.outputs) for one in trials], None
    except Exception as error:  # noqa: BLE001 - a model that names its types cannot be run in others; this is no failure
        return None, f"the model does not run in float64: {type(error).__name__}: {first_line(error)}"


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _run(model: nn.Module, inputs: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Array]:
    # a model may write into what it is given, and into what it has
    with same_buffers(model):
        given = model(*(tensor.clone() for tensor in inputs.values()))
        leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in pytree.tree_leaves(given)]
    leaves = [leaf for leaf in leaves if leaf is not None]
    if odd := next((leaf for leaf in leaves if not isinstance(leaf, Tensor)), None):
        raise TrainerError(f"the model gives {type(odd).__name__} among its outputs; expected tensors.", where="export")
    if len(leaves) != len(names):
        shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves)
        raise TrainerError(
            f"the model gives {len(leaves)} tensors ({shapes}), Export.outputs names {len(names)}.",
            where="export",
            hint="Name each one, in the order in which they come out.",
        )
    return {name: _array(leaf) for name, leaf in zip(names, leaves, strict=True)}


def _array(tensor: Tensor) -> Array:
    tensor = tensor.detach().cpu()
    return np.asarray((tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()).copy()


@dataclass(frozen=True)
class Parity:
    """The outcome of a comparison. `reason` is None where it passed."""

    reason: str | None
    tolerances: dict[str, Tolerance]
    outputs: Json
    overall: Json
    worst: dict[str, float] = field(default_factory=dict)
    """Output -> largest absolute difference."""

    @property
    def passed(self) -> bool:
        return self.reason is None


def compare(
    session: Any, export: Export, reference: Reference, initialisers: Initialisers, atol: float | None
) -> Parity:
    """Hold the session against PyTorch on all trials. A failure of the session is a reason, not an exception."""
    tolerances = {name: _tolerance(name, reference, export, atol) for name in export.outputs}
    gaps: dict[str, list[Gap]] = {name: [] for name in export.outputs}
    ambiguous = dict.fromkeys(export.outputs, 0)
    for index, trial in enumerate(reference.trials):
        expected = reference.outputs[index]
        try:
            found = dict(zip(export.outputs, run_session(session, trial.inputs), strict=True))
        except Exception as error:  # noqa: BLE001 - whatever the runtime makes of the file is a result
            reason = f"onnxruntime_failed: on {trial.what}: {type(error).__name__}: {first_line(error)}"
            return Parity(reason, tolerances, {}, {})
        found = aligned(expected, found, export.sets)
        for name in export.outputs:
            ignore = _undecided(name, index, reference)
            ambiguous[name] += 0 if ignore is None else int(ignore.sum())
            gaps[name].append(gap_of(expected[name], found[name], ignore))
    outputs = {name: _told(name, gaps[name], tolerances[name], export, reference) for name in export.outputs}
    for name, count in ambiguous.items():
        outputs[name]["undecided"] = count
        if 2 * count > (total := sum(one[name].size for one in reference.outputs)):
            told = f"float64 decides {count} of {total} numbers otherwise: too few are left to compare"
            outputs[name] |= {"ok": False, "reason": told}
    reasons = [f"{name}: {one['reason']}" for name, one in outputs.items() if not one["ok"]]
    if initialisers.different:
        reasons.append(f"initialisers: {', '.join(initialisers.different[:3])} differ from the model's weights")
    every = [gap for some in gaps.values() for gap in some if gap.problem is None]
    worst = {name: one["max"] for name, one in outputs.items() if one["max"] is not None}
    return Parity("; ".join(reasons) or None, tolerances, outputs, _statistics(every), worst)


def _tolerance(name: str, reference: Reference, export: Export, atol: float | None) -> Tolerance:
    outputs = [one[name] for one in reference.outputs]
    if reference.exact is None:
        return tolerance_of(outputs, None, atol, reference.note)
    exact = [
        aligned(ours, wide, export.sets)[name] for ours, wide in zip(reference.outputs, reference.exact, strict=True)
    ]
    return tolerance_of(outputs, exact, atol)


def _undecided(name: str, index: int, reference: Reference) -> Array | None:
    """Where a whole number of the model depends on its rounding: float64 decides otherwise."""
    ours = reference.outputs[index][name]
    if reference.exact is None or np.issubdtype(ours.dtype, np.floating):
        return None
    wide = reference.exact[index][name]
    return np.asarray(ours != wide) if wide.shape == ours.shape else None


def _told(name: str, gaps: Sequence[Gap], tolerance: Tolerance, export: Export, reference: Reference) -> Json:
    """What the report says of an output."""
    by_input = []
    for gap, trial, outputs in zip(gaps, reference.trials, reference.outputs, strict=True):
        largest = None if gap.problem else float(gap.absolute.max(initial=0.0))
        reason = gap.problem
        if reason is None:
            reason = _excess(gap, outputs[name], tolerance)
        by_input.append(
            {
                "input": trial.what,
                "shape": list(outputs[name].shape),
                "ok": not reason,
                "max": largest,
                "reason": reason,
            }
        )
    bad = next((one for one in by_input if not one["ok"]), None)
    hint = f" ({tolerance.note})" if bad is not None and tolerance.note else ""
    return {
        "ok": bad is None,
        "reason": None if bad is None else f"{bad['reason']} on {bad['input']}{hint}",
        "dtype": str(reference.outputs[0][name].dtype),
        "compared_as": "set" if name in export.sets else "elements",
        **_statistics([gap for gap in gaps if gap.problem is None]),
        "by_input": by_input,
    }


def _excess(gap: Gap, expected: Array, tolerance: Tolerance) -> str | None:
    """By how much the number that exceeds its tolerance most does so, in words."""
    if not np.issubdtype(expected.dtype, np.floating):
        largest = float(gap.absolute.max(initial=0.0))
        return f"off by {largest:.3g}, allowed are 0" if largest > 0 else None
    allowed = tolerance.allowed(expected)
    if not (gap.absolute > allowed).any():
        return None
    place = int(np.argmax(gap.absolute - allowed))
    return f"off by {gap.absolute[place]:.3g}, allowed are {allowed[place]:.3g}"


def _statistics(gaps: Sequence[Gap]) -> Json:
    """Absolute ones as they are, relative ones under `relative`; null where nothing could be compared."""
    if not gaps:
        return {**dict.fromkeys(statistics_of(np.zeros(0))), "relative": None}
    absolute = np.concatenate([gap.absolute for gap in gaps])
    relative = np.concatenate([gap.relative for gap in gaps])
    return {**statistics_of(absolute), "relative": statistics_of(relative)}
