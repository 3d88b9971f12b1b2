"""Can the hooks be called as they will be? Found out before anything is built, where Python can tell.

Hooks are called with their arguments in order, without names; so a parameter may have any name, and more of them
defaults. The two for a folder of the trainer's own are called by name, and come together or not at all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from trn.errors import PlanRefused
from trn.trainer.torch_trainer import TorchTrainer

__all__ = ["refuse_unfit_hooks"]

_HOOKS = {
    "setup": ("ctx",),
    "configure": ("ctx",),
    "prepare_batch": ("raw_batch", "state", "ctx"),
    "train_step": ("batch", "state", "ctx"),
    "state_dict": ("state",),
    "load_state_dict": ("state", "payload", "ctx"),
    # optional
    "transform": ("raw_batch", "ctx"),
    "evaluate": ("batches", "state", "ctx"),
    "evaluated": ("metrics", "state", "ctx"),
    "sample": ("state", "ctx"),
    "export": ("batch", "state", "ctx"),
}
_BY_NAME = {
    "save_checkpoint": ("state", "step", "output_dir", "final", "ctx"),
    "load_checkpoint": ("state", "checkpoint_dir", "payload", "ctx"),
}
_OF_TORCH_TRAINER = {"build": ("ctx",), "loss": ("model", "batch"), "vocab_size": ("params",)}


def refuse_unfit_hooks(trainer: Any, name: str) -> None:
    """Raise PlanRefused for the first hook that cannot be called with what it will be given."""
    hooks = _HOOKS | (_OF_TORCH_TRAINER if isinstance(trainer, TorchTrainer) else {})
    for hook, given in hooks.items():
        found = getattr(trainer, hook, None)
        if callable(found) and (problem := _problem(hook, found, given)):
            raise PlanRefused(f"{problem}.", where=f"trainer {name!r}", hint="Give the hook these parameters.")
    _refuse_half(trainer, name)
    for hook, given in _BY_NAME.items():
        found = getattr(trainer, hook, None)
        if callable(found) and (problem := _problem(hook, found, (), given)):
            hint = "It is called with these, by name."
            raise PlanRefused(f"{problem}.", where=f"trainer {name!r}", hint=hint)


def _refuse_half(trainer: Any, name: str) -> None:
    """One of the two hooks alone would write what nobody reads, or wait for what nobody writes."""
    there = [hook for hook in _BY_NAME if callable(getattr(trainer, hook, None))]
    if len(there) == 1:
        (missing,) = set(_BY_NAME) - set(there)
        raise PlanRefused(
            f"it has {there[0]} and lacks {missing}.",
            where=f"trainer {name!r}",
            hint=f"Add {missing}({', '.join(_BY_NAME[missing])}), or remove {there[0]}.",
        )


def _problem(hook: str, found: Callable[..., Any], given: tuple[str, ...], by_name: tuple[str, ...] = ()) -> str | None:
    expected = f"expected {hook}({', '.join(given + by_name)})"
    if inspect.iscoroutinefunction(found):
        return f"{expected}, found an `async def`: hooks are called, not awaited"
    if inspect.isgeneratorfunction(found):
        return f"{expected}, found a generator: a hook with `yield` in it returns nothing when it is called"
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return None  # written in C: Python cannot tell
    try:
        signature.bind(*given, **dict.fromkeys(by_name))
    except TypeError:
        plain = signature.replace(
            parameters=[one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()],
            return_annotation=inspect.Signature.empty,
        )
        return f"{expected}, found {hook}{plain}"
    return None
