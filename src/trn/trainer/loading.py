"""From the trainer's name in a spec to an object with six hooks: `module:Class`, a bare module, or an entry point.

The only place of the house that imports by a name, and only by one from the operator's own spec or command line.
"""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from trn.errors import PlanRefused, TrnError
from trn.trainer.contract import HOOKS, Trainer
from trn.trainer.signatures import refuse_unfit_hooks

__all__ = ["ENTRY_POINT_GROUP", "OWN_LOOP", "load_trainer"]

ENTRY_POINT_GROUP = "trn.trainers"
OWN_LOOP = "own_loop"
"""What a plan calls a loop of the user's own: nobody but the script that has it can bring such a run forward."""
_USUAL_NAMES = ("TRAINER", "Trainer", "trainer")


def load_trainer(name: str) -> Trainer:
    """The trainer that `name` means; a class is made without arguments.

    Raises PlanRefused when there is no such module or symbol, when importing or making it fails (with the cause
    chained), when hooks are missing, or when a bare module has not exactly one candidate.
    """
    if name == OWN_LOOP:
        raise _refuse(
            name,
            "it stands for a loop of the user's own, around trn.open_run.",
            "Start the script that has the loop: it begins the run, or goes on with it.",
        )
    module_name, colon, symbol = _resolve(name).partition(":")
    module = _import(module_name, name)
    found = _attribute(module, symbol, name) if colon else _only_candidate(module, name)
    return _as_trainer(found, name)


def _resolve(name: str) -> str:
    if ":" in name:
        return name
    named = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return named.get(name, name)


def _refuse(name: str, message: str, hint: str | None = None) -> PlanRefused:
    return PlanRefused(message, where=f"trainer {name!r}", hint=hint)


def _import(module_name: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise _refuse(name, f"importing it needs the module {error.name!r}, which is not installed.") from error
        known = ", ".join(sorted(point.name for point in entry_points(group=ENTRY_POINT_GROUP)))
        raise _refuse(
            name,
            f"there is no module {module_name!r} and no installed trainer of that name (installed: {known}).",
            "Put the module beside the spec, install its package, or write module:Class.",
        ) from error
    except (Exception, SystemExit) as error:
        raise _refuse(name, f"importing {module_name!r} raised {type(error).__name__}: {error}.") from error


def _attribute(module: ModuleType, symbol: str, name: str) -> Any:
    found: Any = module
    for part in symbol.split("."):
        if not hasattr(found, part):
            near = ", ".join(key for key, value in vars(module).items() if _looks_like_trainer(value, module))
            raise _refuse(name, f"module {module.__name__!r} has no {symbol!r}; trainers in it: {near or 'none'}.")
        found = getattr(found, part)
    return found


def _looks_like_trainer(value: object, module: ModuleType) -> bool:
    if inspect.isclass(value):
        own = value.__module__ == module.__name__
        return own and not inspect.isabstract(value) and not _missing(value)
    return not inspect.ismodule(value) and not _missing(value)


def _only_candidate(module: ModuleType, name: str) -> Any:
    for usual in _USUAL_NAMES:
        if usual in vars(module) and not _missing(vars(module)[usual]):
            return vars(module)[usual]
    found = {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_") and _looks_like_trainer(value, module)
    }
    if len(found) != 1:
        listed = ", ".join(sorted(found)) or "none"
        raise _refuse(
            name,
            f"expected exactly one trainer in the module, found {len(found)}: {listed}.",
            "Write module:Class.",
        )
    return next(iter(found.values()))


def _missing(candidate: object) -> list[str]:
    return [hook for hook in HOOKS if not callable(getattr(candidate, hook, None))]


def _as_trainer(found: Any, name: str) -> Trainer:
    if inspect.isfunction(found) or inspect.ismodule(found):
        raise _refuse(
            name,
            f"expected a class or an instance with six hooks, found a {type(found).__name__}.",
            "Name the class, as module:Class.",
        )
    if missing := _missing(found):
        raise _refuse(name, f"it lacks the hook{'s' if len(missing) > 1 else ''} {', '.join(missing)}.")
    version = getattr(found, "trainer_api_version", "v1")
    if version != "v1":
        raise _refuse(name, f"trainer_api_version is {version!r}; this version of trn runs 'v1'.")
    trainer: Trainer = _made(found, name) if isinstance(found, type) else found
    refuse_unfit_hooks(trainer, name)
    return trainer


def _made(kind: Any, name: str) -> Any:
    if inspect.isabstract(kind):
        raise _refuse(name, f"it does not give {', '.join(sorted(kind.__abstractmethods__))}.")
    try:
        return kind()
    except TrnError:
        raise
    except (Exception, SystemExit) as error:
        message = f"{kind.__name__}() raised {type(error).__name__}: {error}."
        raise _refuse(name, message, "A trainer is made without arguments.") from error
