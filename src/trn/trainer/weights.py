"""First weights from a file: what it holds is compared with the model by name and shape before anything is loaded.

Read are tensors and plain containers, never code:

    .safetensors              the library of that name
    anything else             a file of torch, by torch.load(weights_only=True)

A file of torch holds tensors by name, bare or under `model`, `state_dict` or `model_state_dict`; or it is a checkpoint
of a run, of which the model is taken and nothing else. Not here: when weights are loaded (the trainer's `configure`,
for a run that begins), and what a run goes on from (trn.checkpoint).
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor, nn

from trn.errors import PlanRefused
from trn.files import sha256_file
from trn.spec.plan_model import WeightsPlan

__all__ = ["LoadedWeights", "load_weights"]

_WRAPPINGS = ("model", "state_dict", "model_state_dict")
_SHOWN = 3
_WHERE = "weights.path"


@dataclass(frozen=True)
class LoadedWeights:
    """What of a file went into the model: names of its tensors, and of those that did not."""

    loaded: list[str]
    missing: list[str]
    """Tensors of the model that the file has not; they stay as they were drawn."""
    unexpected: list[str]
    """Tensors of the file that the model has not."""
    mismatched: list[str]
    """Tensors of both, of another shape or another kind of number."""
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Counts, and the names of what did not fit."""
        return {
            "loaded": len(self.loaded),
            "missing": self.missing,
            "unexpected": self.unexpected,
            "mismatched": self.mismatched,
            "sha256": self.sha256,
        }


def load_weights(plan: WeightsPlan, model: nn.Module) -> LoadedWeights:
    """Give the model the weights of the planned file.

    Raises PlanRefused, with the model as it was: a file that is not the planned one, holds something else than tensors
    by name, does not fit (with `allow_partial`, of which nothing fits), has two values for what is one tensor of the
    model, or a parameter that is not finite.
    """
    given = read_weights(Path(plan.path), plan.sha256)
    own: dict[str, Any] = model.state_dict(keep_vars=True)
    fitting = {name: tensor for name, tensor in given.items() if _fits(own.get(name), tensor)}
    names: dict[int, list[str]] = {}
    for name in fitting:
        names.setdefault(id(own[name]), []).append(name)
    result = LoadedWeights(
        loaded=list(fitting),
        # of tied tensors one name is enough
        missing=[name for name, tensor in own.items() if name not in given and id(tensor) not in names],
        unexpected=[name for name in given if name not in own],
        mismatched=[name for name in given if name in own and name not in fitting],
        sha256=plan.sha256,
    )
    _require_fit(plan, result, own, given)
    _require_same(fitting, own, [tied for tied in names.values() if len(tied) > 1])
    _require_finite({name: tensor for name, tensor in fitting.items() if isinstance(own[name], nn.Parameter)}, own)
    weights = OrderedDict(fitting)
    if hasattr(given, "_metadata"):  # by which a module that migrates old weights goes
        weights._metadata = given._metadata  # type: ignore[attr-defined]  # where torch keeps it
    try:
        model.load_state_dict(weights, strict=False)
    except Exception as error:  # whatever a module of the trainer makes of them
        raise PlanRefused(f"the model does not take them: {_first_line(error)}", where=_WHERE) from error
    return result


def read_weights(path: Path, sha256: str) -> Mapping[str, Any]:
    """The tensors of a file by name, as torch saved them or in the file's order. Raises PlanRefused."""
    try:
        now = sha256_file(path)
    except OSError as error:
        raise PlanRefused(
            f"{str(path)!r} cannot be read: {error.strerror or error}.",
            where=_WHERE,
            hint="Put it back, or let the spec name it where it is now.",
        ) from error
    if now != sha256:
        raise PlanRefused(
            f"{str(path)!r} is another file than the one that was planned: its sha256 begins with {now[:12]}, "
            f"expected {sha256[:12]}.",
            where=_WHERE,
            hint="Restore it, or start a new run.",
        )
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _unwrapped(_read_torch(path), path)
    for name, value in found.items():
        if not isinstance(name, str) or not (isinstance(value, Tensor) or name.endswith("_extra_state")):
            raise _no_tensors(path, f"{name!r:.60} is a {type(value).__name__}")
    if not found:
        raise _no_tensors(path, "it is empty")
    return found


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        from safetensors.torch import load_file  # an extra: only who has such a file needs it
    except ImportError as error:
        raise PlanRefused(
            "a .safetensors file is read by a library that is not installed.",
            where=_WHERE,
            hint="pip install 'trn-runtime[export]'",
        ) from error
    try:
        return load_file(path)
    except Exception as error:  # whatever a file may do to its reader
        raise PlanRefused(f"{str(path)!r} is no safetensors file: {_first_line(error)}", where=_WHERE) from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # what is wrong with a file is said in one line
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception as error:  # whatever a file may do to its reader
        raise PlanRefused(
            f"{str(path)!r} is no file of tensors that can be read without running code in it: {_first_line(error)}",
            where=_WHERE,
            hint="Save the state_dict alone: torch.save(model.state_dict(), path).",
        ) from error


def _unwrapped(payload: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(payload, Mapping):
        raise _no_tensors(path, f"it holds a {type(payload).__name__}")
    trainer = payload.get("trainer")
    if {"trainer", "progress", "rng"} <= payload.keys() and isinstance(trainer, Mapping):
        return _of_checkpoint(trainer, path)
    for key in _WRAPPINGS:
        if isinstance(inner := payload.get(key), Mapping):
            return inner
    return payload


def _of_checkpoint(trainer: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The model of a TorchTrainer, with the versions that its modules declared."""
    model, versions = trainer.get("model"), trainer.get("versions")
    if not isinstance(model, Mapping) or not isinstance(versions, Mapping):
        raise _no_tensors(path, "it is a checkpoint of a trainer that keeps its model otherwise")
    weights = OrderedDict(model)
    weights._metadata = OrderedDict(  # type: ignore[attr-defined]  # where torch keeps it
        (prefix, {"version": version}) for prefix, version in versions.items()
    )
    return weights


def _fits(own: Any, given: Any) -> bool:
    if not (isinstance(own, Tensor) and isinstance(given, Tensor)):
        return own is not None and not isinstance(own, Tensor) and not isinstance(given, Tensor)
    kinds = [(one.is_floating_point(), one.is_complex()) for one in (own, given)]
    return own.shape == given.shape and kinds[0] == kinds[1]


def _require_fit(plan: WeightsPlan, result: LoadedWeights, own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    misfits = {
        "missing": result.missing,
        "unexpected": result.unexpected,
        "of another shape": [f"{name} ({_shape(given[name])} for {_shape(own[name])})" for name in result.mismatched],
    }
    if plan.allow_partial and any(isinstance(own[name], nn.Parameter) for name in result.loaded):
        return
    told = "; ".join(f"{len(names)} {what}: {_first(names)}" for what, names in misfits.items() if names)
    if plan.allow_partial:
        raise PlanRefused(f"not one parameter of the model is in it: {told}.", where=_WHERE)
    if told:
        raise PlanRefused(
            f"{len(result.loaded)} of {len(own)} tensors of the model fit; {told}.",
            where=_WHERE,
            hint="With weights.allow_partial: true those that fit are taken, and the rest is recorded.",
        )


def _require_same(fitting: Mapping[str, Any], own: Mapping[str, Any], tied: list[list[str]]) -> None:
    """Refuse what would leave the model with the last of several values, whichever that is."""
    for first, *others in (names for names in tied if isinstance(own[names[0]], Tensor)):
        dtype = own[first].dtype
        for other in others:
            if not torch.equal(fitting[first].to(dtype), fitting[other].to(dtype)):
                raise PlanRefused(
                    f"{first} and {other} are one tensor of the model, and two that differ in the file.",
                    where=_WHERE,
                    hint="Keep one of them in the file, or untie them in `build`.",
                )


def _require_finite(fitting: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    bad = [name for name, one in fitting.items() if not torch.isfinite(one.to(own[name].dtype)).all()]
    if bad:
        raise PlanRefused(f"{len(bad)} tensors are not finite: {_first(bad)}.", where=_WHERE)


def _first(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _shape(value: Any) -> str:
    return (
        f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}" if isinstance(value, Tensor) else "no tensor"
    )


def _no_tensors(path: Path, why: str) -> PlanRefused:
    return PlanRefused(
        f"{str(path)!r} does not hold tensors by name: {why}.",
        where=_WHERE,
        hint="Expected a state_dict, bare or under model, state_dict or model_state_dict.",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
