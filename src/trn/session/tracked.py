"""The objects of a loop that must survive a kill: saved together, and given back to the bit."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from trn.errors import ResumeRefused, TrnError, UsageError
from trn.gates import require_finite
from trn.trainer.optimizers import cloned, load_optimizer

__all__ = ["Tracked"]

_VERSIONS = "module_versions"
"""Beside the objects' states: the versions that modules declare, by object."""


class Tracked:
    """Objects by name, each with `state_dict` and `load_state_dict`; and what a checkpoint holds for them."""

    def __init__(self, saved: dict[str, Any] | None = None, where: str = "") -> None:
        self.objects: dict[str, Any] = {}
        self._saved, self._where = saved, where
        self.step = 0
        """The last step that was made."""

    def add(self, name: str, value: Any) -> None:
        """Raises UsageError for what cannot be tracked, ResumeRefused where its state is not in the checkpoint."""
        place = f"run.track({name}=...)"
        lacking = [word for word in ("state_dict", "load_state_dict") if not callable(getattr(value, word, None))]
        if lacking:
            raise UsageError(
                f"expected an object with state_dict and load_state_dict, found a {type(value).__name__}.",
                where=place,
                hint="Give it the two methods, or wrap it in an object that has them.",
            )
        if name in self.objects or name == _VERSIONS:
            raise UsageError("there is one of this name already.", where=place, hint="Use another name.")
        self.objects[name] = value
        if self._saved is not None:
            if name not in self._saved:
                raise ResumeRefused(
                    f"the checkpoint has no {name!r}; it has {', '.join(self._names()) or 'nothing'}.",
                    where=self._where,
                    hint="Track what the run has tracked from its beginning, under the same names.",
                )
            self._restore(name, value, self._saved)

    def require_all(self) -> None:
        """Raise ResumeRefused where the checkpoint holds more than is tracked."""
        if missing := [name for name in self._names() if name not in self.objects]:
            raise ResumeRefused(
                f"it holds {', '.join(missing)}, which this loop does not track.",
                where=self._where,
                hint="Call run.track(...) with it before the first batch.",
            )

    def state_dict(self) -> dict[str, Any]:
        """The state of each. Raises NumericalInstability for a module with broken weights."""
        modules = {name: one for name, one in self.objects.items() if isinstance(one, nn.Module)}
        for module in modules.values():
            _require_finite(self.step, module)
        states = {name: one.state_dict() for name, one in self.objects.items()}
        declared = {name: getattr(states[name], "_metadata", {}) for name in modules}
        versions = {
            name: {prefix: local.get("version") for prefix, local in of_module.items()}
            for name, of_module in declared.items()
        }
        return {**states, _VERSIONS: versions}

    def _names(self) -> list[str]:
        return [name for name in self._saved or () if name != _VERSIONS]

    def _restore(self, name: str, value: Any, saved: dict[str, Any]) -> None:
        try:
            if isinstance(value, nn.Module):
                weights = OrderedDict(saved[name])
                versions = {prefix: {"version": version} for prefix, version in saved[_VERSIONS][name].items()}
                weights._metadata = OrderedDict(versions)  # type: ignore[attr-defined]  # where torch keeps it
                value.load_state_dict(weights)
            elif isinstance(value, torch.optim.Optimizer):
                load_optimizer(value, saved[name])
            else:
                value.load_state_dict(cloned(saved[name]))  # it may keep what it is given, and the file is mapped
        except Exception as error:  # whatever an object of the user's does with what it once gave
            told = error.message if isinstance(error, TrnError) else f"{type(error).__name__}: {error}"
            raise ResumeRefused(
                f"{name} does not take its state back: {(told.splitlines() or [''])[0]}",
                where=self._where,
                hint="Make it as it was made when the run began.",
            ) from error


def _require_finite(step: int, module: nn.Module) -> None:
    weights = [one.detach() for one in module.parameters() if one.is_floating_point() and one.numel()]
    norms = torch._foreach_norm(weights, dtype=torch.float32) if weights else []
    require_finite(step, "the weights after the update", sum(norm.item() for norm in norms))
